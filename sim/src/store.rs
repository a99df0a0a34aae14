//! The observed cluster: regions and their leaders, transactions, and every version ever written.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedKey, EncodedRange, KvRecord, OpKind, Ts};
use pitr_observer::{RegionMeta, SubId};

/// Values above this size stand in the default column family.
const SHORT_VALUE_MAX: usize = 255;

/// One committed write; without a value it is a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Start ts of its transaction.
    pub start_ts: Ts,
    /// What was written.
    pub value: Option<Bytes>,
}

/// A region, and the subscription that observes it.
pub struct Region {
    /// Epoch and bounds.
    pub meta: RegionMeta,
    /// Its subscription.
    pub sub: Option<SubId>,
    /// The store that leads it, if one does.
    pub leader: Option<u64>,
}

/// A transaction that holds locks.
struct Txn {
    start_ts: Ts,
    /// A ts that was drawn while it wrote its locks: the commit ts of an async commit.
    prewritten: Ts,
    locked: BTreeMap<Vec<u8>, Option<Bytes>>,
    commit_ts: Option<Ts>,
}

/// Rows of one key, as they are changed together.
pub struct Change {
    /// The user key.
    pub key: Vec<u8>,
    /// Its records.
    pub rows: Vec<KvRecord>,
}

/// A version that will exist at its ts, whatever happens.
pub struct Decided {
    /// The user key.
    pub key: Vec<u8>,
    /// Commit ts.
    pub commit_ts: Ts,
    /// The version.
    pub version: Version,
}

/// The store.
pub struct Store {
    /// In key order; they cover everything.
    pub regions: Vec<Region>,
    versions: BTreeMap<Vec<u8>, BTreeMap<Ts, Version>>,
    begun: Vec<Ts>,
    open: Vec<Txn>,
    next_region: u64,
    /// Long values are told with the lock (hooks in an engine), not with the commit (CDC).
    early_values: bool,
}

impl Store {
    /// One region over everything, no data.
    pub fn new(early_values: bool) -> Self {
        let meta = RegionMeta {
            id: 1,
            conf_ver: 1,
            version: 1,
            range: EncodedRange::ALL,
        };
        Store {
            regions: vec![Region {
                meta,
                sub: None,
                leader: Some(1),
            }],
            versions: BTreeMap::new(),
            begun: Vec::new(),
            open: Vec::new(),
            next_region: 2,
            early_values,
        }
    }

    /// A transaction draws its start ts and does nothing yet.
    pub fn begin(&mut self, start_ts: Ts) {
        self.begun.push(start_ts);
    }

    /// Transactions that hold locks.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The oldest transaction that has begun writes its locks. Keys that another one holds or that
    /// changed since are left out, as conflicts.
    pub fn prewrite(
        &mut self,
        now: Ts,
        mut writes: BTreeMap<Vec<u8>, Option<Bytes>>,
    ) -> Vec<Change> {
        let start_ts = if self.begun.is_empty() {
            return Vec::new();
        } else {
            self.begun.remove(0)
        };
        writes.retain(|key, _| {
            let newest = self.versions.get(key).and_then(|v| v.last_key_value());
            let locked = self.open.iter().any(|txn| txn.locked.contains_key(key));
            !locked && newest.is_none_or(|(ts, _)| *ts < start_ts)
        });
        let changes = match self.early_values {
            true => early_values(start_ts, &writes),
            false => Vec::new(),
        };
        if !writes.is_empty() {
            self.open.push(Txn {
                start_ts,
                prewritten: now,
                locked: writes,
                commit_ts: None,
            });
        }
        changes
    }

    /// Commits up to `keys` keys of an open transaction. With the first one its commit is decided
    /// for all: then the versions of all its keys are in the first list.
    pub fn commit(
        &mut self,
        index: usize,
        now: Ts,
        asynchronous: bool,
        keys: usize,
    ) -> (Vec<Decided>, Vec<Change>) {
        let txn = &mut self.open[index];
        let start_ts = txn.start_ts;
        let mut decided = Vec::new();
        let commit_ts = match txn.commit_ts {
            Some(ts) => ts,
            None => {
                let ts = if asynchronous { txn.prewritten } else { now };
                txn.commit_ts = Some(ts);
                decided.extend(txn.locked.iter().map(|(key, value)| Decided {
                    key: key.clone(),
                    commit_ts: ts,
                    version: Version {
                        start_ts,
                        value: value.clone(),
                    },
                }));
                ts
            }
        };
        let mut changes = Vec::new();
        for _ in 0..keys {
            let Some((key, value)) = txn.locked.pop_first() else {
                break;
            };
            let version = Version { start_ts, value };
            let rows = rows_of(&key, commit_ts, &version, !self.early_values);
            let versions = self.versions.entry(key.clone()).or_default();
            versions.insert(commit_ts, version);
            changes.push(Change { key, rows });
        }
        if txn.locked.is_empty() {
            self.open.remove(index);
        }
        (decided, changes)
    }

    /// Undoes an open transaction that is not decided.
    pub fn roll_back(&mut self, index: usize) -> Vec<Change> {
        if self.open[index].commit_ts.is_some() {
            return Vec::new();
        }
        let txn = self.open.remove(index);
        if !self.early_values {
            return Vec::new();
        }
        let undo = |(key, value): (Vec<u8>, Option<Bytes>)| {
            let encoded = EncodedKey::encode(&key).at(txn.start_ts).into_bytes();
            let mark = WriteRecord {
                kind: WriteType::Rollback,
                ..WriteRecord::put(txn.start_ts, None)
            };
            let row = |cf, op, value| KvRecord {
                cf,
                op,
                key: encoded.clone(),
                value,
            };
            let long = value.is_some_and(|value| value.len() > SHORT_VALUE_MAX);
            let removed = long.then(|| row(Cf::Default, OpKind::Delete, Bytes::new()));
            let mark = row(Cf::Write, OpKind::Put, mark.to_bytes());
            let rows = removed.into_iter().chain([mark]).collect();
            Change { key, rows }
        };
        txn.locked.into_iter().map(undo).collect()
    }

    /// The resolved ts of a region, `now` being a fresh timestamp.
    pub fn resolved(&self, range: &EncodedRange, now: Ts) -> Ts {
        let holds = |txn: &&Txn| txn.locked.keys().any(|key| contains(range, key));
        let held = self.open.iter().filter(holds).map(|txn| txn.start_ts);
        held.min().unwrap_or(now).min(now)
    }

    /// What a scan of `range` finds above `from`: committed versions, newest first, and the values
    /// of locks.
    pub fn scan(&self, range: &EncodedRange, from: Ts) -> Vec<Vec<KvRecord>> {
        let mut found = Vec::new();
        for (key, versions) in &self.versions {
            if contains(range, key) {
                let newer = versions.range(from.next()..).rev();
                found.extend(newer.map(|(ts, version)| rows_of(key, *ts, version, true)));
            }
        }
        if self.early_values {
            for txn in &self.open {
                let changes = early_values(txn.start_ts, &txn.locked).into_iter();
                let inside = changes.filter(|change| contains(range, &change.key));
                found.extend(inside.map(|change| change.rows));
            }
        }
        found
    }

    /// The subscription that sees changes of `key`.
    pub fn sub_of(&self, key: &[u8]) -> Option<SubId> {
        let of = |region: &&Region| contains(&region.meta.range, key);
        self.regions.iter().find(of)?.sub
    }

    /// Splits the region of `key` there; the subscription that ended.
    pub fn split(&mut self, key: &[u8]) -> Option<SubId> {
        let at = EncodedKey::encode(key).into_bytes();
        let inside = |r: &Region| r.meta.range.start < at && r.meta.range.contains(&at);
        let index = self.regions.iter().position(inside)?;
        let left = &mut self.regions[index];
        let ended = left.sub.take();
        left.meta.version += 1;
        let mut meta = left.meta.clone();
        left.meta.range.end = at.clone();
        meta.range.start = at;
        meta.id = self.next_region;
        self.next_region += 1;
        let leader = left.leader;
        let right = Region {
            meta,
            sub: None,
            leader,
        };
        self.regions.insert(index + 1, right);
        ended
    }

    /// Merges a region into its left neighbour; the subscriptions that ended.
    pub fn merge(&mut self, index: usize) -> Vec<SubId> {
        if index == 0 || index >= self.regions.len() {
            return Vec::new();
        }
        let right = self.regions.remove(index);
        let left = &mut self.regions[index - 1];
        let ended = [left.sub.take(), right.sub];
        left.meta.version = left.meta.version.max(right.meta.version) + 1;
        left.meta.range.end = right.meta.range.end;
        if left.leader != right.leader {
            left.leader = None;
        }
        ended.into_iter().flatten().collect()
    }
}

/// Whether the user key lies in the encoded range.
pub fn contains(range: &EncodedRange, key: &[u8]) -> bool {
    range.contains(EncodedKey::encode(key).as_bytes())
}

fn early_values(start_ts: Ts, writes: &BTreeMap<Vec<u8>, Option<Bytes>>) -> Vec<Change> {
    let long = writes.iter().filter_map(|(key, value)| {
        let value = value.as_ref().filter(|v| v.len() > SHORT_VALUE_MAX)?;
        let row = KvRecord {
            cf: Cf::Default,
            op: OpKind::Put,
            key: EncodedKey::encode(key).at(start_ts).into_bytes(),
            value: value.clone(),
        };
        Some(Change {
            key: key.clone(),
            rows: vec![row],
        })
    });
    long.collect()
}

/// The log records of one version, the value of the default column family only if asked for.
pub fn rows_of(key: &[u8], commit_ts: Ts, version: &Version, with_value: bool) -> Vec<KvRecord> {
    let encoded = EncodedKey::encode(key);
    let put = |cf, ts, value| KvRecord {
        cf,
        op: OpKind::Put,
        key: encoded.at(ts).into_bytes(),
        value,
    };
    let start_ts = version.start_ts;
    let (write, long) = match &version.value {
        None => (WriteRecord::delete(start_ts), None),
        Some(value) if value.len() <= SHORT_VALUE_MAX => {
            (WriteRecord::put(start_ts, Some(value.clone())), None)
        }
        Some(value) => (WriteRecord::put(start_ts, None), Some(value.clone())),
    };
    let default = long.map(|value| put(Cf::Default, start_ts, value));
    let default = default.filter(|_| with_value);
    let write = put(Cf::Write, commit_ts, write.to_bytes());
    default.into_iter().chain([write]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(key: &[u8]) -> BTreeMap<Vec<u8>, Option<Bytes>> {
        [(key.to_vec(), Some(Bytes::from(vec![1; 300])))].into()
    }

    #[test]
    fn an_open_transaction_holds_the_resolved_ts_of_its_region_only() {
        let mut store = Store::new(false);
        store.split(b"m");
        store.begin(Ts::new(50));
        store.prewrite(Ts::new(60), writes(b"a"));
        let of = |store: &Store, index: usize| {
            let range = &store.regions[index].meta.range;
            store.resolved(range, Ts::new(90)).get()
        };
        assert_eq!((of(&store, 0), of(&store, 1)), (50, 90));
        let (decided, changes) = store.commit(0, Ts::new(70), false, 1);
        assert_eq!((decided.len(), changes.len()), (1, 1));
        assert_eq!(of(&store, 0), 90);
    }

    #[test]
    fn a_scan_finds_what_is_newer_and_the_values_of_locks_where_they_are_told_early() {
        for (early, rows) in [(false, 2), (true, 3)] {
            let mut store = Store::new(early);
            for (start, key) in [(10, b"a"), (20, b"b"), (30, b"c")] {
                store.begin(Ts::new(start));
                store.prewrite(Ts::new(start + 1), writes(key));
                if start < 30 {
                    store.commit(0, Ts::new(start + 5), false, 1);
                }
            }
            let found = store.scan(&EncodedRange::ALL, Ts::new(15));
            assert_eq!(found.concat().len(), rows);
        }
    }

    #[test]
    fn a_merge_takes_the_larger_version_and_the_bounds_of_both() {
        let mut store = Store::new(false);
        store.split(b"g");
        store.split(b"m");
        store.merge(1);
        assert_eq!(store.regions.len(), 2);
        assert_eq!(store.regions[0].meta.version, 4);
        assert_eq!(store.regions[1].meta.range.end, "");
        assert!(store.merge(0).is_empty());
    }
}
