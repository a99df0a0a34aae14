//! One shard: the state of its subscriptions and their open slices.
//!
//! [`ShardCore`] is pure: events in, one [`ShardSeal`] out. What a seal proves is exactly what was
//! applied before it in the same shard, because slices and claims are taken in the same call and
//! all events of a subscription pass through one shard in order. The simulation steps the
//! workers of several shards in any order; [`crate::Observer`] starts one worker per
//! shard ([`crate::shard_worker`]).

use std::collections::VecDeque;
use std::sync::Arc;

use pitr_budget::Reservation;
use pitr_format::RecordBatch;
use pitr_format::slice::SliceBuildError;
use prometheus::Histogram;
use tokio::sync::oneshot;

use crate::encode::{Closed, EncodeResult};
use crate::env::Env;
use crate::router::TaskRanges;
use crate::slices::{CLOSE_AT, CLOSE_SHORT_AT, OpenSlices, SealedSlots};
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
    /// Slices that were handed to the encoders before, in the order in which they were closed.
    pub(crate) early: Vec<oneshot::Receiver<EncodeResult>>,
    /// Closed slices for which the encoders had no place, younger than those.
    pub(crate) backlog: VecDeque<Closed>,
    /// All others.
    pub(crate) slots: SealedSlots,
    pub(crate) claims: TrackerSeal,
    pub(crate) faults: Vec<Fault>,
    /// For the slots.
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
    /// An empty shard. `slice_limit`: plaintext bytes at which a slice is closed, if that is less
    /// than [`crate::slices::CLOSE_AT`].
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
    fn append(&mut self, sub: SubId, records: &RecordBatch) {
        let metrics = &self.env.metrics;
        metrics.handle_kv_batch.observe(records.len() as f64);
        let Some((region_id, resolved)) = self.tracker.region_and_resolved(sub) else {
            metrics.skip_kv_count.inc_by(records.len() as u64);
            return;
        };
        let began = self.env.clock.now();
        let short = self.env.budget.used() > self.env.budget.limit() / 2;
        let close_at = if short { CLOSE_SHORT_AT } else { CLOSE_AT };
        for record in records {
            if !self.ranges.contains(record.key) {
                self.env.metrics.skip_kv_count.inc();
                continue;
            }
            let appended = self.slices.append(region_id, resolved, record, close_at);
            if let Err(error) = appended {
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
            early: Vec::new(),
            backlog: VecDeque::new(),
            slots: self.slices.seal(),
            claims: self.tracker.seal(),
            faults: std::mem::take(&mut self.faults),
            reservation: None,
        }
    }

    /// Plaintext bytes since the last seal.
    pub fn plain_bytes(&self) -> u64 {
        self.slices.plain_bytes()
    }

    /// Bytes allocated for slices.
    pub fn held_bytes(&self) -> u64 {
        self.slices.held_bytes()
    }

    pub(crate) fn slices(&mut self) -> &mut OpenSlices {
        &mut self.slices
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }
}

impl Drop for ShardCore {
    fn drop(&mut self) {
        let subs = self.tracker.len() as i64;
        self.env.metrics.active_subscriptions.sub(subs);
        self.env.metrics.observed_region.sub(subs);
    }
}
