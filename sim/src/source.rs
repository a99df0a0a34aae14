//! The change stream between store and observer: one ordered wire per subscription.
//!
//! It keeps the promises of [`pitr_observer::source`]: scan before the first resolved ts, no
//! resolved ts above rows that are still to come, and nothing but the end after a loss. Wires do
//! not wait for each other. It dies with the node.

use std::collections::{BTreeMap, VecDeque};

use pitr_format::{Cf, KvRecord, RecordBatch, Ts};
use pitr_observer::{ObserverHandle, RangeProgress, RegionMeta, SendError, SourceEvent, SubId};
use rand::Rng;
use rand::rngs::StdRng;

use crate::bug::Bug;

struct Wire {
    events: VecDeque<SourceEvent>,
    claim: RangeProgress,
    ended: bool,
}

/// What a delivery came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Taken.
    Taken,
    /// There was nothing.
    Nothing,
    /// The observer has no room.
    Full,
}

#[expect(
    clippy::expect_used,
    reason = "a seed writes some kilobytes, a batch holds 4 GiB"
)]
fn batch(sub: SubId, records: &[KvRecord]) -> SourceEvent {
    let records = RecordBatch::of(records).expect("a few rows");
    SourceEvent::Batch { sub, records }
}

/// All wires.
pub struct Source {
    wires: BTreeMap<SubId, Wire>,
    /// The planted mistake.
    bug: Option<Bug>,
}

impl Source {
    /// No wires yet.
    pub fn new(bug: Option<Bug>) -> Self {
        Source {
            wires: BTreeMap::new(),
            bug,
        }
    }

    /// A subscription begins: its start, and what its scan found, in any order.
    pub fn subscribe(
        &mut self,
        sub: SubId,
        region: &RegionMeta,
        checkpoint_ts: Ts,
        mut scan: Vec<Vec<KvRecord>>,
        rng: &mut StdRng,
    ) {
        let started = SourceEvent::Started {
            sub,
            region: region.clone(),
            checkpoint_ts,
        };
        let mut events = VecDeque::from([started]);
        if self.bug == Some(Bug::ResolvedBeforeScan) {
            let ts = checkpoint_ts.next();
            let newest = scan.iter().flatten().filter(|row| row.cf == Cf::Write);
            let newest = newest.filter_map(|row| pitr_format::key::split_versioned(&row.key).ok());
            let ts = newest.map(|(_, ts)| ts).max().unwrap_or(ts);
            events.push_back(SourceEvent::Resolved { sub, ts });
        }
        while !scan.is_empty() {
            let take = rng.random_range(1..=4).min(scan.len());
            let start = rng.random_range(0..=scan.len() - take);
            let records: Vec<_> = scan.drain(start..start + take).flatten().collect();
            events.push_back(batch(sub, &records));
        }
        let claim = RangeProgress {
            range: region.range.clone(),
            base: checkpoint_ts,
            ts: checkpoint_ts,
        };
        let ended = false;
        let wire = Wire {
            events,
            claim,
            ended,
        };
        self.wires.insert(sub, wire);
    }

    /// Rows of a live change; they may overtake the scan, but nothing else.
    pub fn rows(&mut self, sub: SubId, mut records: Vec<KvRecord>, rng: &mut StdRng) {
        match self.bug {
            Some(Bug::DefaultDropped) => records.retain(|row| row.cf != Cf::Default),
            Some(Bug::DeleteDropped) => {
                records.retain(|row| row.cf != Cf::Write || row.value.first() != Some(&b'D'));
            }
            _ => {}
        }
        let Some(wire) = self.wires.get_mut(&sub) else {
            return;
        };
        let event = batch(sub, &records);
        let scanning = wire.events.iter().all(|event| {
            matches!(
                event,
                SourceEvent::Started { .. } | SourceEvent::Batch { .. }
            )
        }) && matches!(wire.events.front(), Some(SourceEvent::Started { .. }));
        if scanning {
            let at = rng.random_range(1..=wire.events.len());
            wire.events.insert(at, event);
        } else {
            wire.events.push_back(event);
        }
    }

    /// A resolved ts behind everything told so far.
    pub fn resolved(&mut self, sub: SubId, ts: Ts) {
        if let Some(wire) = self.wires.get_mut(&sub) {
            wire.events.push_back(SourceEvent::Resolved { sub, ts });
        }
    }

    /// The subscription ends behind what was told; of what is under way only the first `keep`
    /// events arrive.
    pub fn end(&mut self, sub: SubId, keep: usize) {
        let Some(wire) = self.wires.get_mut(&sub) else {
            return;
        };
        if self.bug == Some(Bug::EndedRowsLost) {
            let rows = |event: &SourceEvent| matches!(event, SourceEvent::Batch { .. });
            wire.events.retain(|event| !rows(event));
        } else {
            wire.events.truncate(keep);
        }
        wire.events.push_back(SourceEvent::Ended { sub });
        wire.ended = true;
    }

    /// Subscriptions with something to deliver.
    pub fn busy(&self) -> Vec<SubId> {
        let busy = self.wires.iter().filter(|(_, w)| !w.events.is_empty());
        busy.map(|(sub, _)| *sub).collect()
    }

    /// The newest subscription that did not end.
    pub fn newest(&self) -> Option<SubId> {
        let live = self.wires.iter().rev().find(|(_, wire)| !wire.ended);
        live.map(|(sub, _)| *sub)
    }

    /// Hands the next event of a subscription to the observer.
    pub fn deliver(&mut self, sub: SubId, observer: &ObserverHandle) -> Delivered {
        let Some(wire) = self.wires.get_mut(&sub) else {
            return Delivered::Nothing;
        };
        let Some(event) = wire.events.pop_front() else {
            return Delivered::Nothing;
        };
        let resolved = match &event {
            SourceEvent::Resolved { ts, .. } => Some(*ts),
            _ => None,
        };
        match observer.try_send(event) {
            Ok(()) => {
                if let Some(ts) = resolved {
                    wire.claim.ts = wire.claim.ts.max(ts);
                }
                if wire.ended && wire.events.is_empty() {
                    self.wires.remove(&sub);
                }
                Delivered::Taken
            }
            Err(SendError::Full(SourceEvent::Batch { .. }))
                if self.bug == Some(Bug::DroppedWhenFull) =>
            {
                Delivered::Taken
            }
            Err(SendError::Full(event)) => {
                wire.events.push_front(event);
                Delivered::Full
            }
            Err(SendError::Closed) => Delivered::Nothing,
        }
    }

    /// What every running subscription was told, durable or not: what a planted mistake publishes.
    pub fn claims(&self) -> Vec<RangeProgress> {
        self.wires.values().map(|wire| wire.claim.clone()).collect()
    }
}
