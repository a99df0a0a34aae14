//! One shard: the state of its subscriptions and their open slices, and the worker around it.
//!
//! [`ShardCore`] is pure: events in, one [`ShardSeal`] out. What a seal proves is exactly what was
//! applied before it in the same shard, because slices and claims are taken in the same call and
//! all events of a subscription pass through one shard in order. The simulation steps the
//! workers of several shards in any order; [`crate::Observer`] starts one worker per shard.

use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError};
use pitr_budget::Reservation;
use pitr_env::{Step, Worker};
use pitr_format::KvRecord;
use pitr_format::slice::{SliceBuildError, SliceBuilder};
use prometheus::Histogram;
use tokio::sync::oneshot;

use crate::env::Env;
use crate::router::TaskRanges;
use crate::slices::OpenSlices;
use crate::source::{SourceEvent, SubId};
use crate::tracker::{Tracker, TrackerSeal};

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
    append_seconds: Histogram,
    env: Env,
}

impl ShardCore {
    /// An empty shard. `slice_limit`: plaintext bytes at which a slice is closed.
    pub fn new(ranges: Arc<TaskRanges>, slice_limit: u64, env: Env) -> Self {
        let stages = &env.metrics.event_handle_duration;
        ShardCore {
            append_seconds: stages.with_label_values(&["save_to_temp_file"]),
            ranges,
            tracker: Tracker::default(),
            slices: OpenSlices::new(slice_limit),
            faults: Vec::new(),
            env,
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
            self.env.metrics.active_subscriptions.add(change);
            self.env.metrics.observed_region.add(change);
        }
    }

    /// Appends the rows inside the task's ranges. Rows of an unknown or ended subscription are
    /// dropped: nobody claims them, the next subscription of their region scans them again, and
    /// their region is not known.
    fn append(&mut self, sub: SubId, records: &[KvRecord]) {
        let metrics = &self.env.metrics;
        metrics.handle_kv_batch.observe(records.len() as f64);
        let Some((region_id, resolved)) = self.tracker.region_and_resolved(sub) else {
            metrics.skip_kv_count.inc_by(records.len() as u64);
            return;
        };
        let began = self.env.clock.now();
        for record in records {
            if !self.ranges.contains(&record.key) {
                self.env.metrics.skip_kv_count.inc();
                continue;
            }
            if let Err(error) = self.slices.append(region_id, resolved, record) {
                self.fault(sub, region_id, &error);
                // The rest of the batch is kept: rows do no harm, and the claim stands still.
            }
        }
        self.env.note_since(began, &self.append_seconds);
    }

    /// Stops the claim of a subscription that lost a row; told once per subscription.
    fn fault(&mut self, sub: SubId, region_id: u64, error: &SliceBuildError) {
        if !self.tracker.freeze(sub) {
            return;
        }
        let fatal = &self.env.metrics.fatal_errors;
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
        self.env.metrics.active_subscriptions.sub(subs);
        self.env.metrics.observed_region.sub(subs);
    }
}

/// What travels to a shard.
pub(crate) enum ShardMessage {
    /// An event with the bytes reserved for it.
    Event(SourceEvent, Reservation),
    /// Seal and answer.
    Seal(oneshot::Sender<ShardSeal>),
}

/// A shard with its queue. Over when all senders are gone.
pub(crate) struct ShardWorker {
    core: ShardCore,
    inbox: Receiver<ShardMessage>,
    /// For what lies in open slices.
    held: Reservation,
}

impl ShardWorker {
    pub(crate) fn new(core: ShardCore, inbox: Receiver<ShardMessage>) -> Self {
        let held = core.env.budget.nothing();
        ShardWorker { core, inbox, held }
    }

    fn handle(&mut self, message: ShardMessage) -> Step {
        match message {
            ShardMessage::Event(event, reservation) => {
                self.held.absorb(reservation);
                self.core.apply(event);
                self.held.shrink_to(self.core.plain_bytes());
            }
            ShardMessage::Seal(reply) => {
                let mut seal = self.core.seal();
                seal.reservation = Some(self.held.take());
                if reply.send(seal).is_err() {
                    // Whoever asked is gone and the payload with it: going on would leave a hole.
                    tracing::error!("a seal was asked for and not taken; the shard stops");
                    return Step::Over;
                }
            }
        }
        let Env {
            metrics, budget, ..
        } = &self.core.env;
        metrics.heap_memory.set(budget.used() as i64);
        budget.room().notify_waiters();
        Step::Worked
    }
}

impl Worker for ShardWorker {
    fn step(&mut self) -> Step {
        match self.inbox.try_recv() {
            Ok(message) => self.handle(message),
            Err(TryRecvError::Empty) => Step::Idle,
            Err(TryRecvError::Disconnected) => Step::Over,
        }
    }

    fn run(mut self: Box<Self>) {
        while let Ok(message) = self.inbox.recv() {
            if self.handle(message) == Step::Over {
                return;
            }
        }
    }
}
