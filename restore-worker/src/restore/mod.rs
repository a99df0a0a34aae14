//! The driver: reads and sorts everything the plan names, then cuts and ingests it.
//!
//! Nothing is ingested before every slice was read and proved; so damage of an object leaves the
//! target untouched. The proof at the end: records read − filtered − duplicates = records written,
//! and the digest of what was selected equals the digest of what the target took.

mod ingest;
mod progress;
mod report;
mod select;

use std::path::PathBuf;
use std::sync::Arc;

use pitr_format::{Class, EncodedRange};
use pitr_storage::{SharedStorage, StorageError};

use crate::cut::{CutError, CutOptions};
use crate::damage::Damage;
use crate::env::Env;
use crate::fetch::FetchError;
use crate::merge::SortError;
use crate::plan::Plan;
use crate::regions::RegionTable;
use crate::rewrite::Rewrite;
use crate::sst::SstFactory;
use crate::target::{Target, TargetError};
pub use progress::{Progress, Stage};
pub use report::Report;

/// The smallest budget that a restore works with.
pub const MIN_MEMORY: u64 = 16 << 20;
/// More in flight does not make a restore faster.
const MAX_INFLIGHT: u32 = 256 << 20;

/// Bounds and choices of a restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// Where sort runs and SST files wait; needs about the plain size of the slices plus
    /// the size of the SST files of `ingests + 2` batches.
    pub temp_dir: PathBuf,
    /// Makes the SST files.
    pub sst: Arc<dyn SstFactory>,
    /// Optional replacement of a key prefix.
    pub rewrite: Rewrite,
    /// Clock, threads and randomness, and the budget that sort runs in memory and requests in
    /// flight reserve from.
    pub env: Env,
    /// Share of the sorters: bytes that they keep in memory, all together.
    pub sort_memory: usize,
    /// Share of requests in flight, with their plaintext; one request may exceed it alone.
    pub inflight_bytes: u32,
    /// Requests at once.
    pub fetches: usize,
    /// Largest plaintext of one slice that is accepted.
    pub max_slice_bytes: u64,
    /// Bytes of keys and values of one SST file.
    pub sst_bytes: u64,
    /// Bytes of keys and values of the files that are ingested together.
    pub batch_bytes: u64,
    /// Batches that are ingested at once.
    pub ingests: usize,
    /// Attempts of one read or of one ingest.
    pub attempts: u32,
}

impl RestoreOptions {
    /// Defaults for files made by `sst`. Of the budget of `env`, half is for the sorters and an
    /// eighth for requests in flight; the rest stays for what is cut, uploaded and merged at the
    /// same time. Others may use the budget too; the restore spills or waits when they leave no
    /// room.
    pub fn new(temp_dir: impl Into<PathBuf>, sst: Arc<dyn SstFactory>, env: Env) -> Self {
        let limit = env.budget.limit().max(MIN_MEMORY);
        RestoreOptions {
            temp_dir: temp_dir.into(),
            sst,
            rewrite: Rewrite::identity(),
            env,
            sort_memory: usize::try_from(limit / 2).unwrap_or(usize::MAX),
            inflight_bytes: u32::try_from(limit / 8)
                .unwrap_or(MAX_INFLIGHT)
                .min(MAX_INFLIGHT),
            fetches: 8,
            max_slice_bytes: 1 << 30,
            sst_bytes: 64 << 20,
            batch_bytes: 96 << 20,
            ingests: 4,
            attempts: 30,
        }
    }

    /// Defaults with RocksDB's own SST files.
    #[cfg(feature = "rocks")]
    pub fn rocks(temp_dir: impl Into<PathBuf>, env: Env) -> Self {
        let sst = Arc::new(crate::sst::rocks::RocksSstFactory::default());
        Self::new(temp_dir, sst, env)
    }
}

/// Why a restore stopped. Errors of the archive's objects, its storage and of sorting come before
/// the target is touched; all others may leave a part of the records in it.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The archive is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Sorting failed.
    #[error(transparent)]
    Sort(#[from] SortError),
    /// Records could not become SST files.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The target refused.
    #[error("the target refused: {0}")]
    Target(#[from] TargetError),
    /// The temporary directory cannot be used.
    #[error("temporary directory {path}: {source}; choose another one")]
    TempDir {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The memory budget is too small.
    #[error("{limit} bytes of memory are too few for a restore; give it at least {MIN_MEMORY}")]
    TooLittleMemory {
        /// What was given.
        limit: u64,
    },
    /// Others hold the memory budget, and do not give it back.
    #[error(
        "no {bytes} bytes became free in a memory budget of {limit}; give the restore more memory, \
         or stop what else uses the budget"
    )]
    MemoryInUse {
        /// Bytes needed.
        bytes: u64,
        /// Size of the budget.
        limit: u64,
    },
    /// The proof failed: do not use the target.
    #[error("the restore is not proven, do not use the target: {0}")]
    NotProven(String),
    /// A worker ended early.
    #[error("a worker of the restore ended early: {0}")]
    Worker(String),
}

impl RestoreError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            RestoreError::Damage(e) => e.class(),
            RestoreError::Storage(e) => e.class(),
            RestoreError::Sort(e) => e.class(),
            RestoreError::Cut(e) => e.class(),
            RestoreError::Target(e) => e.class(),
            RestoreError::MemoryInUse { .. } => Class::Retry,
            RestoreError::TempDir { .. }
            | RestoreError::TooLittleMemory { .. }
            | RestoreError::NotProven(_)
            | RestoreError::Worker(_) => Class::Permanent,
        }
    }
}

/// A piece of work that ended without a result.
fn lost(error: std::io::Error) -> RestoreError {
    RestoreError::Worker(error.to_string())
}

impl From<FetchError> for RestoreError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Damage(e) => e.into(),
            FetchError::Storage(e) => e.into(),
        }
    }
}

/// Runs `plan`. Cancelling the future stops it; what was ingested until then stays.
pub async fn restore(
    plan: &Plan,
    storage: SharedStorage,
    target: &dyn Target,
    options: RestoreOptions,
    progress: Arc<Progress>,
) -> Result<Report, RestoreError> {
    let env = &options.env;
    let limit = env.budget.limit();
    if limit < MIN_MEMORY {
        return Err(RestoreError::TooLittleMemory { limit });
    }
    let dir = tempfile::Builder::new()
        .prefix("pitr-restore-")
        .suffix(&env.random.uuid().to_string())
        .rand_bytes(0)
        .tempdir_in(&options.temp_dir)
        .map_err(|source| RestoreError::TempDir {
            path: options.temp_dir.clone(),
            source,
        })?;
    let mut report = Report::of(plan);
    progress.enter(Stage::Reading, plan);
    let sorted =
        select::select(plan, &storage, &options, dir.path(), &progress, &mut report).await?;
    progress.enter(Stage::Ingesting, plan);
    let ranges = target_ranges(plan, &options.rewrite);
    let regions = RegionTable::load(target, env.clock.as_ref(), &ranges, options.attempts).await?;
    let cut = CutOptions {
        factory: Arc::clone(&options.sst),
        random: Arc::clone(&env.random),
        dir: dir.path().to_owned(),
        sst_bytes: options.sst_bytes,
        batch_bytes: options.batch_bytes,
    };
    let ingest = ingest::Ingest {
        target,
        options: &options,
        cut,
        progress: &progress,
    };
    ingest.run(sorted, regions, &mut report).await?;
    report.prove().map_err(RestoreError::NotProven)?;
    progress.enter(Stage::Done, plan);
    Ok(report)
}

/// Encoded ranges of the target that a restore of `plan` writes to: they must be empty before.
pub fn target_ranges(plan: &Plan, rewrite: &Rewrite) -> Vec<EncodedRange> {
    if plan.ranges.is_empty() || !rewrite.is_identity() {
        return vec![rewrite.target_range(&EncodedRange::ALL)];
    }
    plan.ranges.clone()
}
