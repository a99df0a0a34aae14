//! The observed store: regions, transactions, their change events, and every version ever written.
//!
//! The events keep the promises of [`pitr_observer::source`]: scan before the first resolved ts,
//! and no resolved ts at or above the start ts of a transaction that may still commit.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, EncodedKey, EncodedRange, KvRecord, OpKind, Ts};
use pitr_observer::{RegionMeta, SourceEvent, SubId};

/// What a user sees at a ts: key → value.
pub type Image = BTreeMap<Vec<u8>, Bytes>;

/// Values above this size stand in the default column family.
const SHORT_VALUE_MAX: usize = 255;

struct Version {
    start_ts: Ts,
    /// `None` is a delete.
    value: Option<Bytes>,
}

/// A region, and the subscription that observes it.
struct Region {
    meta: RegionMeta,
    sub: Option<SubId>,
}

/// A transaction between prewrite and commit.
struct Transaction {
    start_ts: Ts,
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
}

/// The store.
pub struct Store {
    regions: Vec<Region>,
    versions: BTreeMap<Vec<u8>, BTreeMap<Ts, Version>>,
    open: Vec<Transaction>,
    next_sub: SubId,
    next_region: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// One region over everything, no data.
    pub fn new() -> Self {
        let whole = RegionMeta {
            id: 1,
            conf_ver: 1,
            version: 1,
            range: EncodedRange::ALL,
        };
        Store {
            regions: vec![Region {
                meta: whole,
                sub: None,
            }],
            versions: BTreeMap::new(),
            open: Vec::new(),
            next_sub: 1,
            next_region: 2,
        }
    }

    /// Begins a transaction; keys that another one holds are left out.
    pub fn prewrite(&mut self, start_ts: Ts, mut writes: BTreeMap<Vec<u8>, Option<Bytes>>) {
        writes.retain(|key, _| !self.open.iter().any(|txn| txn.writes.contains_key(key)));
        if !writes.is_empty() {
            self.open.push(Transaction { start_ts, writes });
        }
    }

    /// Transactions that may still commit.
    pub fn open_transactions(&self) -> usize {
        self.open.len()
    }

    /// Commits open transaction `index`; its rows go to the subscriptions of their regions.
    pub fn commit(&mut self, index: usize, commit_ts: Ts) -> Vec<SourceEvent> {
        let Transaction { start_ts, writes } = self.open.remove(index);
        let mut events = Vec::new();
        for (key, value) in writes {
            let version = Version { start_ts, value };
            let rows = rows_of(&key, commit_ts, &version);
            if let Some(sub) = self.region_of(&key).sub {
                events.push(SourceEvent::Batch { sub, records: rows });
            }
            self.versions
                .entry(key)
                .or_default()
                .insert(commit_ts, version);
        }
        events
    }

    /// Undoes open transaction `index`.
    pub fn roll_back(&mut self, index: usize) {
        self.open.remove(index);
    }

    /// The resolved ts of every observed region, `now` being a fresh timestamp.
    pub fn resolve(&self, now: Ts) -> Vec<SourceEvent> {
        let resolved = |region: &Region| {
            let holds = |txn: &&Transaction| {
                let mut keys = txn.writes.keys();
                keys.any(|key| {
                    region
                        .meta
                        .range
                        .contains(EncodedKey::encode(key).as_bytes())
                })
            };
            let held = self.open.iter().filter(holds).map(|txn| txn.start_ts);
            Some(SourceEvent::Resolved {
                sub: region.sub?,
                ts: held.min().unwrap_or(now).min(now),
            })
        };
        self.regions.iter().filter_map(resolved).collect()
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Splits the region of `key` there, if `key` is inside; its subscription ends.
    pub fn split(&mut self, key: &[u8]) -> Vec<SourceEvent> {
        let at = EncodedKey::encode(key).into_bytes();
        let Some(index) = self
            .regions
            .iter()
            .position(|r| r.meta.range.start < at && r.meta.range.contains(&at))
        else {
            return Vec::new();
        };
        let ended = self.unsubscribe(index);
        let left = &mut self.regions[index].meta;
        left.version += 1;
        let mut right = left.clone();
        left.range.end = at.clone();
        right.range.start = at;
        right.id = self.next_region;
        self.next_region += 1;
        let right = Region {
            meta: right,
            sub: None,
        };
        self.regions.insert(index + 1, right);
        ended.into_iter().collect()
    }

    /// Ends the subscription of region `index`, if it has one.
    pub fn unsubscribe(&mut self, index: usize) -> Option<SourceEvent> {
        let sub = self.regions[index].sub.take()?;
        Some(SourceEvent::Ended { sub })
    }

    /// The observer died: nobody observes anything.
    pub fn forget_subscriptions(&mut self) {
        for region in &mut self.regions {
            region.sub = None;
        }
    }

    /// Subscribes every region that is not observed, from what `frontier` says of its range: the
    /// start, then all newer versions, newest first.
    pub fn subscribe_missing(
        &mut self,
        frontier: impl Fn(&EncodedRange) -> Ts,
    ) -> Vec<SourceEvent> {
        let mut events = Vec::new();
        for region in self.regions.iter_mut().filter(|r| r.sub.is_none()) {
            let checkpoint_ts = frontier(&region.meta.range);
            let sub = self.next_sub;
            self.next_sub += 1;
            region.sub = Some(sub);
            events.push(SourceEvent::Started {
                sub,
                region: region.meta.clone(),
                checkpoint_ts,
            });
            for (key, versions) in &self.versions {
                if !region
                    .meta
                    .range
                    .contains(EncodedKey::encode(key).as_bytes())
                {
                    continue;
                }
                let newer = versions.range(checkpoint_ts.next()..).rev();
                for (commit_ts, version) in newer {
                    let records = rows_of(key, *commit_ts, version);
                    events.push(SourceEvent::Batch { sub, records });
                }
            }
        }
        events
    }

    /// What a user reads at `ts`: the model that a restore must equal.
    pub fn image_at(&self, ts: Ts) -> Image {
        let visible = |(key, versions): (&Vec<u8>, &BTreeMap<Ts, Version>)| {
            let newest = versions.range(..=ts).next_back()?.1;
            Some((key.clone(), newest.value.clone()?))
        };
        self.versions.iter().filter_map(visible).collect()
    }

    fn region_of(&self, key: &[u8]) -> &Region {
        let at = EncodedKey::encode(key);
        let found = self
            .regions
            .iter()
            .find(|r| r.meta.range.contains(at.as_bytes()));
        // The regions cover every key: they come from splits of one over everything.
        found.unwrap_or(&self.regions[0])
    }
}

/// The log records of one version.
fn rows_of(key: &[u8], commit_ts: Ts, version: &Version) -> Vec<KvRecord> {
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
    let write = put(Cf::Write, commit_ts, write.to_bytes());
    default.into_iter().chain([write]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_transaction_holds_the_resolved_ts_of_its_region_only() {
        let mut store = Store::new();
        store.split(b"m");
        store.subscribe_missing(|_| Ts::new(1));
        store.prewrite(Ts::new(50), [(b"a".to_vec(), None)].into());
        let resolved: Vec<_> = store
            .resolve(Ts::new(90))
            .iter()
            .map(|event| match event {
                SourceEvent::Resolved { ts, .. } => ts.get(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(resolved, [50, 90]);
    }

    #[test]
    fn the_image_holds_the_newest_version_that_is_no_delete() {
        let mut store = Store::new();
        for (ts, value) in [
            (10, Some(Bytes::from("old"))),
            (20, Some("new".into())),
            (30, None),
        ] {
            store.prewrite(Ts::new(ts), [(b"k".to_vec(), value)].into());
            store.commit(0, Ts::new(ts + 5));
        }
        assert!(store.image_at(Ts::new(14)).is_empty());
        assert_eq!(store.image_at(Ts::new(24))[&b"k"[..]], "old");
        assert_eq!(store.image_at(Ts::new(25))[&b"k"[..]], "new");
        assert!(store.image_at(Ts::new(35)).is_empty());
    }
}
