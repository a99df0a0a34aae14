//! One shard: the state of its subscriptions and their open slices, and the thread around it.
//!
//! [`ShardCore`] is pure: events in, one [`ShardSeal`] out. What a seal proves is exactly what was
//! applied before it in the same shard, because slices and claims are taken in the same call and
//! all events of a subscription pass through one shard in order. The simulation drives
//! `ShardCore` alone; [`crate::Observer`] runs one thread per shard around it.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use pitr_format::KvRecord;
use pitr_format::slice::{SliceBuildError, SliceBuilder};

use crate::metrics::Metrics;
use crate::router::TaskRanges;
use crate::slices::OpenSlices;
use crate::source::{SourceEvent, SubId};
use crate::tracker::{Tracker, TrackerSeal};
use pitr_budget::{MemoryBudget, Reservation};

/// A row that could not be kept. Its subscription claims nothing more: end it and subscribe again,
/// and look at the source, which delivered something that is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The subscription.
    pub sub: SubId,
    /// Its region.
    pub region_id: u64,
    /// What is wrong with the row.
    pub reason: String,
}

/// Slices and the claims that they prove, taken in one moment. Only
/// [`crate::flush::generation`] can open it.
pub struct ShardSeal {
    pub(crate) slices: Vec<SliceBuilder>,
    pub(crate) claims: TrackerSeal,
    pub(crate) faults: Vec<Fault>,
    pub(crate) reservation: Option<Reservation>,
}

/// The state of one shard.
pub struct ShardCore {
    ranges: Arc<TaskRanges>,
    tracker: Tracker,
    slices: OpenSlices,
    faults: Vec<Fault>,
    metrics: Metrics,
}

impl ShardCore {
    /// An empty shard. `slice_limit`: plaintext bytes at which a slice is closed.
    pub fn new(ranges: Arc<TaskRanges>, slice_limit: u64, metrics: Metrics) -> Self {
        ShardCore {
            ranges,
            tracker: Tracker::default(),
            slices: OpenSlices::new(slice_limit),
            faults: Vec::new(),
            metrics,
        }
    }

    /// Applies one event.
    pub fn apply(&mut self, event: SourceEvent) {
        let before = self.tracker.len() as i64;
        match event {
            SourceEvent::Started {
                sub,
                region,
                checkpoint_ts,
            } => self.tracker.started(sub, region, checkpoint_ts),
            SourceEvent::Batch { sub, records } => self.append(sub, &records),
            SourceEvent::Resolved { sub, ts } => self.tracker.resolved(sub, ts),
            SourceEvent::Ended { sub } => {
                self.tracker.ended(sub);
            }
        }
        let change = self.tracker.len() as i64 - before;
        if change != 0 {
            self.metrics.active_subscriptions.add(change);
            self.metrics.observed_region.add(change);
        }
    }

    /// Appends the rows inside the task's ranges. Rows of an unknown or ended subscription are
    /// dropped: nobody claims them, the next subscription of their region scans them again, and
    /// their region is not known.
    fn append(&mut self, sub: SubId, records: &[KvRecord]) {
        self.metrics.handle_kv_batch.observe(records.len() as f64);
        let Some((region_id, resolved)) = self.tracker.region_and_resolved(sub) else {
            self.metrics.skip_kv_count.inc_by(records.len() as u64);
            return;
        };
        let timer = self
            .metrics
            .event_handle_duration
            .with_label_values(&["save_to_temp_file"])
            .start_timer();
        for record in records {
            if !self.ranges.contains(&record.key) {
                self.metrics.skip_kv_count.inc();
                continue;
            }
            if let Err(error) = self.slices.append(region_id, resolved, record) {
                self.fault(sub, region_id, &error);
                // The rest of the batch is kept: rows do no harm, and the claim stands still.
            }
        }
        timer.observe_duration();
    }

    /// Stops the claim of a subscription that lost a row; told once per subscription.
    fn fault(&mut self, sub: SubId, region_id: u64, error: &SliceBuildError) {
        if !self.tracker.freeze(sub) {
            return;
        }
        let fatal = &self.metrics.fatal_errors;
        fatal.with_label_values(&["bad_record"]).inc();
        tracing::error!(sub, region_id, %error, "a row could not be kept");
        self.faults.push(Fault {
            sub,
            region_id,
            reason: error.to_string(),
        });
    }

    /// Slices and claims of this very moment.
    pub fn seal(&mut self) -> ShardSeal {
        ShardSeal {
            slices: self.slices.seal(),
            claims: self.tracker.seal(),
            faults: std::mem::take(&mut self.faults),
            reservation: None,
        }
    }

    /// Plaintext bytes in open slices.
    pub fn plain_bytes(&self) -> u64 {
        self.slices.plain_bytes()
    }
}

impl Drop for ShardCore {
    fn drop(&mut self) {
        let subs = self.tracker.len() as i64;
        self.metrics.active_subscriptions.sub(subs);
        self.metrics.observed_region.sub(subs);
    }
}

/// What travels to a shard's thread.
pub(crate) enum ShardMessage {
    /// An event with the bytes reserved for it.
    Event(SourceEvent, Reservation),
    /// Seal and answer.
    Seal(Sender<ShardSeal>),
}

/// The thread's loop; ends when all senders are gone.
pub(crate) fn run(mut core: ShardCore, inbox: &Receiver<ShardMessage>, budget: &Arc<MemoryBudget>) {
    let mut held = budget.nothing();
    for message in inbox {
        match message {
            ShardMessage::Event(event, reservation) => {
                held.absorb(reservation);
                core.apply(event);
                held.shrink_to(core.plain_bytes());
            }
            ShardMessage::Seal(reply) => {
                let mut seal = core.seal();
                seal.reservation = Some(held.take());
                if reply.send(seal).is_err() {
                    // Whoever asked is gone and the payload with it: going on would leave a hole.
                    tracing::error!("a seal was asked for and not taken; the shard stops");
                    return;
                }
            }
        }
        core.metrics.heap_memory.set(budget.used() as i64);
        budget.room().notify_waiters();
    }
}
