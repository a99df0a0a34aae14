//! The promise of a resolved timestamp, under everything that could break it: one-phase and
//! asynchronous commits, pessimistic locks, lock-only writes, rollbacks, readers that push
//! transactions, and region splits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::bank::{self, Ends};
use super::subscriber::Subscriber;
use super::system::System;
use super::txn::{Client, CommitMode};

const INTERVAL: Duration = Duration::from_millis(50);
const WORK: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_commits_at_or_below_a_resolved_timestamp_that_was_sent() {
    let system = System::start(INTERVAL).await;
    let client = Arc::new(Client::new(&system).await);
    let from = system.now().await;
    let mut subscriber = Subscriber::start(&system, from).await;
    let opened = bank::open(&client).await;
    let until = Instant::now() + WORK;
    let workers = workers(&client, until);
    let reader = reader(&client, until);
    let working = || workers.iter().any(|w| !w.is_finished());
    let watching = watch(&mut subscriber, opened, working);
    let (checked, ()) = tokio::join!(watching, splits(&system));
    let mut ends = Ends::new();
    for worker in workers {
        for (how, count) in worker.join().expect("a worker") {
            *ends.entry(how).or_default() += count;
        }
    }
    assert!(reader.join().expect("the reader") >= 10);
    catch_up(&mut subscriber, system.now().await).await;
    let frontier = subscriber.frontier();
    let rebuilt = subscriber.snapshot(frontier);
    bank::check(&rebuilt, frontier);
    let scanned: BTreeMap<_, _> = system.scan_all(frontier).await.into_iter().collect();
    assert_eq!(
        rebuilt, scanned,
        "rows of the stream against a scan at {frontier}"
    );
    assert!(checked >= 20, "only {checked} snapshots were checked");
    assert!(
        subscriber.ends >= 5,
        "only {} subscriptions ended by a split",
        subscriber.ends
    );
    for pessimistic in [false, true] {
        for how in [CommitMode::TwoPhase, CommitMode::Async, CommitMode::OnePc] {
            let count = ends.get(&(pessimistic, how)).copied().unwrap_or_default();
            assert!(
                count >= 5,
                "pessimistic {pessimistic}, {how:?}: only {count} of {ends:?}"
            );
        }
    }
    system.stop().await;
}

/// Clients that work at the same time, each in a thread of its own.
fn workers(client: &Arc<Client>, until: Instant) -> Vec<JoinHandle<Ends>> {
    let start = |seed| {
        let client = client.clone();
        std::thread::spawn(move || runtime().block_on(bank::work(&client, seed, until)))
    };
    (1..=6).map(start).collect()
}

/// One more that only reads.
fn reader(client: &Arc<Client>, until: Instant) -> JoinHandle<usize> {
    let client = client.clone();
    std::thread::spawn(move || runtime().block_on(bank::read_all(&client, until)))
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Checks the snapshot at every new frontier; how many there were.
async fn watch(subscriber: &mut Subscriber, opened: u64, working: impl Fn() -> bool) -> usize {
    let mut checked = 0;
    let mut last = 0;
    while working() {
        subscriber.step().await;
        let frontier = subscriber.frontier();
        if frontier > last && frontier >= opened {
            bank::check(&subscriber.snapshot(frontier), frontier);
            checked += 1;
            last = frontier;
        }
    }
    checked
}

/// Reads on until everything up to `end` is proven.
async fn catch_up(subscriber: &mut Subscriber, end: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while subscriber.frontier() < end {
        let frontier = subscriber.frontier();
        assert!(
            Instant::now() < deadline,
            "no lock is left, but {frontier} < {end}"
        );
        subscriber.step().await;
    }
}

/// Splits here and there while the others work.
async fn splits(system: &System) {
    for i in [12, 6, 18, 3, 9, 21] {
        tokio::time::sleep(WORK / 8).await;
        system.split(&[&bank::account(i)]).await;
    }
}
