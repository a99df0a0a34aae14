//! What holds a checkpoint: the regions that are tailed, why others are not, and from both the one
//! line that an operator wants to read. Written by the reader of the change stream, read by the
//! session; nothing is decided by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_cluster::regions::Holder;
use pitr_format::{EncodedRange, Ts};
use tokio::time::Instant;

use crate::admin::{HeldBy, HoldingLock};
use crate::ranges;
use crate::time;

/// Ends that are remembered.
const ENDS: usize = 256;

/// Regions of one session.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Subscription → what it covers.
    tailed: BTreeMap<u64, Tailed>,
    /// Newest last.
    ended: VecDeque<Ended>,
    /// Store → subscription → what holds its resolved ts back.
    held: BTreeMap<u64, BTreeMap<u64, Holder>>,
    located: Option<Located>,
}

#[derive(Debug)]
struct Tailed {
    store_id: u64,
    region_id: u64,
    range: EncodedRange,
}

#[derive(Debug)]
struct Ended {
    was: Tailed,
    why: String,
}

/// A region that holds the checkpoint and is not tailed here, as PD knows it.
#[derive(Debug)]
pub(super) struct Located {
    pub range: EncodedRange,
    pub region_id: u64,
    /// Store of its leader; 0 while PD knows none.
    pub store_id: u64,
    /// Where the sidecar of that store is, if it has one.
    pub sidecar: Option<String>,
}

/// What is known of the region at a key.
#[derive(Default)]
struct Found {
    store_id: Option<u64>,
    region_id: Option<u64>,
    lock: Option<HoldingLock>,
    why: String,
}

impl Regions {
    /// A region of a store is being tailed.
    pub fn started(&self, sub: u64, store_id: u64, region_id: u64, range: EncodedRange) {
        let tailed = Tailed {
            store_id,
            region_id,
            range,
        };
        self.0.lock().tailed.insert(sub, tailed);
    }

    /// A subscription ended.
    pub fn ended(&self, sub: u64, reason: String) {
        self.0.lock().end(sub, reason);
    }

    /// A store is tailed no more; its subscriptions that were alive.
    pub fn forget(&self, store_id: u64, why: &str) -> Vec<u64> {
        let mut known = self.0.lock();
        known.held.remove(&store_id);
        let of_store = known
            .tailed
            .iter()
            .filter(|(_, one)| one.store_id == store_id);
        let subs: Vec<u64> = of_store.map(|(sub, _)| *sub).collect();
        for sub in &subs {
            known.end(*sub, why.to_owned());
        }
        subs
    }

    /// What holds back which subscriptions of a store.
    pub fn held(&self, store_id: u64, holders: BTreeMap<u64, Holder>) {
        let mut known = self.0.lock();
        if let Some(new) = holders.iter().find(|(sub, holder)| {
            let old = known.held.get(&store_id).and_then(|old| old.get(sub));
            let beside = matches!(holder, Holder::Neighbour(_));
            !beside && old.is_none_or(|old| differs(old, holder))
        }) {
            let region = known.tailed.get(new.0).map(|tailed| tailed.region_id);
            tracing::warn!(store = store_id, region, "the checkpoint waits: {}", new.1);
        }
        known.held.insert(store_id, holders);
    }

    /// Who leads what holds the checkpoint.
    pub fn locate(&self, located: Located) {
        self.0.lock().located = Some(located);
    }

    /// Whether the region at a key is tailed here.
    pub fn is_tailed(&self, key: &[u8]) -> bool {
        let known = self.0.lock();
        known.tailed.values().any(|one| one.range.contains(key))
    }

    /// What holds the checkpoint of a task, or nothing while the lag is what flushes make of it.
    pub fn held_by(
        &self,
        lowest: (EncodedRange, Ts),
        now: Ts,
        usual: Duration,
        failing: Option<&str>,
    ) -> Option<HeldBy> {
        let (range, ts) = lowest;
        if time::lag(now, ts) <= usual {
            return None;
        }
        let found = self.0.lock().at(&range);
        Some(HeldBy {
            store_id: found.store_id,
            region_id: found.region_id,
            range: ranges::show_encoded(&range),
            ts: time::show(ts),
            reason: failing.map_or(found.why, str::to_owned),
            lock: found.lock,
        })
    }
}

/// Whether an operator would want to read it again.
fn differs(old: &Holder, new: &Holder) -> bool {
    match (old, new) {
        (Holder::Lock(old), Holder::Lock(new)) => old.start_ts != new.start_ts,
        (Holder::Unknown(_), Holder::Unknown(_)) => false,
        (old, new) => old != new,
    }
}

impl Known {
    fn end(&mut self, sub: u64, why: String) {
        if let Some(was) = self.tailed.remove(&sub) {
            if self.ended.len() == ENDS {
                self.ended.pop_front();
            }
            self.ended.push_back(Ended { was, why });
        }
    }

    /// The region of a range that stands at one ts and why it holds the checkpoint, as far as known:
    /// one of which a reason is known, else the first.
    fn at(&self, range: &EncodedRange) -> Found {
        let key = &range.start[..];
        let reason = |(sub, tailed): &(&u64, &Tailed)| self.holder(**sub, tailed).is_some();
        let inside = |(_, tailed): &(&u64, &Tailed)| tailed.range.intersect(range).is_some();
        let mut tailed = self.tailed.iter();
        let known = tailed.find(|one| reason(one) && inside(one));
        let first = || self.tailed.iter().find(|(_, one)| one.range.contains(key));
        if let Some((sub, tailed)) = known.or_else(first) {
            return self.tailed_as(*sub, tailed);
        }
        if let Some(located) = self.located.as_ref().filter(|at| at.range.contains(key)) {
            return Found::elsewhere(located);
        }
        let mut newest_first = self.ended.iter().rev();
        match newest_first.find(|ended| ended.was.range.contains(key)) {
            Some(ended) => Found {
                store_id: Some(ended.was.store_id),
                region_id: Some(ended.was.region_id),
                why: format!("it is not tailed: {}", ended.why),
                ..Found::default()
            },
            None => Found {
                why: "no region was tailed there yet: PD was not asked, or its scan waits"
                    .to_owned(),
                ..Found::default()
            },
        }
    }
}

impl Known {
    fn holder(&self, sub: u64, tailed: &Tailed) -> Option<&Holder> {
        self.held.get(&tailed.store_id)?.get(&sub)
    }

    /// A region that is tailed; where it only stands beside another one, that other.
    fn tailed_as(&self, sub: u64, tailed: &Tailed) -> Found {
        let holder = self.holder(sub, tailed);
        if let Some(Holder::Neighbour(other)) = holder
            && let Some(culprit) = self.tailed.get(&other.0)
        {
            return Found::tailed(culprit, self.holder(other.0, culprit));
        }
        Found::tailed(tailed, holder)
    }
}

impl Found {
    fn tailed(region: &Tailed, holder: Option<&Holder>) -> Found {
        let lock = match holder {
            Some(Holder::Lock(lock)) => Some(HoldingLock {
                key: hex::encode_upper(&lock.key),
                primary: hex::encode_upper(&lock.primary),
                start_ts: lock.start_ts.get(),
                age_seconds: lock.age.as_secs(),
            }),
            _ => None,
        };
        let unknown = || {
            "its resolved ts does not move: a transaction that is not finished holds a lock, or its \
             first scan still runs"
                .to_owned()
        };
        Found {
            store_id: Some(region.store_id),
            region_id: Some(region.region_id),
            lock,
            why: holder.map_or_else(unknown, ToString::to_string),
        }
    }

    fn elsewhere(located: &Located) -> Found {
        let why = match (located.store_id, &located.sidecar) {
            (0, _) => "PD knows no leader of it".to_owned(),
            (store, None) => format!("store {store} leads it and has no sidecar"),
            (store, Some(at)) => {
                format!("store {store} leads it, whose sidecar at {at} has not got further")
            }
        };
        Found {
            store_id: Some(located.store_id).filter(|id| *id != 0),
            region_id: Some(located.region_id),
            why,
            ..Found::default()
        }
    }
}

/// Records a second, measured over some seconds.
pub(super) struct Rate {
    since: Instant,
    events: u64,
}

impl Rate {
    /// How often the rate is told.
    const EVERY: Duration = Duration::from_secs(2);

    /// Begins to measure with the next call of [`Rate::measure`].
    pub fn new(now: Instant) -> Self {
        Rate {
            since: now,
            events: u64::MAX,
        }
    }

    /// The rate, when it is time for a new figure. `events` only grows.
    pub fn measure(&mut self, now: Instant, events: u64) -> Option<f64> {
        let passed = now.saturating_duration_since(self.since);
        if passed < Self::EVERY {
            return None;
        }
        let new = events.saturating_sub(self.events);
        (self.since, self.events) = (now, events);
        Some(new as f64 / passed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_cluster::cdc::SubId;
    use pitr_cluster::kv::HeldLock;

    use super::*;

    fn range(start: &'static str, end: &'static str) -> EncodedRange {
        EncodedRange::new(
            Bytes::from_static(start.as_bytes()),
            Bytes::from_static(end.as_bytes()),
        )
    }

    fn held(regions: &Regions, failing: Option<&str>) -> Option<HeldBy> {
        let lowest = (range("b", "c"), Ts::compose(1_000, 0));
        regions.held_by(
            lowest,
            Ts::compose(9_000, 0),
            Duration::from_secs(5),
            failing,
        )
    }

    #[test]
    fn a_lag_that_a_flush_explains_is_held_by_nothing() {
        let regions = Regions::default();
        let lowest = (range("b", "c"), Ts::compose(5_000, 0));
        let now = Ts::compose(9_000, 0);
        assert_eq!(
            regions.held_by(lowest, now, Duration::from_secs(5), Some("x")),
            None
        );
        assert!(held(&regions, None).is_some());
    }

    #[test]
    fn the_region_and_the_reason_are_named() {
        let regions = Regions::default();
        let nobody = held(&regions, None).unwrap();
        assert_eq!(nobody.region_id, None);
        assert!(nobody.reason.contains("no region was tailed"));

        regions.started(1, 7, 44, range("a", "m"));
        let tailed = held(&regions, None).unwrap();
        assert_eq!((tailed.store_id, tailed.region_id), (Some(7), Some(44)));
        assert!(tailed.reason.contains("lock"));
        let lock = HeldLock {
            key: Bytes::from_static(b"k"),
            primary: Bytes::from_static(b"p"),
            start_ts: Ts::new(4711),
            age: Duration::from_secs(9),
        };
        regions.held(7, BTreeMap::from([(1, Holder::Lock(lock))]));
        let locked = held(&regions, None).unwrap();
        assert!(locked.reason.contains("4711") && locked.reason.contains("6B"));
        let lock = locked.lock.unwrap();
        assert_eq!(
            (lock.key, lock.primary, lock.start_ts),
            ("6B".into(), "70".into(), 4711)
        );
        regions.held(7, BTreeMap::from([(1, Holder::Phantom)]));
        assert!(held(&regions, None).unwrap().reason.contains("phantom"));

        // Behind the range that is asked about, but told together with its region.
        regions.started(3, 7, 46, range("x", "y"));
        let beside = [(1, Holder::Neighbour(SubId(3))), (3, Holder::Phantom)];
        regions.held(7, BTreeMap::from(beside));
        let found = held(&regions, None).unwrap();
        assert_eq!(found.region_id, Some(46));
        assert!(found.reason.contains("phantom"));
        regions.ended(3, String::new());

        regions.ended(1, "not leader".to_owned());
        let ended = held(&regions, None).unwrap();
        assert_eq!(ended.region_id, Some(44));
        assert_eq!(ended.reason, "it is not tailed: not leader");

        regions.started(2, 7, 45, range("a", ""));
        let again = held(&regions, Some("the storage is full")).unwrap();
        assert_eq!(
            (again.region_id, again.reason.as_str()),
            (Some(45), "the storage is full")
        );
    }

    #[test]
    fn of_several_regions_that_stand_together_the_one_with_a_reason_is_named() {
        let regions = Regions::default();
        regions.started(1, 7, 44, range("a", "bm"));
        regions.started(2, 7, 45, range("bm", "z"));
        assert_eq!(held(&regions, None).unwrap().region_id, Some(44));
        regions.held(7, BTreeMap::from([(2, Holder::Phantom)]));
        assert_eq!(held(&regions, None).unwrap().region_id, Some(45));
    }

    #[test]
    fn a_region_of_another_store_is_told_with_the_store_and_its_sidecar() {
        let regions = Regions::default();
        regions.started(1, 1, 44, range("a", "m"));
        regions.ended(1, "not leader".to_owned());
        let told = |store_id, sidecar: Option<&str>| {
            regions.locate(Located {
                range: range("a", "m"),
                region_id: 44,
                store_id,
                sidecar: sidecar.map(str::to_owned),
            });
            let held = held(&regions, None).unwrap();
            (held.store_id, held.region_id, held.reason)
        };
        let (store, region, why) = told(4, None);
        assert_eq!((store, region), (Some(4), Some(44)));
        assert!(why.contains("no sidecar"), "{why}");
        assert!(told(4, Some("b:9")).2.contains("b:9"));
        assert_eq!(told(0, None).0, None);
    }

    #[test]
    fn a_store_that_is_given_back_ends_its_own_subscriptions_only() {
        let regions = Regions::default();
        regions.started(1, 1, 44, range("a", "c"));
        regions.started(2, 4, 45, range("c", "f"));
        regions.started(3, 4, 46, range("f", ""));
        assert_eq!(regions.forget(4, "given back"), [2, 3]);
        assert!(regions.is_tailed(b"b") && !regions.is_tailed(b"d"));
        assert!(regions.forget(4, "given back").is_empty());
    }

    #[test]
    fn the_rate_is_told_every_two_seconds_and_begins_at_nothing() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::new(start);
        assert_eq!(rate.measure(at(1), 500), None);
        assert_eq!(
            rate.measure(at(2), 1_000),
            Some(0.0),
            "what was before does not count"
        );
        assert_eq!(rate.measure(at(6), 1_400), Some(100.0));
        assert_eq!(rate.measure(at(8), 1_400), Some(0.0));
    }

    #[test]
    fn only_the_newest_ends_are_remembered() {
        let regions = Regions::default();
        for sub in 0..2 * ENDS as u64 {
            regions.started(sub, 1, sub, range("x", "y"));
            regions.ended(sub, "split".to_owned());
        }
        assert_eq!(regions.0.lock().ended.len(), ENDS);
        regions.ended(7, "unknown ones are no end".to_owned());
        assert_eq!(regions.0.lock().ended.len(), ENDS);
    }
}
