//! The state of the subscriptions of one shard: what each of them may claim. Pure state machine.
//!
//! `Absent → Scanning → Live → Absent`, plus `Frozen`: a subscription that lost a row claims
//! nothing more. Invariants:
//! - the claim of a subscription before its first resolved ts is its `checkpoint_ts`, so it moves
//!   nothing;
//! - a claim never falls and never passes the last resolved ts that was *queued behind* the rows
//!   it covers;
//! - what an ended subscription claimed stays true, and is reported once, at the next seal.
//!
//! Driven by [`crate::shard::ShardCore`].

use std::collections::BTreeMap;
use std::sync::Arc;

use pitr_format::Ts;

use crate::frontier::RangeProgress;
use crate::source::{RegionMeta, SubId};

#[derive(Debug)]
enum State {
    /// The initial scan runs: no resolved ts yet.
    Scanning,
    /// Resolved up to this ts.
    Live(Ts),
    /// A row was lost; resolved ts after that are ignored.
    Frozen(Ts),
}

#[derive(Debug)]
struct Subscription {
    region: Arc<RegionMeta>,
    checkpoint_ts: Ts,
    state: State,
}

impl Subscription {
    fn claim(&self) -> Ts {
        match self.state {
            State::Scanning => self.checkpoint_ts,
            State::Live(ts) | State::Frozen(ts) => ts.max(self.checkpoint_ts),
        }
    }

    fn told(&self) -> Claim {
        Claim {
            region: Arc::clone(&self.region),
            base: self.checkpoint_ts,
            ts: self.claim(),
        }
    }
}

/// What one subscription claims at a seal: everything in (base, ts] of its region.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The region as it was subscribed.
    pub region: Arc<RegionMeta>,
    /// Where the subscription began.
    pub base: Ts,
    /// How far it is.
    pub ts: Ts,
}

impl Claim {
    /// The claim as the frontier takes it.
    pub fn progress(&self) -> RangeProgress {
        RangeProgress {
            range: self.region.range.clone(),
            base: self.base,
            ts: self.ts,
        }
    }
}

/// What the subscriptions of a shard prove at a seal. Region data is shared, not copied: it is
/// taken while the shard stands still.
#[derive(Debug, Default)]
pub struct TrackerSeal {
    /// Claims of live subscriptions, and last claims of those that ended since the last seal.
    pub claims: Vec<Claim>,
    /// Smallest claim of the live subscriptions; `None` without any.
    pub live_min: Option<Ts>,
}

/// All subscriptions of one shard.
#[derive(Debug, Default)]
pub struct Tracker {
    subs: BTreeMap<SubId, Subscription>,
    /// Last claims of ended subscriptions since the last seal, by region, version and base: while
    /// flushes fail the base stands still, so that re-subscribing does not grow this.
    ended: BTreeMap<(u64, u64, Ts), Subscription>,
}

impl Tracker {
    /// A subscription begins. One with the same number that still runs ends first.
    pub fn started(&mut self, sub: SubId, region: RegionMeta, checkpoint_ts: Ts) {
        self.ended(sub);
        let state = State::Scanning;
        self.subs.insert(
            sub,
            Subscription {
                region: Arc::new(region),
                checkpoint_ts,
                state,
            },
        );
    }

    /// A resolved ts. Ignored when lower than the last, when frozen, and for unknown numbers.
    pub fn resolved(&mut self, sub: SubId, ts: Ts) {
        if let Some(sub) = self.subs.get_mut(&sub) {
            match sub.state {
                State::Scanning => sub.state = State::Live(ts),
                State::Live(last) => sub.state = State::Live(last.max(ts)),
                State::Frozen(_) => {}
            }
        }
    }

    /// A row of the subscription could not be kept: its claim must not move any more. True if it
    /// was not frozen before.
    pub fn freeze(&mut self, sub: SubId) -> bool {
        let Some(sub) = self.subs.get_mut(&sub) else {
            return false;
        };
        let new = !matches!(sub.state, State::Frozen(_));
        sub.state = State::Frozen(sub.claim());
        new
    }

    /// The subscription ends; its claim is kept for the next seal. False if it was unknown.
    pub fn ended(&mut self, sub: SubId) -> bool {
        let Some(removed) = self.subs.remove(&sub) else {
            return false;
        };
        let region = &removed.region;
        let key = (region.id, region.version, removed.checkpoint_ts);
        match self.ended.get(&key) {
            Some(kept) if kept.claim() >= removed.claim() => {}
            _ => {
                self.ended.insert(key, removed);
            }
        }
        true
    }

    /// Region id and resolved ts of a subscription (zero while it scans); `None` if unknown.
    pub fn region_and_resolved(&self, sub: SubId) -> Option<(u64, Ts)> {
        let sub = self.subs.get(&sub)?;
        let resolved = match sub.state {
            State::Scanning => Ts::ZERO,
            State::Live(ts) | State::Frozen(ts) => ts,
        };
        Some((sub.region.id, resolved))
    }

    /// Running subscriptions.
    pub fn len(&self) -> usize {
        self.subs.len()
    }

    /// Whether no subscription runs.
    pub fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }

    /// The claims at this very moment. To be called together with sealing the slices.
    pub fn seal(&mut self) -> TrackerSeal {
        let ended = std::mem::take(&mut self.ended);
        let mut claims = Vec::with_capacity(ended.len() + self.subs.len());
        claims.extend(ended.values().map(Subscription::told));
        let mut live_min: Option<Ts> = None;
        for sub in self.subs.values() {
            let claim = sub.told();
            live_min = Some(live_min.map_or(claim.ts, |min| min.min(claim.ts)));
            claims.push(claim);
        }
        TrackerSeal { claims, live_min }
    }
}

#[cfg(test)]
mod tests {
    use pitr_format::EncodedRange;
    use proptest::prelude::*;

    use super::*;

    fn region(id: u64) -> RegionMeta {
        RegionMeta {
            id,
            conf_ver: 1,
            version: 1,
            range: EncodedRange::ALL,
        }
    }

    fn claims(tracker: &mut Tracker) -> Vec<u64> {
        let seal = tracker.seal();
        seal.claims.iter().map(|claim| claim.ts.get()).collect()
    }

    #[test]
    fn before_its_first_resolved_ts_a_subscription_claims_its_checkpoint_only() {
        let mut tracker = Tracker::default();
        tracker.started(1, region(7), Ts::new(100));
        assert_eq!(tracker.region_and_resolved(1), Some((7, Ts::ZERO)));
        let seal = tracker.seal();
        assert_eq!(
            (seal.claims[0].base, seal.claims[0].ts, seal.live_min),
            (Ts::new(100), Ts::new(100), Some(Ts::new(100)))
        );
    }

    #[test]
    fn a_lower_resolved_ts_or_one_below_the_checkpoint_moves_nothing() {
        let mut tracker = Tracker::default();
        tracker.started(1, region(7), Ts::new(100));
        tracker.resolved(1, Ts::new(90));
        assert_eq!(claims(&mut tracker), [100]);
        tracker.resolved(1, Ts::new(120));
        tracker.resolved(1, Ts::new(110));
        tracker.resolved(9, Ts::new(500));
        assert_eq!(claims(&mut tracker), [120]);
    }

    #[test]
    fn an_ended_subscription_is_reported_once_and_holds_nothing_back() {
        let mut tracker = Tracker::default();
        tracker.started(1, region(7), Ts::new(100));
        tracker.resolved(1, Ts::new(120));
        assert!(tracker.ended(1));
        assert!(!tracker.ended(1));
        tracker.resolved(1, Ts::new(500));
        let seal = tracker.seal();
        assert_eq!((seal.claims[0].ts, seal.live_min), (Ts::new(120), None));
        assert!(claims(&mut tracker).is_empty());
    }

    #[test]
    fn subscribing_again_and_again_keeps_one_claim_per_region() {
        let mut tracker = Tracker::default();
        for (sub, ts) in [(1, 120), (2, 150), (3, 110)] {
            tracker.started(sub, region(7), Ts::new(100));
            tracker.resolved(sub, Ts::new(ts));
            tracker.ended(sub);
        }
        assert_eq!(claims(&mut tracker), [150]);
    }

    #[test]
    fn a_frozen_subscription_stays_at_what_it_claimed() {
        let mut tracker = Tracker::default();
        tracker.started(1, region(7), Ts::new(100));
        tracker.started(2, region(8), Ts::new(100));
        tracker.resolved(2, Ts::new(120));
        assert!(tracker.freeze(1) && tracker.freeze(2) && !tracker.freeze(2));
        tracker.resolved(1, Ts::new(500));
        tracker.resolved(2, Ts::new(500));
        assert_eq!(claims(&mut tracker), [100, 120]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_claim_ever_passes_the_largest_resolved_ts_of_its_own_subscription(
            events in prop::collection::vec((0u8..4, 0u64..4, 1u64..100), 0..60),
        ) {
            let mut tracker = Tracker::default();
            // Per region the largest ts that any of its subscriptions was told.
            let mut bound = BTreeMap::new();
            for (kind, sub, ts) in events {
                match kind {
                    0 => {
                        tracker.started(sub, region(sub), Ts::new(ts));
                        let entry = bound.entry(sub).or_insert(0);
                        *entry = (*entry).max(ts);
                    }
                    1 => {
                        if tracker.region_and_resolved(sub).is_some() {
                            let entry = bound.entry(sub).or_insert(0);
                            *entry = (*entry).max(ts);
                        }
                        tracker.resolved(sub, Ts::new(ts));
                    }
                    2 => { tracker.ended(sub); }
                    _ => {
                        let seal = tracker.seal();
                        for claim in &seal.claims {
                            prop_assert!(claim.ts >= claim.base);
                            prop_assert!(claim.ts.get() <= bound[&claim.region.id]);
                        }
                    }
                }
            }
        }
    }
}
