//! A workload whose every snapshot is known to be consistent: money that is only moved, and pairs
//! of which at least one half stays set although each transaction looks at both and writes one.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::txn::{Aborted, Client, CommitMode, Committed, Mode, Write};

pub const ACCOUNTS: usize = 24;
const PAIRS: usize = 4;
const OPENING: i64 = 100;

pub fn account(i: usize) -> Bytes {
    format!("bank/{i:02}").into()
}

fn half(pair: usize, side: &str) -> Bytes {
    format!("skew/{pair}/{side}").into()
}

/// Every third account's values are too long for a write record.
fn balance_value(i: usize, balance: i64) -> Bytes {
    let padding = if i.is_multiple_of(3) { 400 } else { 0 };
    format!("{balance:08}{}", ".".repeat(padding)).into()
}

fn balance_of(value: &[u8]) -> i64 {
    std::str::from_utf8(&value[..8]).unwrap().parse().unwrap()
}

/// First contents, in one transaction over everything.
pub async fn open(client: &Client) -> u64 {
    let mut writes = BTreeMap::new();
    for i in 0..ACCOUNTS {
        writes.insert(account(i), Write::Put(balance_value(i, OPENING)));
    }
    for pair in 0..PAIRS {
        for side in ["a", "b"] {
            writes.insert(half(pair, side), Write::Put("1".into()));
        }
    }
    let start = client.now().await;
    client
        .commit(CommitMode::TwoPhase, start, None, &writes)
        .await
        .expect("nobody else")
        .ts
}

/// Panics unless the snapshot is one that could have been.
pub fn check(snapshot: &BTreeMap<Bytes, Bytes>, at: u64) {
    let balances: Vec<i64> = (0..ACCOUNTS)
        .filter_map(|i| snapshot.get(&account(i)))
        .map(|v| balance_of(v))
        .collect();
    assert_eq!(balances.len(), ACCOUNTS, "accounts are missing at {at}");
    let expected = OPENING * i64::try_from(ACCOUNTS).unwrap();
    assert_eq!(
        balances.iter().sum::<i64>(),
        expected,
        "money at {at}: {balances:?}"
    );
    for pair in 0..PAIRS {
        let both = ["a", "b"].map(|side| snapshot[&half(pair, side)].clone());
        assert!(
            both.iter().any(|v| v == "1"),
            "pair {pair} at {at}: both halves are unset"
        );
    }
}

/// How many transactions ended in which way.
pub type Ends = BTreeMap<(bool, CommitMode), usize>;

/// One client's work until the deadline.
pub async fn work(client: &Client, seed: u64, until: Instant) -> Ends {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ends = Ends::new();
    while Instant::now() < until {
        let mode = Mode {
            pessimistic: random.random_bool(0.35),
            commit: [CommitMode::TwoPhase, CommitMode::Async, CommitMode::OnePc]
                [random.random_range(0..3)],
        };
        let ended = if random.random_bool(0.3) {
            turn(client, &mut random, mode).await
        } else {
            transfer(client, &mut random, mode, seed).await
        };
        if let Ok(committed) = ended {
            *ends.entry((mode.pessimistic, committed.how)).or_default() += 1;
        }
    }
    ends
}

/// Reads everything at one timestamp, key by key, until the deadline; how often. What has been
/// read must not change afterwards, so no later commit may land at or below that timestamp.
pub async fn read_all(client: &Client, until: Instant) -> usize {
    let mut count = 0;
    while Instant::now() < until {
        let at = client.now().await;
        let mut keys: Vec<Bytes> = (0..ACCOUNTS).map(account).collect();
        keys.extend((0..PAIRS).flat_map(|pair| ["a", "b"].map(|side| half(pair, side))));
        let mut snapshot = BTreeMap::new();
        for key in keys {
            let value = client.get(&key, at).await.expect("every key is there");
            snapshot.insert(key, value);
        }
        check(&snapshot, at);
        count += 1;
    }
    count
}

/// Moves money between two accounts and leaves, changes or removes a note.
async fn transfer(
    client: &Client,
    random: &mut StdRng,
    mode: Mode,
    worker: u64,
) -> Result<Committed, Aborted> {
    let from = random.random_range(0..ACCOUNTS);
    // Mostly neighbours, so that one region can hold both.
    let to = (from + random.random_range(1..3)) % ACCOUNTS;
    let amount = random.random_range(1..20);
    let start = client.now().await;
    let (read, for_update_ts) = read(client, mode, start, &[account(from), account(to)]).await?;
    let mut writes = BTreeMap::new();
    for (i, change) in [(from, -amount), (to, amount)] {
        let balance = balance_of(&read[&account(i)]) + change;
        writes.insert(account(i), Write::Put(balance_value(i, balance)));
    }
    if for_update_ts.is_none() && random.random_bool(0.5) {
        let note = format!("bank/note/{worker}").into();
        let write = match random.random_range(0..2) {
            0 => Write::Delete,
            _ => Write::Put(format!("{from} to {to}").into()),
        };
        writes.insert(note, write);
    }
    client
        .commit(mode.commit, start, for_update_ts, &writes)
        .await
}

/// Unsets one half if the other is set, else sets it; the other is locked so that nobody does the
/// same there at the same time.
async fn turn(client: &Client, random: &mut StdRng, mode: Mode) -> Result<Committed, Aborted> {
    let pair = random.random_range(0..PAIRS);
    let (mine, other) = if random.random_bool(0.5) {
        ("a", "b")
    } else {
        ("b", "a")
    };
    let (mine, other) = (half(pair, mine), half(pair, other));
    let start = client.now().await;
    let (read, for_update_ts) =
        read(client, mode, start, &[half(pair, "a"), half(pair, "b")]).await?;
    let unset = read[&mine] == "1" && read[&other] == "1";
    let value = if unset { "0" } else { "1" };
    let writes = [(mine, Write::Put(value.into())), (other, Write::Lock)].into();
    client
        .commit(mode.commit, start, for_update_ts, &writes)
        .await
}

/// Reads at the start timestamp, or locks and reads what is newest.
async fn read(
    client: &Client,
    mode: Mode,
    start: u64,
    keys: &[Bytes],
) -> Result<(BTreeMap<Bytes, Bytes>, Option<u64>), Aborted> {
    let mut keys = keys.to_vec();
    keys.sort();
    if mode.pessimistic {
        let (for_update_ts, values) = client.lock(&keys, start).await?;
        return Ok((values, Some(for_update_ts)));
    }
    let mut values = BTreeMap::new();
    for key in keys {
        let value = client
            .get(&key, start)
            .await
            .expect("every account is there");
        values.insert(key, value);
    }
    Ok((values, None))
}
