//! Which resolved ts goes to whom. Pure.
//!
//! A subscription's resolved ts is the tick's timestamp, lowered to the smallest lock of its
//! range, and never goes back. Many regions share one message: slowest first, in groups of 8, 32,
//! 128 …, each group at its slowest member. Source: tikv/tikv `components/cdc/src/endpoint.rs`.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::{EncodedRange, Ts};

const FIRST_GROUP: usize = 8;
const GROUP_GROWTH: usize = 4;

/// The Put and Delete locks of one region: encoded key to start ts.
#[derive(Clone, Debug, Default)]
pub struct LockTable {
    locks: BTreeMap<Bytes, Ts>,
}

impl LockTable {
    /// A lock was written.
    pub fn track(&mut self, key: Bytes, start_ts: Ts) {
        self.locks.insert(key, start_ts);
    }

    /// The transaction that began at `start_ts` has ended at a key.
    pub fn untrack(&mut self, key: &[u8], start_ts: Ts) {
        if self.locks.get(key) == Some(&start_ts) {
            self.locks.remove(key);
        }
    }

    /// The smallest start ts in `range`.
    pub fn smallest(&self, range: &EncodedRange) -> Option<Ts> {
        self.locks
            .range(range.start.clone()..)
            .take_while(|(key, _)| range.end.is_empty() || **key < range.end)
            .map(|(_, ts)| *ts)
            .min()
    }
}

/// The resolved ts of a subscription after a tick at `now`.
pub fn advance(previous: Ts, now: Ts, locks: &LockTable, range: &EncodedRange) -> Ts {
    let bound = locks.smallest(range).map_or(now, |lock| lock.min(now));
    bound.max(previous)
}

/// Splits regions into the groups that share a message.
pub fn groups(mut regions: Vec<(Ts, u64)>) -> Vec<(Ts, Vec<u64>)> {
    regions.sort_unstable();
    let mut out = Vec::new();
    let mut rest = &regions[..];
    let mut size = FIRST_GROUP;
    while let Some((slowest, _)) = rest.first() {
        let (group, behind) = rest.split_at(size.min(rest.len()));
        out.push((*slowest, group.iter().map(|(_, region)| *region).collect()));
        rest = behind;
        size = size.saturating_mul(GROUP_GROWTH);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(raw: &'static str) -> Bytes {
        Bytes::from(raw)
    }

    #[test]
    fn a_lock_holds_only_the_ranges_that_contain_it() {
        let mut locks = LockTable::default();
        locks.track(key("c"), Ts::new(50));
        locks.track(key("a"), Ts::new(70));
        let now = Ts::new(100);
        let at = |range| advance(Ts::ZERO, now, &locks, &range).get();
        assert_eq!(at(EncodedRange::ALL), 50);
        assert_eq!(at(EncodedRange::new("a", "c")), 70);
        assert_eq!(at(EncodedRange::new("c", "")), 50);
        assert_eq!(at(EncodedRange::new("d", "e")), 100);
        let mut locks = locks;
        locks.untrack(b"c", Ts::new(49));
        assert_eq!(advance(Ts::ZERO, now, &locks, &EncodedRange::ALL).get(), 50);
        locks.untrack(b"c", Ts::new(50));
        assert_eq!(advance(Ts::ZERO, now, &locks, &EncodedRange::ALL).get(), 70);
    }

    #[test]
    fn resolved_ts_never_goes_back() {
        let mut locks = LockTable::default();
        let first = advance(Ts::ZERO, Ts::new(100), &locks, &EncodedRange::ALL);
        // A transaction that began before the tick and locks after it commits above it.
        locks.track(key("a"), Ts::new(60));
        let second = advance(first, Ts::new(200), &locks, &EncodedRange::ALL);
        assert_eq!((first.get(), second.get()), (100, 100));
    }

    #[test]
    fn regions_share_messages_slowest_first() {
        let regions: Vec<_> = (0..60).map(|n| (Ts::new(1000 - n), n)).collect();
        let groups = groups(regions);
        let sizes: Vec<_> = groups.iter().map(|(_, regions)| regions.len()).collect();
        assert_eq!(sizes, [8, 32, 20]);
        assert_eq!(groups[0].0.get(), 941);
        assert_eq!(groups[1].0.get(), 949);
        assert_eq!(groups[0].1[0], 59);
    }
}
