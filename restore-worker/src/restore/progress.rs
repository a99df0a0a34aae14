//! Counters that a caller reads while a restore runs.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::plan::Plan;

/// What the restore is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not begun.
    Waiting,
    /// Reads, proves and sorts slices.
    Reading,
    /// Cuts and ingests files.
    Ingesting,
    /// Finished and proven.
    Done,
}

/// Shared between the restore and whoever shows it. All values only grow.
#[derive(Debug, Default)]
pub struct Progress {
    stage: AtomicU8,
    plain_bytes_total: AtomicU64,
    plain_bytes: AtomicU64,
    ingested_bytes: AtomicU64,
    ingested_records: AtomicU64,
    target_touched: AtomicBool,
}

impl Progress {
    pub(super) fn enter(&self, stage: Stage, plan: &Plan) {
        self.plain_bytes_total.store(
            plan.write
                .plain_bytes
                .saturating_add(plan.default.plain_bytes),
            Relaxed,
        );
        self.stage.store(stage as u8, Relaxed);
    }

    pub(super) fn read(&self, plain_bytes: u64) {
        self.plain_bytes.fetch_add(plain_bytes, Relaxed);
    }

    pub(super) fn ingested(&self, bytes: u64, records: u64) {
        self.ingested_bytes.fetch_add(bytes, Relaxed);
        self.ingested_records.fetch_add(records, Relaxed);
    }

    pub(super) fn touch_target(&self) {
        self.target_touched.store(true, Relaxed);
    }

    /// Whether the target was asked to take anything. From then on it may hold a part of the data,
    /// also if no answer ever came.
    pub fn target_touched(&self) -> bool {
        self.target_touched.load(Relaxed)
    }

    /// Where the restore is.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Relaxed) {
            0 => Stage::Waiting,
            1 => Stage::Reading,
            2 => Stage::Ingesting,
            _ => Stage::Done,
        }
    }

    /// Plaintext bytes read and proven, and how many there are.
    pub fn plain_bytes(&self) -> (u64, u64) {
        (
            self.plain_bytes.load(Relaxed),
            self.plain_bytes_total.load(Relaxed),
        )
    }

    /// Bytes of keys and values, and records, that the target took.
    pub fn ingested_amount(&self) -> (u64, u64) {
        (
            self.ingested_bytes.load(Relaxed),
            self.ingested_records.load(Relaxed),
        )
    }
}
