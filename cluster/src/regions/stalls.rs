//! Regions whose resolved ts stands still: whose locks to look at, and what the locks say. Pure;
//! time is an argument. Part of [`super::core`].
//!
//! A store's change stream never resolves locks itself, so the lock of a dead client holds a region
//! for ever. And its tracker can hold a lock that no longer exists (TiKV from 8.5.0 on, after a
//! rollback that overlaps a commit): then the locks show nothing, and only a new registration
//! helps. When all regions of a store stand still it is not a lock but the store, and nothing is
//! registered anew. Limits: pingcap/ticdc `logservice/logpuller/resolve_lock_rate_limiter.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use pitr_format::{EncodedRange, Ts};
use tokio::time::Instant;

use super::Holder;
use crate::cdc::SubId;
use crate::kv::LockReport;

/// Standing that long, and being that far behind PD's clock, is a stall.
pub(super) const STALL: Duration = Duration::from_secs(4);
/// A region's locks are looked at that often at most.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// A region is registered anew for a lock that does not exist that often at most.
const REPAIR_AGAIN: Duration = Duration::from_secs(3600);
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

struct Watched {
    region_id: u64,
    range: EncodedRange,
    resolved: Ts,
    /// When `resolved` rose last.
    moved: Instant,
    looked: Option<Instant>,
    looking: bool,
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
}

pub(super) struct Stalls {
    subs: BTreeMap<SubId, Watched>,
    /// Region → when it was registered anew for a lock that does not exist.
    repaired: BTreeMap<u64, Instant>,
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
            looked: None,
            looking: false,
            holder: None,
        };
        self.subs.insert(sub, watched);
    }

    pub fn end(&mut self, sub: SubId) {
        self.subs.remove(&sub);
    }

    pub fn resolved(&mut self, sub: SubId, ts: Ts, now: Instant) {
        if let Some(watched) = self.subs.get_mut(&sub)
            && ts > watched.resolved
        {
            (watched.resolved, watched.moved) = (ts, now);
            (watched.looked, watched.holder) = (None, None);
        }
    }

    /// The regions whose locks are to be looked at now, with where they stand; the caller answers
    /// each with [`Stalls::looked`].
    pub fn due(&mut self, now: Instant) -> Vec<(SubId, EncodedRange, Ts)> {
        if now < self.check_due {
            return Vec::new();
        }
        self.check_due = now + CHECK;
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

    /// When [`Stalls::due`] is to be asked again; `None` while nothing can stand still.
    pub fn next_wake(&self) -> Option<Instant> {
        (!self.subs.is_empty()).then_some(self.check_due)
    }

    /// What a look gave that was asked for when the region stood at `asked`. True = the region is
    /// to be registered anew.
    pub fn looked(&mut self, sub: SubId, asked: Ts, looked: Looked, now: Instant) -> bool {
        self.running = self.running.saturating_sub(1);
        let standing = self.subs.values().filter(|sub| sub.stands(now)).count();
        let store_stands = self.subs.len() > 1 && standing == self.subs.len();
        let Some(watched) = self.subs.get_mut(&sub) else {
            return false;
        };
        watched.looking = false;
        if watched.resolved != asked {
            return false;
        }
        let report = match looked {
            Looked::Locks(report) => report,
            Looked::NotBehind => {
                watched.holder = None;
                return false;
            }
            Looked::Failed(why) => {
                watched.holder = Some(Holder::Unknown(why));
                return false;
            }
        };
        watched.holder = match report.oldest {
            Some(lock) => Some(Holder::Lock(lock)),
            // They go now; the store tells soon.
            None if report.resolved > 0 => None,
            None if store_stands => Some(Holder::Store),
            None => Some(Holder::Phantom),
        };
        watched.holder == Some(Holder::Phantom) && self.may_repair(sub, now)
    }

    fn may_repair(&mut self, sub: SubId, now: Instant) -> bool {
        self.repaired
            .retain(|_, at| now.saturating_duration_since(*at) < REPAIR_AGAIN);
        let Some(watched) = self.subs.get(&sub) else {
            return false;
        };
        match self.repaired.contains_key(&watched.region_id) {
            true => false,
            false => {
                self.repaired.insert(watched.region_id, now);
                true
            }
        }
    }

    /// What holds regions back, as far as it was looked.
    pub fn holds(&self) -> impl Iterator<Item = (SubId, &Holder)> {
        let subs = self.subs.iter();
        subs.filter_map(|(id, sub)| Some((*id, sub.holder.as_ref()?)))
    }
}
