//! Keeping the regions that one store leads subscribed to its change stream, for the ranges of a
//! task.
//!
//! [`RegionTracker`] is a thin shell around a pure core: PD says where the leaders are, the stream
//! says when they move, and an audit every few seconds compares the two, so that a lost hint costs
//! time but never a range. Safety never rests on who owns a region: each subscription scans from
//! the durable frontier of its range, and a range whose history GC may have passed is reported as
//! a gap instead of being continued. Used by the sidecar.

mod candidates;
mod core;
mod index;
mod penalty;
mod stalls;
mod tracker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pitr_format::{EncodedRange, RecordBatch, Ts};
use pitr_proto::metapb;

pub use tracker::RegionTracker;

use crate::cdc::{CdcOptions, EndKind, EndReason, SubId};
use crate::kv::HeldLock;

/// Tells up to which ts everything in a range is durable: the checkpoint_ts of the next
/// subscription there. Must never answer more than what is published.
pub type FrontierFn = Arc<dyn Fn(&EncodedRange) -> Ts + Send + Sync>;

/// What to track.
#[derive(Clone)]
pub struct TrackerOptions {
    /// Only regions that this store leads.
    pub store_id: u64,
    /// The store's client address, as PD reports it.
    pub store_address: String,
    /// Ranges of the task, encoded, ascending, not overlapping.
    pub wanted: Vec<EncodedRange>,
    /// Where subscriptions start.
    pub frontier: FrontierFn,
    /// Longest time between two comparisons of PD's leaders with what is tracked.
    pub audit_interval: Duration,
    /// The same for each region that PD tells: small clusters are looked at more often.
    pub audit_per_region: Duration,
    /// Scans that may run at a time; halved when the store is busy, regained one by one.
    pub scan_window: usize,
    /// Bounds of the stream.
    pub cdc: CdcOptions,
    /// Name of the first subscription; the names count up from there. Trackers that share a user
    /// need ranges of names that do not meet.
    pub first_sub: u64,
}

impl TrackerOptions {
    /// Defaults for everything but the essentials.
    pub fn new(
        store_id: u64,
        store_address: impl Into<String>,
        wanted: Vec<EncodedRange>,
        frontier: FrontierFn,
    ) -> Self {
        TrackerOptions {
            store_id,
            store_address: store_address.into(),
            wanted,
            frontier,
            audit_interval: Duration::from_secs(10),
            audit_per_region: Duration::from_millis(2),
            scan_window: 32,
            cdc: CdcOptions::default(),
            first_sub: 1,
        }
    }
}

/// What the tracker tells, per subscription in this order: `Started`, `Records`…, `Resolved`…,
/// `Ended`.
#[derive(Clone, Debug)]
pub enum TrackerEvent {
    /// A region is being subscribed; its scan begins behind `checkpoint_ts`.
    Started {
        /// Name of the subscription, never used again.
        sub: SubId,
        /// Id, bounds (encoded) and epoch at that time.
        region: metapb::Region,
        /// What the frontier said.
        checkpoint_ts: Ts,
    },
    /// Committed changes.
    Records {
        /// Whose.
        sub: SubId,
        /// May repeat earlier ones.
        records: RecordBatch,
    },
    /// Every commit at or below `ts` was delivered. Comes only after the scan is complete *and*
    /// GC was seen not to have passed the subscription's checkpoint_ts.
    Resolved {
        /// Whose.
        subs: Vec<SubId>,
        /// Resolved ts.
        ts: Ts,
    },
    /// Nothing more will come for this one; its range will be subscribed again where it is led.
    Ended {
        /// Whose.
        sub: SubId,
        /// Why.
        reason: EndReason,
    },
    /// GC passed the checkpoint of a range: versions between the two may be lost. The range is
    /// not subscribed any more; the task must be stopped with this error.
    Gap {
        /// Encoded range.
        range: EncodedRange,
        /// Where the scan had to begin.
        checkpoint_ts: Ts,
        /// PD's GC safe point.
        safe_point: Ts,
    },
    /// Nothing can be tracked any more (wrong cluster, a store without the service).
    Failed {
        /// What to tell the operator.
        text: String,
    },
}

/// What holds back the resolved ts of a region that was scanned and is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A transaction whose client is alive; the oldest of them.
    Lock(HeldLock),
    /// No lock is there: the store waits for one that does not exist.
    Phantom,
    /// The lock of another one, which the store tells together with it.
    Neighbour(SubId),
    /// No region's lock: the store tells nothing, or the same of very many.
    Store,
    /// Its locks could not be looked at.
    Unknown(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |key: &[u8]| key.iter().map(|b| format!("{b:02X}")).collect::<String>();
        match self {
            Holder::Lock(lock) => write!(
                f,
                "transaction {} holds a lock on key {} (primary {}), began {} s ago and its client is alive",
                lock.start_ts,
                hex(&lock.key),
                hex(&lock.primary),
                lock.age.as_secs()
            ),
            Holder::Phantom => f.write_str(
                "the store waits for a lock that does not exist (phantom lock); the region was registered \
                 anew, which helps unless another change stream follows it: then move its leader",
            ),
            Holder::Neighbour(_) => f.write_str(
                "the store tells one resolved ts of it and of a region that a lock holds",
            ),
            Holder::Store => f.write_str(
                "the store does not raise its resolved ts, and no lock is there that would hold it",
            ),
            Holder::Unknown(why) => write!(f, "its locks could not be looked at: {why}"),
        }
    }
}

/// Gauges for metrics and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerStats {
    /// Subscriptions whose scan runs.
    pub scanning: usize,
    /// Scan complete, GC check pending.
    pub verifying: usize,
    /// Subscriptions that may resolve.
    pub live: usize,
    /// Regions that wait for the scan window.
    pub waiting: usize,
    /// Ranges that failed within the last minutes.
    pub failing: usize,
    /// Ranges lost to GC.
    pub lost: usize,
    /// Ends of subscriptions since the start, by position in [`EndKind::ALL`].
    pub ended: [u64; EndKind::ALL.len()],
}
