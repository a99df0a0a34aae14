//! Regions whose resolved ts stands still: whose locks to look at, and what the locks say. Pure;
//! time is an argument. Part of [`super::core`].
//!
//! A store's change stream never resolves locks itself, so the lock of a dead client holds a region
//! for ever. And its tracker can hold a lock that no longer exists (TiKV from 8.5.0 on, after a
//! rollback that overlaps a commit): then the locks show nothing, and only a new registration
//! helps.
//!
//! The store tells one ts, that of the slowest, for a group of regions, so those that are told one
//! ts are judged together. If one of them has a lock, the others only stand beside it; so does who
//! was told more before. If nobody has one and the store goes on telling that ts, one of them has a
//! phantom lock; which one is not known, so all are registered anew, each outside of any group: the
//! innocent go on by themselves then.
//! Limits: pingcap/ticdc `logservice/logpuller/resolve_lock_rate_limiter.go`; groups: tikv/tikv
//! `components/cdc/src/endpoint.rs`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use pitr_format::{EncodedRange, Ts};
use tokio::time::Instant;

use super::Holder;
use crate::cdc::SubId;
use crate::kv::{HeldLock, LockReport};

/// Standing that long, and being that far behind PD's clock, is a stall.
pub(super) const STALL: Duration = Duration::from_secs(4);
/// A region's locks are looked at that often at most.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// A region is registered anew for a lock that began at the same ts that often at most.
const REPAIR_AGAIN: Duration = Duration::from_secs(3600);
/// A ts that the store tells that long after a look still stands without the locks that were there.
const SETTLED: Duration = Duration::from_secs(1);
/// The slowest groups of a store have 8 and 32 regions: more of them do not wait for one region's
/// lock, but for the store.
const GROUPED: usize = 40;
/// Looks that may run at a time.
const LOOKS: usize = 8;
/// How often it is looked who stands still.
const CHECK: Duration = Duration::from_secs(1);

/// What looking at the locks of a region gave.
#[derive(Clone, Debug)]
pub(super) enum Looked {
    /// PD's clock is not [`STALL`] ahead of it.
    NotBehind,
    /// The locks at or below a ts that is behind its resolved ts.
    Locks(LockReport),
    /// Nobody knows.
    Failed(String),
}

/// What the last look showed while the region stood where it stands.
enum Seen {
    /// Of a client that is alive.
    Lock(HeldLock),
    /// No lock.
    Nothing,
    /// Locks that go now, or no stall.
    Moving,
    Failed(String),
}

struct Watched {
    region_id: u64,
    range: EncodedRange,
    resolved: Ts,
    /// When `resolved` rose last.
    moved: Instant,
    /// When the store told a ts of it last, and which; be it the same or a smaller one.
    told: Instant,
    told_ts: Ts,
    /// The largest that it told: what lies below is not held by a lock of the region itself.
    most_told: Ts,
    looked: Option<Instant>,
    looking: bool,
    seen: Option<(Instant, Seen)>,
    holder: Option<Holder>,
}

impl Watched {
    fn stands(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= STALL
    }

    fn is_due(&self, now: Instant) -> bool {
        let rested = |at: Instant| now.saturating_duration_since(at) >= LOOK_AGAIN;
        self.stands(now) && !self.looking && self.looked.is_none_or(rested)
    }

    fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.told) >= STALL
    }

    /// Whether the lock that holds the ts told last can be its own: it was never told more.
    fn may_hold(&self) -> bool {
        self.told_ts == self.most_told
    }

    /// Whether the store told the same ts again when it had had the time to see that no lock is there.
    fn stands_without_lock(&self) -> bool {
        matches!(self.seen, Some((at, Seen::Nothing)) if self.told >= at + SETTLED)
    }
}

/// What a check asks for.
#[derive(Default)]
pub(super) struct Check {
    /// Regions whose locks are to be looked at, with where they stand; the caller answers each
    /// with [`Stalls::looked`].
    pub looks: Vec<(SubId, EncodedRange, Ts)>,
    /// Regions to be registered anew, with the ts that they are told.
    pub repairs: Vec<(SubId, Ts)>,
}

pub(super) struct Stalls {
    subs: BTreeMap<SubId, Watched>,
    /// Region and ts that it was told → when it was registered anew for a lock that does not exist.
    repaired: BTreeMap<(u64, Ts), Instant>,
    running: usize,
    check_due: Instant,
}

impl Stalls {
    pub fn new(now: Instant) -> Self {
        Stalls {
            subs: BTreeMap::new(),
            repaired: BTreeMap::new(),
            running: 0,
            check_due: now,
        }
    }

    /// A subscription may resolve from now on; everything up to `from` is resolved.
    pub fn begin(
        &mut self,
        sub: SubId,
        region_id: u64,
        range: EncodedRange,
        from: Ts,
        now: Instant,
    ) {
        let watched = Watched {
            region_id,
            range,
            resolved: from,
            moved: now,
            told: now,
            told_ts: Ts::ZERO,
            most_told: Ts::ZERO,
            looked: None,
            looking: false,
            seen: None,
            holder: None,
        };
        self.subs.insert(sub, watched);
    }

    pub fn end(&mut self, sub: SubId) {
        self.subs.remove(&sub);
    }

    pub fn resolved(&mut self, sub: SubId, ts: Ts, now: Instant) {
        let Some(watched) = self.subs.get_mut(&sub) else {
            return;
        };
        (watched.told, watched.told_ts) = (now, ts);
        watched.most_told = watched.most_told.max(ts);
        if ts > watched.resolved {
            (watched.resolved, watched.moved) = (ts, now);
            (watched.looked, watched.seen, watched.holder) = (None, None, None);
        }
    }

    /// What has to be done now.
    pub fn check(&mut self, now: Instant) -> Check {
        if now < self.check_due {
            return Check::default();
        }
        self.check_due = now + CHECK;
        let mut together: BTreeMap<Ts, Vec<SubId>> = BTreeMap::new();
        for (id, watched) in self.subs.iter().filter(|(_, sub)| sub.stands(now)) {
            together.entry(watched.told_ts).or_default().push(*id);
        }
        let judged = together.iter();
        let repairs = judged.flat_map(|(ts, subs)| self.judge(*ts, subs, now));
        Check {
            repairs: repairs.collect(),
            looks: self.looks(now),
        }
    }

    fn looks(&mut self, now: Instant) -> Vec<(SubId, EncodedRange, Ts)> {
        let due = self.subs.iter_mut().filter(|(_, sub)| sub.is_due(now));
        let mut due: Vec<_> = due.collect();
        // Who was never looked at comes first, then who waits longest.
        due.sort_by_key(|(_, watched)| watched.looked);
        let mut looks = Vec::new();
        for (id, watched) in due.into_iter().take(LOOKS.saturating_sub(self.running)) {
            (watched.looking, watched.looked) = (true, Some(now));
            looks.push((*id, watched.range.clone(), watched.resolved));
        }
        self.running += looks.len();
        looks
    }

    /// Says what holds the regions that were told `ts` last, and gives those to be registered anew.
    fn judge(&mut self, ts: Ts, subs: &[SubId], now: Instant) -> Vec<(SubId, Ts)> {
        let of = |id: &SubId| Some((*id, self.subs.get(id)?));
        let told = subs.iter().filter_map(of);
        let told: Vec<_> = told.filter(|(_, sub)| !sub.is_silent(now)).collect();
        let has_lock = |sub: &Watched| matches!(sub.seen, Some((_, Seen::Lock(_))));
        let locked = told.iter().find(|(_, sub)| has_lock(sub));
        let suspects: Vec<_> = told.iter().filter(|(_, sub)| sub.may_hold()).collect();
        let many = suspects.len() > GROUPED;
        let phantom = !many && suspects.iter().all(|(_, sub)| sub.stands_without_lock());
        let culprit = locked.or_else(|| suspects.first().copied().filter(|_| phantom));
        let culprit = culprit.map(|(id, _)| *id);
        let phantom = phantom && locked.is_none();
        self.repaired
            .retain(|_, at| now.saturating_duration_since(*at) < REPAIR_AGAIN);
        let mut repairs = Vec::new();
        for id in subs {
            let Some(watched) = self.subs.get_mut(id) else {
                continue;
            };
            let holder = match &watched.seen {
                None | Some((_, Seen::Moving)) => None,
                Some((_, Seen::Lock(lock))) => Some(Holder::Lock(lock.clone())),
                Some((_, Seen::Failed(why))) => Some(Holder::Unknown(why.clone())),
                Some((_, Seen::Nothing)) if many || watched.is_silent(now) => Some(Holder::Store),
                Some((_, Seen::Nothing)) if phantom && watched.may_hold() => Some(Holder::Phantom),
                Some((_, Seen::Nothing)) => culprit.map(Holder::Neighbour),
            };
            if holder == Some(Holder::Phantom)
                && let Entry::Vacant(first) = self.repaired.entry((watched.region_id, ts))
            {
                first.insert(now);
                repairs.push((*id, ts));
            }
            watched.holder = holder;
        }
        repairs
    }

    /// Whether a region was registered anew for a phantom lock lately: it is told by itself from then
    /// on, so that it is known whether the lock was its own.
    pub fn is_suspect(&self, region_id: u64) -> bool {
        let mut of_region = self.repaired.range((region_id, Ts::ZERO)..);
        of_region
            .next()
            .is_some_and(|((id, _), _)| *id == region_id)
    }

    /// When [`Stalls::check`] is to be asked again; `None` while nothing can stand still.
    pub fn next_wake(&self) -> Option<Instant> {
        (!self.subs.is_empty()).then_some(self.check_due)
    }

    /// What a look gave that was asked for when the region stood at `asked`.
    pub fn looked(&mut self, sub: SubId, asked: Ts, looked: Looked, now: Instant) {
        self.running = self.running.saturating_sub(1);
        let Some(watched) = self.subs.get_mut(&sub) else {
            return;
        };
        watched.looking = false;
        if watched.resolved != asked {
            return;
        }
        let seen = match looked {
            Looked::NotBehind => Seen::Moving,
            Looked::Failed(why) => Seen::Failed(why),
            Looked::Locks(report) => match report.oldest {
                Some(lock) => Seen::Lock(lock),
                // They go now; the store tells soon.
                None if report.resolved > 0 => Seen::Moving,
                None => Seen::Nothing,
            },
        };
        watched.seen = Some((now, seen));
    }

    /// What holds regions back, as far as it was looked.
    pub fn holds(&self) -> impl Iterator<Item = (SubId, &Holder)> {
        let subs = self.subs.iter();
        subs.filter_map(|(id, sub)| Some((*id, sub.holder.as_ref()?)))
    }
}
