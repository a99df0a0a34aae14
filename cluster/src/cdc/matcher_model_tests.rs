//! The matcher against a made-up store: transactions lock, commit and roll back a few keys; their
//! rows come live, the initial scan is a snapshot taken somewhere in between, and the two
//! interleave as they may (order of events in one subscription, rules 1 to 9 of matching). What
//! comes out must be exactly the versions that were committed behind the checkpoint, in the form
//! that log backup stores them.

use std::collections::BTreeMap;

use pitr_budget::MemoryBudget;
use pitr_budget::spill::SpillDir;
use pitr_proto::cdcpb::event;
use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::*;
use super::*;

/// Column family, versioned key and value of a record.
type Stored = (pitr_format::Cf, Vec<u8>, Vec<u8>);

const KEYS: usize = 5;
const CHECKPOINT: u64 = 20;

fn name(key: usize) -> String {
    format!("key-{key}")
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Put(Vec<u8>),
    Delete,
}

#[derive(Clone, Debug)]
struct Lock {
    start: u64,
    change: Change,
}

#[derive(Clone, Debug)]
struct Version {
    start: u64,
    commit: u64,
    change: Change,
    txn_source: u64,
}

/// What happens to a key next.
#[derive(Clone, Debug)]
enum Step {
    Lock(usize, Change),
    Commit(usize, u64),
    Rollback(usize),
    /// The rollback that leaves no row: the lock is gone without a trace.
    SilentRollback(usize),
    OnePhase(usize, Change),
    /// A heartbeat writes the lock again; with or without the value.
    Touch(usize),
}

fn any_change() -> impl Strategy<Value = Change> {
    // Never empty: whether an empty value is one or a missing one is a matter of its own.
    let len = prop_oneof![1..4usize, 250..260usize, 1000..4000usize];
    prop_oneof![
        1 => Just(Change::Delete),
        5 => (len, any::<u8>()).prop_map(|(len, byte)| Change::Put(vec![byte; len])),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    prop_oneof![
        6 => (key.clone(), any_change()).prop_map(|(key, change)| Step::Lock(key, change)),
        6 => (key.clone(), 0..2u64).prop_map(|(key, source)| Step::Commit(key, source)),
        2 => key.clone().prop_map(Step::Rollback),
        1 => key.clone().prop_map(Step::SilentRollback),
        2 => (key.clone(), any_change()).prop_map(|(key, change)| Step::OnePhase(key, change)),
        2 => key.prop_map(Step::Touch),
    ]
}

/// The store: one lock at a time for each key, and all its versions.
#[derive(Default)]
struct Store {
    ts: u64,
    /// Locks above it were seen live.
    seen_above: u64,
    locks: BTreeMap<usize, Lock>,
    versions: Vec<(usize, Version)>,
}

impl Store {
    fn next_ts(&mut self) -> u64 {
        self.ts += 7;
        self.ts
    }

    /// Does a step and returns the row that a subscriber sees of it.
    fn step(&mut self, step: &Step) -> Option<event::Row> {
        match step {
            Step::Lock(key, _) if self.locks.contains_key(key) => None,
            Step::Lock(key, change) => {
                let start = self.next_ts();
                let change = change.clone();
                self.locks.insert(*key, Lock { start, change });
                Some(prewrite_row(*key, &self.locks[key]))
            }
            Step::Commit(key, txn_source) => {
                let lock = self.locks.remove(key)?;
                let version = Version {
                    start: lock.start,
                    commit: self.next_ts(),
                    change: lock.change,
                    txn_source: *txn_source,
                };
                let row = commit_row(*key, &version);
                self.versions.push((*key, version));
                Some(row)
            }
            Step::Rollback(key) => {
                let lock = self.locks.remove(key)?;
                Some(rollback(&name(*key), lock.start))
            }
            Step::SilentRollback(key) => {
                self.locks.remove(key);
                None
            }
            Step::OnePhase(key, _) if self.locks.contains_key(key) => None,
            Step::OnePhase(key, change) => {
                let (start, commit) = (self.next_ts(), self.next_ts());
                let version = Version {
                    start,
                    commit,
                    change: change.clone(),
                    txn_source: 0,
                };
                let row = committed_row(*key, &version);
                self.versions.push((*key, version));
                Some(row)
            }
            Step::Touch(key) => {
                let lock = self.locks.get(key)?;
                let mut row = prewrite_row(*key, lock);
                if row.value.len() <= 255 {
                    return Some(row);
                }
                // The value is not in the lock, so old servers send none. (Before the end of the
                // scan nothing can be told from such a row alone.)
                row.value = Default::default();
                (lock.start > self.seen_above).then_some(row)
            }
        }
    }

    /// The rows of a scan: per key the lock, then the versions from the newest on.
    fn scan(&self) -> Vec<event::Row> {
        let mut rows = Vec::new();
        for key in 0..KEYS {
            rows.extend(self.locks.get(&key).map(|lock| prewrite_row(key, lock)));
            let of_key = self.versions.iter().rev().filter(|(k, _)| *k == key);
            let newer = of_key.filter(|(_, version)| version.commit > CHECKPOINT);
            rows.extend(newer.map(|(_, version)| committed_row(key, version)));
        }
        rows
    }
}

fn op_of(change: &Change) -> (OpType, &[u8]) {
    match change {
        Change::Put(value) => (OpType::Put, value),
        Change::Delete => (OpType::Delete, b""),
    }
}

fn prewrite_row(key: usize, lock: &Lock) -> event::Row {
    let (op, value) = op_of(&lock.change);
    row(LogType::Prewrite, op, &name(key), lock.start, 0, value)
}

fn commit_row(key: usize, version: &Version) -> event::Row {
    let (op, value) = op_of(&version.change);
    let short = if value.len() > 255 { b"" } else { value };
    let (start, commit) = (version.start, version.commit);
    event::Row {
        txn_source: version.txn_source,
        ..row(LogType::Commit, op, &name(key), start, commit, short)
    }
}

fn committed_row(key: usize, version: &Version) -> event::Row {
    let (op, value) = op_of(&version.change);
    let (start, commit) = (version.start, version.commit);
    event::Row {
        txn_source: version.txn_source,
        ..row(LogType::Committed, op, &name(key), start, commit, value)
    }
}

/// The bytes that log backup has of a version, written down here a second time from the layout.
fn stored(key: usize, version: &Version) -> Vec<Stored> {
    let at = |ts: u64| {
        let mut out = Vec::new();
        for group in name(key).as_bytes().chunks(8) {
            out.extend_from_slice(group);
            out.resize(out.len() + 8 - group.len(), 0);
            out.push(0xFF - (8 - group.len() as u8));
        }
        out.extend_from_slice(&(!ts).to_be_bytes());
        out
    };
    let mut value = vec![if version.change == Change::Delete {
        b'D'
    } else {
        b'P'
    }];
    let mut start = version.start;
    while start >= 0x80 {
        value.push(start as u8 | 0x80);
        start >>= 7;
    }
    value.push(start as u8);
    let mut records = Vec::new();
    match &version.change {
        Change::Put(long) if long.len() > 255 => {
            records.push((pitr_format::Cf::Default, at(version.start), long.clone()));
        }
        Change::Put(short) => {
            value.extend_from_slice(&[b'v', short.len() as u8]);
            value.extend_from_slice(short);
        }
        Change::Delete => {}
    }
    if version.txn_source != 0 {
        value.extend_from_slice(&[b'S', version.txn_source as u8]);
    }
    records.push((pitr_format::Cf::Write, at(version.commit), value));
    records
}

/// Cuts live rows and scan rows into events and shuffles the two together, each in its own order.
fn interleave(
    live: Vec<event::Row>,
    scan: Vec<event::Row>,
    choices: &[(bool, usize)],
) -> Vec<Vec<event::Row>> {
    let (mut live, mut scan) = (live.into_iter().peekable(), scan.into_iter().peekable());
    let mut events = Vec::new();
    let mut choices = choices.iter().cycle();
    while live.peek().is_some() || scan.peek().is_some() {
        let (from_live, count) = *choices.next().unwrap();
        let take_live = scan.peek().is_none() || (from_live && live.peek().is_some());
        let event: Vec<_> = match take_live {
            // Rows of one command have different keys; one row an event is always right.
            true => live.by_ref().take(1).collect(),
            false => scan.by_ref().take(count).collect(),
        };
        events.push(event);
    }
    events
}

struct History {
    events: Vec<Vec<event::Row>>,
    store: Store,
}

/// Plays the steps; the subscription is observed at one of them, its snapshot taken at a later one.
fn play(steps: &[Step], from: Index, snapshot: Index, choices: &[(bool, usize)]) -> History {
    let from = from.index(steps.len());
    let snapshot = from + snapshot.index(steps.len() - from);
    let mut store = Store::default();
    let (mut before, mut after, mut scan) = (Vec::new(), Vec::new(), Vec::new());
    for (at, step) in steps.iter().enumerate() {
        if at == from {
            store.seen_above = store.ts;
        }
        if at == snapshot {
            scan = store.scan();
        }
        let seen = store.step(step);
        if at >= from {
            let live = if at < snapshot {
                &mut before
            } else {
                &mut after
            };
            live.extend(seen);
        }
    }
    // What was observed before the snapshot comes before the first row of the scan.
    let mut events: Vec<_> = before.into_iter().map(|row| vec![row]).collect();
    scan.push(initialized());
    events.extend(interleave(after, scan, choices));
    History { events, store }
}

/// All records of the events, and whether a subscriber must ask again.
fn outcome(m: &mut Harness, events: Vec<Vec<event::Row>>) -> Result<Vec<Stored>, MatchError> {
    let mut found = Vec::new();
    for rows in events {
        let records = m.apply(rows)?;
        let plain = records.into_iter();
        found.extend(plain.map(|r| (r.cf, r.key.to_vec(), r.value.to_vec())));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn any_choices() -> impl Strategy<Value = Vec<(bool, usize)>> {
    proptest::collection::vec((any::<bool>(), 1..5usize), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_version_committed_behind_the_checkpoint_comes_out_and_nothing_else(
        steps in proptest::collection::vec(any_step(), 1..80),
        (from, snapshot) in any::<(Index, Index)>(),
        choices in any_choices(),
    ) {
        let history = play(&steps, from, snapshot, &choices);
        let mut m = fresh();
        let found = outcome(&mut m, history.events).unwrap();
        let of = |(key, version): &(usize, Version)| stored(*key, version);
        // A version at or below the checkpoint may be repeated if it was still seen live.
        let mut all: Vec<_> = history.store.versions.iter().flat_map(of).collect();
        let newer = history.store.versions.iter().filter(|(_, v)| v.commit > CHECKPOINT);
        all.sort();
        for record in newer.flat_map(of) {
            prop_assert!(found.binary_search(&record).is_ok(), "{record:?} is missing");
        }
        for record in &found {
            prop_assert!(all.binary_search(record).is_ok(), "{record:?} was never committed");
        }
    }

    #[test]
    fn what_is_kept_is_at_most_the_locks_and_what_went_without_a_trace(
        steps in proptest::collection::vec(any_step(), 1..80),
        (from, snapshot) in any::<(Index, Index)>(),
        choices in any_choices(),
    ) {
        let silent = steps.iter().any(|step| matches!(step, Step::SilentRollback(_)));
        let history = play(&steps, from, snapshot, &choices);
        let mut m = fresh();
        outcome(&mut m, history.events).unwrap();
        if history.store.locks.is_empty() && !silent {
            prop_assert_eq!(m.memory(), 0);
        }
        // At the end every key is locked once more: what was dead of it goes.
        for key in 0..KEYS {
            let lock = Lock { start: 1_000_000, change: Change::Delete };
            m.apply(vec![prewrite_row(key, &lock)]).unwrap();
            m.apply(vec![rollback(&name(key), lock.start)]).unwrap();
        }
        prop_assert_eq!(m.memory(), 0);
    }

    #[test]
    fn neither_the_size_of_events_nor_spilling_nor_repetition_changes_what_comes_out(
        steps in proptest::collection::vec(any_step(), 1..60),
        (from, snapshot) in any::<(Index, Index)>(),
        choices in any_choices(),
        enough in prop_oneof![Just(usize::MAX), 1..5000usize],
        twice in proptest::collection::vec(any::<Index>(), 0..10),
    ) {
        let history = play(&steps, from, snapshot, &choices);
        let expected = outcome(&mut fresh(), history.events.clone()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let spill = SpillDir::open(dir.path(), 1 << 30).unwrap();
        let pool = Pool::new(MemoryBudget::new(1 << 30), Some(spill), 24 << 10);
        let mut m = Harness::new(pool, &[EncodedRange::ALL]);
        m.enough = enough;
        let mut events = history.events;
        // Versions that were committed may be told again at any time.
        for at in twice {
            let at = at.index(events.len());
            let again = |row: &&event::Row| row.r#type == LogType::Committed as i32;
            let again: Vec<_> = events[at].iter().filter(again).cloned().collect();
            events.push(again);
        }
        prop_assert_eq!(outcome(&mut m, events).unwrap(), expected);
    }

    #[test]
    fn a_live_row_that_is_lost_is_an_error_or_a_missing_version_of_that_key_alone(
        steps in proptest::collection::vec(any_step(), 1..60),
        lost in any::<Index>(),
    ) {
        let mut store = Store::default();
        let rows: Vec<_> = steps.iter().filter_map(|step| store.step(step)).collect();
        prop_assume!(!rows.is_empty());
        let lost = lost.index(rows.len());
        let key = rows[lost].key.clone();
        let kind = rows[lost].r#type;
        let kept = rows.iter().enumerate().filter(|(at, _)| *at != lost);
        let mut events = vec![vec![initialized()]];
        events.extend(kept.map(|(_, row)| vec![row.clone()]));
        match outcome(&mut fresh(), events) {
            Ok(found) => {
                let of = |(key, version): &(usize, Version)| stored(*key, version);
                let others = store.versions.iter().filter(|(k, _)| name(*k).as_bytes() != key);
                for record in others.flat_map(of) {
                    prop_assert!(found.binary_search(&record).is_ok(), "{record:?} is missing");
                }
            }
            Err(error) => {
                prop_assert_eq!(kind, LogType::Prewrite as i32, "{}", error);
                let missing = matches!(error, MatchError::MissingPrewrite { .. });
                prop_assert!(missing, "{error}");
                prop_assert_eq!(error.class(), Class::Refresh, "the range is read again");
            }
        }
    }
}
