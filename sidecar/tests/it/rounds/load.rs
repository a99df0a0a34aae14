//! The load: clients that write, read, split regions and resolve what other clients left behind,
//! until they are stopped. What the store confirmed is written down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::Ts;
use pitr_proto::kvrpcpb::{self, Op};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::client::{Client, Trouble};
use super::rows;
use super::source::Source;
use super::txn::{Outcome, Plan};
use super::wait_until;

/// Clients that write.
const WRITERS: u64 = 6;
/// Longest pause of a writer between two transactions.
const PAUSE_MS: u64 = 10;
/// Transactions of one writer, however long the load runs.
const MOST_TXNS: usize = 20_000;
/// Splits of one load.
const SPLITS: usize = 12;
/// No transaction takes longer; one that does is left behind.
const TXN_LIMIT: Duration = Duration::from_secs(5);

/// A write that the store confirmed.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Bytes,
    pub start: Ts,
    pub commit: Ts,
    /// `None` for a deletion.
    pub value: Option<Bytes>,
}

/// What the load did.
#[derive(Debug, Default)]
struct Book {
    writes: Vec<Write>,
    /// Transactions by way, ending and outcome.
    tally: BTreeMap<String, u64>,
}

/// A running load.
pub struct Load {
    client: Client,
    book: Arc<Mutex<Book>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts it; the same seed makes the same choices.
    pub async fn start(source: &Source, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let book = Arc::new(Mutex::new(Book::default()));
        let client = Client::connect(&source.pd()).await;
        let mut clients = JoinSet::new();
        for n in 0..WRITERS {
            let mut rng = StdRng::seed_from_u64(seed ^ n);
            let (client, book) = (client.clone(), book.clone());
            let stopped = stopped.clone();
            clients.spawn(async move {
                for _ in 0..MOST_TXNS {
                    if *stopped.borrow() {
                        return;
                    }
                    write(&client, &mut rng, &book).await;
                    let pause = rng.random_range(0..PAUSE_MS);
                    sleep(Duration::from_millis(pause)).await;
                }
            });
        }
        let rng = StdRng::seed_from_u64(seed ^ 0x5EED);
        clients.spawn(until(stopped.clone(), split(client.clone(), rng)));
        let rng = StdRng::seed_from_u64(seed ^ 0xEAD);
        clients.spawn(until(stopped.clone(), read(client.clone(), rng)));
        clients.spawn(until(stopped, resolve(client.clone())));
        Load {
            client,
            book,
            stop,
            clients,
        }
    }

    /// Ends it, waits until no transaction is open, and gives what was confirmed and a ts behind
    /// all of it.
    pub async fn stop(self) -> (Vec<Write>, Ts) {
        self.stop.send(true).unwrap();
        self.clients.join_all().await;
        let book = std::mem::take(&mut *self.book.lock());
        println!("{} confirmed writes; {:?}", book.writes.len(), book.tally);
        let client = self.client;
        wait_until("no transaction is open", async || {
            resolve_once(&client).await.unwrap();
            client.locks().await.unwrap().is_empty()
        })
        .await;
        (book.writes, client.now().await.unwrap())
    }
}

async fn until(mut stopped: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

async fn write(client: &Client, rng: &mut StdRng, book: &Mutex<Book>) {
    let plan = Plan::random(rng, &rows::keys());
    let ran = timeout(TXN_LIMIT, plan.run(client)).await;
    let outcome = match &ran {
        Ok(Ok(Outcome::Committed { .. })) => "committed",
        Ok(Ok(Outcome::Other)) => "done",
        Ok(Err(Trouble::Refused(_))) => "refused",
        Ok(Err(Trouble::Away(_))) => "away",
        Err(_) => "too slow",
    };
    let what = format!("{:?} {:?} {outcome}", plan.way, plan.ending);
    let mut book = book.lock();
    *book.tally.entry(what).or_default() += 1;
    let Ok(Ok(Outcome::Committed { start, commit })) = ran else {
        return;
    };
    let changes = plan.writes.into_iter().filter(|w| w.op() != Op::Lock);
    book.writes.extend(changes.map(|write| Write {
        start,
        commit,
        value: (write.op() == Op::Put).then(|| write.value.clone()),
        key: write.key,
    }));
}

/// Splits at random keys, the first time soon.
async fn split(client: Client, mut rng: StdRng) {
    let keys = rows::keys();
    for _ in 0..SPLITS {
        sleep(Duration::from_millis(rng.random_range(200..1500))).await;
        // Refused when a region begins there already, and while the store is away.
        let _ = client.split(&keys[rng.random_range(0..keys.len())]).await;
    }
}

/// Reads, which moves the smallest ts at which the others may still commit.
async fn read(client: Client, mut rng: StdRng) {
    let keys = rows::keys();
    loop {
        sleep(Duration::from_millis(rng.random_range(10..100))).await;
        let Ok(now) = client.now().await else {
            continue;
        };
        let key = rng.random_range(0..keys.len());
        let step = client.step(&keys[key..=key], |mut stub, context, mut keys| {
            let request = kvrpcpb::GetRequest {
                context: Some(context),
                key: keys.remove(0),
                version: now.get(),
                ..Default::default()
            };
            async move { stub.kv_get(request).await }
        });
        // What is read does not matter here.
        let _ = step.await;
    }
}

/// Ends the transactions whose clients are gone: reads everything, as any client would some time.
async fn resolve(client: Client) {
    loop {
        sleep(Duration::from_millis(700)).await;
        // Fails while the source is away.
        let _ = resolve_once(&client).await;
    }
}

/// Reads everything once, now, and so ends the transactions whose clients are gone for long enough.
async fn resolve_once(client: &Client) -> Result<(), Trouble> {
    let now = client.now().await?;
    let mut scan = client.reader().scan(Bytes::new(), Bytes::new(), now);
    loop {
        match scan.next_page().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(Trouble::Away(error.to_string())),
        }
    }
}
