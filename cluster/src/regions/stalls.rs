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
//! innocent go on by themselves then. Some may wrongly be: what the store tells waits in queues, so
//! a look is judged only after the store told something later than it, and repairs are counted.
//! Limits: pingcap/ticdc `logservice/logpuller/resolve_lock_rate_limiter.go`; groups: tikv/tikv
//! `components/cdc/src/endpoint.rs`.

use std::collections::BTreeMap;
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
/// A region is registered anew for a lock that began at the same ts that often at most, and
/// [`REPAIRS`] times in all.
const REPAIR_AGAIN: Duration = Duration::from_secs(3600);
const REPAIRS: usize = 3;
/// A ts that the store tells that long after a look still stands without the locks that were there.
const SETTLED: Duration = Duration::from_secs(1);
/// The slowest group of a store.
const SLOWEST: usize = 8;
/// The two slowest: more regions do not wait for one region's lock, but for the store.
const GROUPED: usize = SLOWEST + 32;
/// Looks that may run at a time.
const LOOKS: usize = 8;
/// How often it is looked who stands still.
const CHECK: Duration = Duration::from_secs(1);

/// What looking at the locks of a region gave.
#[derive(Clone, Debug)]
pub(super) enum Looked {
    /// PD's clock is not [`STALL`] ahead of it.
    NotBehind,
    /// The locks at or a little above its resolved ts, and PD's time when they were looked at.
    Locks(LockReport, Ts),
    /// Nobody knows.
    Failed(String),
}

/// What the last look showed while the region stood where it stands.
enum Seen {
    /// The oldest lock of a client that is alive, if there is one, and PD's time then.
    Oldest(Option<HeldLock>, Ts),
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

    /// The lock that holds the ts told last, as seen: one that began later does not.
    fn lock(&self) -> Option<&HeldLock> {
        let stands_at = match self.told_ts.is_zero() {
            true => self.resolved,
            false => self.told_ts,
        };
        match &self.seen {
            Some((_, Seen::Oldest(oldest, _))) => oldest
                .as_ref()
                .filter(|lock| lock.start_ts <= stands_at.next()),
            _ => None,
        }
    }

    /// Whether the store told the same ts again after it was seen that no lock holds it. What the
    /// store tells waits in queues: `newest` is what it told of any region, if that proves anything.
    fn stands_without_lock(&self, newest: Option<Ts>) -> bool {
        match &self.seen {
            Some((at, Seen::Oldest(_, now))) => {
                let later = newest.is_none_or(|newest| newest > *now);
                self.lock().is_none() && later && self.told >= *at + SETTLED
            }
            _ => false,
        }
    }
}

/// Regions that were told the same ts last and stand still.
#[derive(Default)]
struct Together {
    subs: Vec<SubId>,
    /// Others may hold it that do not stand yet, or cannot be looked at yet.
    unknown: bool,
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
    /// The largest ts that was told of any region.
    newest: Ts,
    /// Ts that were told of regions that are not live yet, and when.
    foreign: BTreeMap<Ts, Instant>,
    running: usize,
    check_due: Instant,
}

impl Stalls {
    pub fn new(now: Instant) -> Self {
        Stalls {
            subs: BTreeMap::new(),
            repaired: BTreeMap::new(),
            newest: Ts::ZERO,
            foreign: BTreeMap::new(),
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

    /// The store told a ts of a region, live or not.
    pub fn resolved(&mut self, sub: SubId, ts: Ts, now: Instant) {
        self.newest = self.newest.max(ts);
        let Some(watched) = self.subs.get_mut(&sub) else {
            self.foreign.insert(ts, now);
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
        let recent = |at: &Instant, within| now.saturating_duration_since(*at) < within;
        self.repaired.retain(|_, at| recent(at, REPAIR_AGAIN));
        self.foreign.retain(|_, at| recent(at, STALL));
        let mut together: BTreeMap<Ts, Together> = BTreeMap::new();
        for (id, watched) in self.subs.iter().filter(|(_, sub)| sub.stands(now)) {
            together.entry(watched.told_ts).or_default().subs.push(*id);
        }
        if together.is_empty() {
            return Check::default();
        }
        let moving = self.subs.values().filter(|sub| !sub.stands(now));
        for watched in moving.filter(|sub| sub.may_hold()) {
            if let Some(group) = together.get_mut(&watched.told_ts) {
                group.unknown = true;
            }
        }
        for (ts, group) in &mut together {
            group.unknown |= self.foreign.contains_key(ts);
        }
        let judged = together.iter();
        let repairs = judged.flat_map(|(ts, group)| self.judge(*ts, group, now));
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
    fn judge(&mut self, ts: Ts, group: &Together, now: Instant) -> Vec<(SubId, Ts)> {
        let of = |id: &SubId| Some((*id, self.subs.get(id)?));
        let told = group.subs.iter().filter_map(of);
        let told: Vec<_> = told.filter(|(_, sub)| !sub.is_silent(now)).collect();
        let locked = told.iter().find(|(_, sub)| sub.lock().is_some());
        let suspects: Vec<_> = told.iter().filter(|(_, sub)| sub.may_hold()).collect();
        let many = suspects.len() > GROUPED;
        // A store of one group tells nothing of others that would prove anything.
        let newest = (self.subs.len() > SLOWEST).then_some(self.newest);
        let phantom = locked.is_none()
            && !group.unknown
            && !many
            && suspects
                .iter()
                .all(|(_, sub)| sub.stands_without_lock(newest));
        let culprit = locked.or_else(|| suspects.first().copied().filter(|_| phantom));
        let culprit = culprit.map(|(id, _)| *id);
        let mut repairs = Vec::new();
        for id in &group.subs {
            let Some(watched) = self.subs.get_mut(id) else {
                continue;
            };
            let holder = match &watched.seen {
                None | Some((_, Seen::Moving)) => None,
                Some((_, Seen::Failed(why))) => Some(Holder::Unknown(why.clone())),
                Some((_, Seen::Oldest(younger, _))) => match watched.lock() {
                    Some(lock) => Some(Holder::Lock(lock.clone())),
                    None if watched.is_silent(now) => Some(Holder::Store),
                    None if phantom && watched.may_hold() => Some(Holder::Phantom),
                    None if culprit.is_some() => culprit.map(Holder::Neighbour),
                    None if many => Some(Holder::Store),
                    None => younger.clone().map(Holder::Lock),
                },
            };
            let region_id = watched.region_id;
            let is_phantom = holder == Some(Holder::Phantom);
            watched.holder = holder;
            if is_phantom && self.may_repair(region_id, ts) {
                self.repaired.insert((region_id, ts), now);
                repairs.push((*id, ts));
            }
        }
        repairs
    }

    fn may_repair(&self, region_id: u64, ts: Ts) -> bool {
        let of_region = (region_id, Ts::ZERO)..=(region_id, Ts::new(u64::MAX));
        let before = self.repaired.range(of_region).count();
        before < REPAIRS && !self.repaired.contains_key(&(region_id, ts))
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
            // They go now; the store tells soon.
            Looked::Locks(report, _) if report.oldest.is_none() && report.resolved > 0 => {
                Seen::Moving
            }
            Looked::Locks(report, at) => Seen::Oldest(report.oldest, at),
        };
        watched.seen = Some((now, seen));
    }

    /// What holds regions back, as far as it was looked.
    pub fn holds(&self) -> impl Iterator<Item = (SubId, &Holder)> {
        let subs = self.subs.iter();
        subs.filter_map(|(id, sub)| Some((*id, sub.holder.as_ref()?)))
    }
}
