//! What a source of changes tells the observer.
//!
//! A source is the CDC stream of a store or the in-process hook of an engine fork. It speaks in
//! *subscriptions*: one subscription is one uninterrupted observation of one region, from a
//! checkpoint on. Region ids are labels; truth is the key range with a ts
//! ([`crate::frontier::FrontierMap`]).
//!
//! The source promises, per subscription and in the order of its events:
//! 1. `Started`, then any `Batch` and `Resolved`, then `Ended`;
//! 2. the batches of the initial scan (all versions above `checkpoint_ts`) come before the first
//!    `Resolved`;
//! 3. `Resolved{ts}` comes only after every row of the region with commit ts ≤ `ts` was handed
//!    over in a `Batch`;
//! 4. if a batch cannot be handed over, nothing of that subscription follows but `Ended`.
//!
//! The observer keeps that order: one subscription belongs to one shard.

use pitr_format::{EncodedRange, RecordBatch, Ts};

/// Number of a subscription: chosen by the source, never used twice in one run.
pub type SubId = u64;

/// A region as it was when its subscription started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionMeta {
    /// Region id.
    pub id: u64,
    /// `RegionEpoch.conf_ver`.
    pub conf_ver: u64,
    /// `RegionEpoch.version`.
    pub version: u64,
    /// Key range, encoded.
    pub range: EncodedRange,
}

/// One event of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// A subscription begins. All rows of the region with commit ts ≤ `checkpoint_ts` are durable
    /// already; later ones will be delivered.
    Started {
        /// The subscription.
        sub: SubId,
        /// What it observes.
        region: RegionMeta,
        /// The frontier from which it scans.
        checkpoint_ts: Ts,
    },
    /// Rows, in any ts order.
    Batch {
        /// The subscription.
        sub: SubId,
        /// Column family records.
        records: RecordBatch,
    },
    /// No row with commit ts ≤ `ts` will follow.
    Resolved {
        /// The subscription.
        sub: SubId,
        /// The resolved ts.
        ts: Ts,
    },
    /// The subscription is over (region moved, split, stream broken, or given back).
    Ended {
        /// The subscription.
        sub: SubId,
    },
}

impl SourceEvent {
    /// The subscription that the event belongs to.
    pub fn sub(&self) -> SubId {
        match self {
            SourceEvent::Started { sub, .. }
            | SourceEvent::Batch { sub, .. }
            | SourceEvent::Resolved { sub, .. }
            | SourceEvent::Ended { sub } => *sub,
        }
    }

    /// Bytes that the event holds while it waits in a queue; 0 for events without rows.
    pub fn queued_bytes(&self) -> u64 {
        match self {
            SourceEvent::Batch { records, .. } => records.held_bytes() as u64,
            _ => 0,
        }
    }
}
