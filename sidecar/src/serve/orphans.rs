//! Stores whose regions nobody tails: whether this sidecar is the one to tail them too. Pure; time
//! is an argument. Asked by [`super::following`].
//!
//! A store is adopted when its sidecar has been gone *and* the checkpoint has stood still for three
//! flush intervals: without the second a cluster in which a store captures itself would be tailed
//! twice. The sidecar with the smallest store id is the first to adopt, each next one waits as long
//! again, so that another one steps in if it cannot. Two who adopt the same store do no harm: each
//! scans from what is durable, and records may repeat.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pitr_format::Ts;
use tokio::time::Instant;

/// Flush intervals without progress.
const PATIENCE: u32 = 3;

/// A store, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub id: u64,
    pub has_sidecar: bool,
}

/// What changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    pub adopt: Vec<u64>,
    pub give_back: Vec<u64>,
}

pub(super) struct Orphans {
    own: u64,
    patience: Duration,
    /// Where the checkpoint stands, and since when.
    progress: (Ts, Instant),
    /// Stores without a sidecar, since when.
    gone: BTreeMap<u64, Instant>,
    adopted: BTreeSet<u64>,
}

impl Orphans {
    pub fn new(own: u64, flush_interval: Duration, now: Instant) -> Self {
        Orphans {
            own,
            patience: flush_interval * PATIENCE,
            progress: (Ts::ZERO, now),
            gone: BTreeMap::new(),
            adopted: BTreeSet::new(),
        }
    }

    /// What to do when the task stands at `lowest` and these are the stores of the cluster.
    pub fn decide(&mut self, lowest: Ts, stores: &[Seen], now: Instant) -> Decision {
        if lowest > self.progress.0 {
            self.progress = (lowest, now);
        }
        let without = stores.iter().filter(|store| !store.has_sidecar);
        let without: BTreeSet<u64> = without.map(|store| store.id).collect();
        self.gone.retain(|id, _| without.contains(id));
        for id in without {
            self.gone.entry(id).or_insert(now);
        }
        let gone = &self.gone;
        let give_back: Vec<u64> = self.adopted.iter().copied().collect();
        let give_back = give_back.into_iter().filter(|id| !gone.contains_key(id));
        let give_back: Vec<u64> = give_back.collect();
        self.adopted.retain(|id| gone.contains_key(id));
        let adopt = self.due(stores, now);
        self.adopted.extend(&adopt);
        Decision { adopt, give_back }
    }

    fn due(&self, stores: &[Seen], now: Instant) -> Vec<u64> {
        let live = stores.iter().filter(|store| store.has_sidecar);
        let live: BTreeSet<u64> = live.map(|store| store.id).collect();
        if !live.contains(&self.own) {
            return Vec::new();
        }
        let before_us = live.range(..self.own).count();
        let turns = u32::try_from(before_us + 1).unwrap_or(u32::MAX);
        let wait = self.patience.saturating_mul(turns);
        let waited = |since: Instant| now.saturating_duration_since(since) >= wait;
        if !waited(self.progress.1) {
            return Vec::new();
        }
        let due = self.gone.iter().filter(|(_, since)| waited(**since));
        let new = due.map(|(id, _)| *id).filter(|id| *id != self.own);
        new.filter(|id| !self.adopted.contains(id)).collect()
    }

    /// A store that was adopted cannot be tailed: it has its time of patience again.
    pub fn gave_up(&mut self, store: u64, now: Instant) {
        self.adopted.remove(&store);
        self.gone.insert(store, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: Duration = Duration::from_secs(10);

    struct Rig {
        orphans: Orphans,
        now: Instant,
    }

    impl Rig {
        fn of(own: u64) -> Self {
            let now = Instant::now();
            Rig {
                orphans: Orphans::new(own, FLUSH, now),
                now,
            }
        }

        /// `seconds` later, with the checkpoint at `ts` and these stores having a sidecar or not.
        fn after(&mut self, seconds: u64, ts: u64, stores: &[(u64, bool)]) -> Decision {
            self.now += Duration::from_secs(seconds);
            let seen = stores.iter().map(|(id, has_sidecar)| Seen {
                id: *id,
                has_sidecar: *has_sidecar,
            });
            let seen: Vec<_> = seen.collect();
            self.orphans.decide(Ts::new(ts), &seen, self.now)
        }
    }

    fn adopt(stores: &[u64]) -> Decision {
        Decision {
            adopt: stores.to_vec(),
            ..Decision::default()
        }
    }

    const TWO_GONE: [(u64, bool); 4] = [(1, true), (4, false), (5, true), (6, false)];

    #[test]
    fn the_smallest_adopts_after_three_intervals_and_the_next_after_six() {
        let (mut first, mut second) = (Rig::of(1), Rig::of(5));
        first.after(0, 9, &TWO_GONE);
        second.after(0, 9, &TWO_GONE);
        assert_eq!(first.after(29, 9, &TWO_GONE), adopt(&[]));
        assert_eq!(first.after(1, 9, &TWO_GONE), adopt(&[4, 6]));
        assert_eq!(first.after(60, 9, &TWO_GONE), adopt(&[]), "once");
        assert_eq!(second.after(59, 9, &TWO_GONE), adopt(&[]));
        assert_eq!(second.after(1, 9, &TWO_GONE), adopt(&[4, 6]));
    }

    #[test]
    fn nobody_adopts_while_the_checkpoint_moves_or_the_sidecar_is_back_in_time() {
        let mut rig = Rig::of(1);
        for step in 0..20 {
            assert_eq!(rig.after(10, 100 + step, &TWO_GONE), adopt(&[]));
        }
        let mut rig = Rig::of(1);
        rig.after(0, 9, &[(1, true), (4, false)]);
        rig.after(20, 9, &[(1, true), (4, true)]);
        assert_eq!(rig.after(20, 9, &[(1, true), (4, false)]), adopt(&[]));
        assert_eq!(rig.after(29, 9, &[(1, true), (4, false)]), adopt(&[]));
        assert_eq!(rig.after(1, 9, &[(1, true), (4, false)]), adopt(&[4]));
    }

    #[test]
    fn a_store_is_given_back_to_its_sidecar_and_when_it_is_no_store_any_more() {
        for then in [&[(1, true), (4, true)][..], &[(1, true)]] {
            let mut rig = Rig::of(1);
            rig.after(0, 9, &[(1, true), (4, false)]);
            assert_eq!(rig.after(30, 9, &[(1, true), (4, false)]), adopt(&[4]));
            let decision = rig.after(1, 10, then);
            assert_eq!((decision.adopt, decision.give_back), (vec![], vec![4]));
            assert_eq!(rig.after(1, 10, then), adopt(&[]), "once");
        }
    }

    #[test]
    fn a_sidecar_that_is_not_listed_itself_adopts_nothing_and_never_its_own_store() {
        let mut rig = Rig::of(1);
        rig.after(0, 9, &[(1, false), (4, false)]);
        assert_eq!(rig.after(900, 9, &[(1, false), (4, false)]), adopt(&[]));
        assert_eq!(rig.after(900, 9, &[]), adopt(&[]));
    }

    #[test]
    fn a_store_that_cannot_be_tailed_is_tried_again_after_its_patience() {
        let mut rig = Rig::of(1);
        let stores = [(1, true), (4, false)];
        rig.after(0, 9, &stores);
        assert_eq!(rig.after(30, 9, &stores), adopt(&[4]));
        rig.orphans.gave_up(4, rig.now);
        assert_eq!(rig.after(29, 9, &stores), adopt(&[]));
        assert_eq!(rig.after(1, 9, &stores), adopt(&[4]));
    }
}
