//! Bank transfers and write skew under every way to commit, with dying clients and splits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pitr_proto::kvrpcpb::{Mutation, MvccGetByKeyRequest, Op};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::client::{Aborted, Client, Plan, Way};
use crate::store::fixture::Fixture;

const ACCOUNTS: usize = 8;
const OPENING: i64 = 100;
const WORKERS: u64 = 4;
const ROUNDS: usize = 300;

/// The value of an account: balance and the number of changes since the opening. It is longer
/// than a short value for every other account.
fn encode(account: usize, balance: i64, changes: u64) -> Bytes {
    let pad = if account.is_multiple_of(2) { 0 } else { 300 };
    format!("{balance} {changes} {}", "x".repeat(pad)).into()
}

fn decode(value: &[u8]) -> (i64, u64) {
    let text = std::str::from_utf8(value).unwrap();
    let mut parts = text.split(' ');
    let mut next = || parts.next().unwrap();
    (next().parse().unwrap(), next().parse().unwrap())
}

fn key(account: usize) -> Bytes {
    format!("account/{account:03}").into()
}

fn put(account: usize, balance: i64, changes: u64) -> Mutation {
    Mutation {
        op: Op::Put.into(),
        key: key(account),
        value: encode(account, balance, changes),
        ..Default::default()
    }
}

fn any_way(rng: &mut StdRng) -> Way {
    [Way::TwoPhase, Way::Async, Way::OnePhase, Way::Pessimistic][rng.random_range(0..4)]
}

/// Runs one transaction over two accounts: `decide` gets both states and gives the mutations.
fn transact(
    client: &Client,
    rng: &mut StdRng,
    accounts: [usize; 2],
    decide: impl Fn([(i64, u64); 2]) -> Option<Vec<Mutation>>,
) -> Result<(), Aborted> {
    let way = any_way(rng);
    let start_ts = client.ts();
    let mut keys = accounts.map(key);
    let read_ts = if way == Way::Pessimistic {
        if rng.random_bool(0.5) {
            keys.reverse();
        }
        client.lock(&keys, start_ts)?
    } else {
        start_ts
    };
    let states = accounts.map(|a| decode(&client.get(&key(a), read_ts).unwrap()));
    // Gives others the time to do the same with what they have read.
    std::thread::sleep(Duration::from_micros(rng.random_range(0..400)));
    let Some(mut mutations) = decide(states) else {
        if way == Way::Pessimistic {
            client.give_up(&keys, start_ts);
        }
        return Err(Aborted);
    };
    if way == Way::Pessimistic && mutations[0].key != keys[0] {
        mutations.reverse();
    }
    let plan = Plan {
        start_ts,
        way,
        mutations,
        goes_away: rng.random_bool(0.05),
    };
    client.finish(&plan, read_ts)
}

fn two_accounts(rng: &mut StdRng) -> [usize; 2] {
    let first = rng.random_range(0..ACCOUNTS);
    [first, (first + rng.random_range(1..ACCOUNTS)) % ACCOUNTS]
}

fn transfer(client: &Client, rng: &mut StdRng) -> Result<(), Aborted> {
    let [from, to] = two_accounts(rng);
    let amount = rng.random_range(1..10);
    transact(client, rng, [from, to], |[a, b]| {
        Some(vec![
            put(from, a.0 - amount, a.1 + 1),
            put(to, b.0 + amount, b.1 + 1),
        ])
    })
}

fn client_of(fixture: &Fixture, runtime: &tokio::runtime::Runtime) -> Client {
    Client {
        store: fixture.store.clone(),
        clock: Arc::new(AtomicU64::new(1_000_000)),
        runtime: runtime.handle().clone(),
    }
}

fn open_accounts(client: &Client) {
    let plan = Plan {
        start_ts: client.ts(),
        way: Way::TwoPhase,
        mutations: (0..ACCOUNTS).map(|a| put(a, OPENING, 0)).collect(),
        goes_away: false,
    };
    client.finish(&plan, 0).unwrap();
}

/// Runs `work` in several threads while the key space is split between the accounts.
fn run_all(client: &Client, seed: u64, work: impl Fn(&Client, &mut StdRng) + Sync) {
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let work = &work;
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed + worker);
                    (0..ROUNDS).for_each(|_| work(client, &mut rng));
                })
            })
            .collect();
        scope.spawn(|| {
            for account in (1..ACCOUNTS).step_by(2) {
                std::thread::sleep(Duration::from_millis(20));
                client.store.split_at_user_keys(&[&key(account)]).unwrap();
            }
            // Readers in between must see full sums at any time.
            while running.load(Ordering::Relaxed) {
                assert_eq!(sum_at(client, client.ts()), OPENING * ACCOUNTS as i64);
            }
        });
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        running.store(false, Ordering::Relaxed);
        assert!(results.iter().all(|r| r.is_ok()));
    });
}

fn sum_at(client: &Client, ts: u64) -> i64 {
    let balance = |account| decode(&client.get(&key(account), ts).unwrap()).0;
    (0..ACCOUNTS).map(balance).sum()
}

/// Every version of an account, oldest first: (commit ts, start ts).
fn versions(client: &Client, account: usize) -> Vec<(u64, u64)> {
    let regions = client.store.regions();
    let encoded = pitr_format::EncodedKey::encode(&key(account));
    let region = regions.find(encoded.as_bytes()).unwrap();
    let answer = client.store.mvcc_get_by_key(MvccGetByKeyRequest {
        context: Some(regions.context(region)),
        key: key(account),
    });
    let info = answer.info.unwrap();
    // A read has resolved what is in its way; the lock-only key of a dead client is not.
    assert!(info.lock.is_none_or(|l| l.r#type() == Op::Lock));
    let puts = info.writes.iter().rev().filter(|w| w.r#type() == Op::Put);
    puts.map(|w| (w.commit_ts, w.start_ts)).collect()
}

#[test]
fn money_is_neither_made_nor_lost_and_no_update_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = Fixture::new();
    let client = client_of(&fixture, &runtime);
    open_accounts(&client);
    let done = AtomicU64::new(0);
    run_all(&client, 7, |client, rng| {
        if transfer(client, rng).is_ok() {
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
    // Later than the life of every lock; resolves what dead clients left.
    client.clock.fetch_add(1000, Ordering::SeqCst);
    assert_eq!(sum_at(&client, client.ts()), OPENING * ACCOUNTS as i64);
    assert!(
        done.load(Ordering::Relaxed) > 100,
        "{done:?} transfers succeeded"
    );
    assert_eq!(client.store.regions().iter().count(), 1 + ACCOUNTS / 2);

    let mut commits = BTreeSet::new();
    for account in 0..ACCOUNTS {
        for (changes, (commit_ts, _)) in versions(&client, account).into_iter().enumerate() {
            // Each version was made from the one before it.
            let value = client.get(&key(account), commit_ts).unwrap();
            assert_eq!(
                decode(&value).1,
                changes as u64,
                "account {account} at {commit_ts}"
            );
            commits.insert(commit_ts);
        }
    }
    for commit_ts in commits {
        assert_eq!(sum_at(&client, commit_ts), OPENING * ACCOUNTS as i64);
    }
}

/// Two accounts may be overdrawn only as long as their sum is positive. Each transaction changes
/// one and locks the other: without the lock-only record both could pass the check at once.
#[test]
fn a_lock_only_key_prevents_write_skew() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fixture = Fixture::new();
    let client = client_of(&fixture, &runtime);
    open_accounts(&client);
    fixture.store.split_at_user_keys(&[&key(1)]).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let client = &client;
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(40 + worker);
                for _ in 0..ROUNDS {
                    let change = [0, 1][rng.random_range(0..2)];
                    let amount = rng.random_range(20..40);
                    let _ = transact(client, &mut rng, [0, 1], |[a, b]| {
                        // Everything is taken out, as long as the sum allows it, then put back.
                        let amount = if a.0 + b.0 >= amount { -amount } else { amount };
                        let (own, other) = if change == 0 { (a, 1) } else { (b, 0) };
                        let lock_only = Mutation {
                            op: Op::Lock.into(),
                            key: key(other),
                            ..Default::default()
                        };
                        Some(vec![put(change, own.0 + amount, own.1 + 1), lock_only])
                    });
                }
            });
        }
    });
    client.clock.fetch_add(1000, Ordering::SeqCst);
    for account in 0..2 {
        client.get(&key(account), client.ts());
        for (commit_ts, _) in versions(&client, account) {
            let balance = |a| decode(&client.get(&key(a), commit_ts).unwrap()).0;
            let sum = balance(0) + balance(1);
            assert!(sum >= 0, "{sum} at {commit_ts}");
        }
    }
}
