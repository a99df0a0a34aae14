//! What a restore reads: a function of the archive's metadata alone, so that it can be printed and
//! checked before a byte moves.
//!
//! Chosen are put slices that overlap the window and the ranges: of `write` those with
//! max_ts > start and min_ts ≤ T; of `default` those with max_ts ≥ shift ts and min_ts ≤ T, where
//! the shift ts is the smallest `min_begin_ts_in_default_cf` of the chosen write slices, because a
//! transaction that committed inside the window may have written its values before it (BR
//! `br/pkg/stream/stream_metas.go` UpdateShiftTS). A value of 0 means "unknown": everything is
//! read. Delete slices hold nothing that a restore needs (see `filter`).
//!
//! Metas are read one after the other; of each, only the chosen slices stay, in a compact form that
//! is reserved from the memory budget (a quarter of it at most).

mod choice;
mod packed;
mod reads;

use std::fmt;

use futures::{StreamExt, TryStreamExt};
use pitr_budget::Reservation;
use pitr_format::{Cf, Class, EncodedRange, Ts};
use pitr_proto::backup::DataFileInfo;
use pitr_storage::{ObjectInfo, StorageError};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::archive::{Archive, ArchiveError, ArchiveInfo, MetaObject, list, read_one};
use crate::damage::Damage;
use choice::Choice;
use packed::Amounts;
pub use packed::Reads;
pub use reads::{Read, ReadLimits, coalesce};

/// Metas read at once, if the budget has room for them.
const METAS_AT_ONCE: usize = 32;
/// What a meta takes in memory, as a multiple of its bytes: itself, and decoded.
const DECODED: u64 = 4;
/// Bytes of a permit of their share.
const SHARE_UNIT: u64 = 1 << 10;

/// What to restore.
#[derive(Clone, Debug)]
pub struct Window {
    /// Commit timestamps above this one; the archive's own start if `None`.
    pub start: Option<Ts>,
    /// Commit timestamps up to and including this one (T).
    pub restored: Ts,
    /// Encoded source ranges; empty = everything.
    pub ranges: Vec<EncodedRange>,
    /// Restore although the archive does not prove that its ranges were empty at its start: only
    /// the changes since then arrive.
    pub log_only: bool,
}

/// Why this archive or this window cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// `backupmeta` is missing.
    #[error(
        "archive {uri} has no `backupmeta` object: it was not begun by `log start`, so its start \
         and its cluster are unknown; `verify data` can still check it"
    )]
    NoBackupMeta {
        /// The archive.
        uri: String,
    },
    /// No readable `.ts` object.
    #[error(
        "archive {uri} has no checkpoint (`v1/global_checkpoint/*.ts`): nothing says up to which \
         time it is complete; wait for the first checkpoint of the log task"
    )]
    NoCheckpoint {
        /// The archive.
        uri: String,
    },
    /// T or the start lies outside of what the archive holds.
    #[error("{what} {asked} is outside of what the archive holds: {min} to {max}")]
    OutsideWindow {
        /// "restored-ts" or "start-ts".
        what: &'static str,
        /// The ts asked for.
        asked: Ts,
        /// Smallest ts possible.
        min: Ts,
        /// Largest ts possible.
        max: Ts,
    },
    /// Nothing proves that the ranges were empty when the log began.
    #[error(
        "the archive holds changes only since {start}, and nothing proves that its ranges were \
         empty then: a restore needs a base snapshot, or `--log-only` to restore the changes alone"
    )]
    NotProvenEmpty {
        /// Start of the log.
        start: Ts,
    },
    /// A form of archive that is not read.
    #[error("{object}: {what}")]
    Unsupported {
        /// The object.
        object: String,
        /// What is not supported.
        what: &'static str,
    },
    /// Metadata is damaged.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The chosen slices are more than the memory budget can hold.
    #[error(
        "the slices to be read do not fit into {most} bytes, a quarter of a memory budget of \
         {limit} ({slices} do); give the restore more memory, or choose an earlier time or fewer \
         ranges"
    )]
    TooLittleMemory {
        /// Slices that fit.
        slices: usize,
        /// Most bytes for them.
        most: u64,
        /// The whole budget.
        limit: u64,
    },
}

impl PlanError {
    /// What to do about it: only the missing checkpoint may come by itself, or the storage back.
    pub fn class(&self) -> Class {
        match self {
            PlanError::NoCheckpoint { .. } => Class::Retry,
            PlanError::Storage(e) => e.class(),
            _ => Class::Permanent,
        }
    }
}

impl From<ArchiveError> for PlanError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Damage(damage) => damage.into(),
            ArchiveError::Storage(error) => error.into(),
            ArchiveError::NotALog { uri, error } => Damage::new(uri, error).into(),
        }
    }
}

/// A slice that is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Object.
    pub object: String,
    /// Column family.
    pub cf: Cf,
    /// Its metadata.
    pub info: DataFileInfo,
}

/// Number and size of slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Slices.
    pub slices: u64,
    /// Records.
    pub records: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Bytes after decompression.
    pub plain_bytes: u64,
}

impl Amount {
    fn add(&mut self, slice: impl Into<Amounts>) {
        let slice = slice.into();
        self.slices += 1;
        // Numbers from outside: a sum that does not fit is only shown, never relied on.
        let entries = slice.entries.max(0) as u64;
        self.records = self.records.saturating_add(entries);
        self.stored_bytes = self.stored_bytes.saturating_add(slice.stored);
        self.plain_bytes = self.plain_bytes.saturating_add(slice.plain);
    }
}

/// Slices that are not read, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Wholly outside the window of their column family.
    pub by_window: Amount,
    /// Wholly outside the ranges.
    pub by_range: Amount,
    /// Deletes of column-family keys.
    pub deletes: Amount,
}

/// What a restore does, before it does it. `Display` prints it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The archive.
    pub uri: String,
    /// Commit timestamps above this one.
    pub start: Ts,
    /// Smallest start ts of a value that a write record of the window may refer to; zero = unknown.
    pub shift: Ts,
    /// Commit timestamps up to this one.
    pub restored: Ts,
    /// Encoded source ranges; empty = everything.
    pub ranges: Vec<EncodedRange>,
    /// Range requests, in the order of object names and offsets.
    pub reads: Reads,
    /// Slices of `write` that are read.
    pub write: Amount,
    /// Slices of `default` that are read.
    pub default: Amount,
    /// Slices that are not.
    pub skipped: Skipped,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "archive:  {}", self.uri)?;
        writeln!(
            f,
            "window:   {} < commit ts <= {}",
            self.start, self.restored
        )?;
        writeln!(f, "shift ts: {}", self.shift)?;
        let mut row = |name: &str, a: &Amount| {
            let Amount {
                slices,
                records,
                stored_bytes,
                plain_bytes,
            } = a;
            writeln!(
                f,
                "{name:<9} {slices} slices, {records} records, {stored_bytes} bytes ({plain_bytes} plain)"
            )
        };
        row("write:", &self.write)?;
        row("default:", &self.default)?;
        row("not read:", &self.skipped.by_window)?;
        row(" by range", &self.skipped.by_range)?;
        row(" deletes:", &self.skipped.deletes)?;
        write!(
            f,
            "requests: {} to {} objects",
            self.reads.len(),
            self.reads.objects()
        )
    }
}

/// Reads all metas and chooses the slices of `window`, or says why there can be no restore.
pub async fn plan(archive: &Archive, window: &Window) -> Result<Plan, PlanError> {
    let mut archive = archive.clone();
    loop {
        let start = admit(&archive.info, window)?;
        let plan = choose_all(&archive, Choice::new(&archive, window, start)).await;
        if !archive.raise_safepoint().await? {
            return plan;
        }
        // A truncation has begun meanwhile, and what it removes may be missing from the plan.
    }
}

/// What a meta takes of the share of metas, and of the budget.
type Held<'a> = (Option<SemaphorePermit<'a>>, Reservation);

async fn choose_all(archive: &Archive, mut choice: Choice) -> Result<Plan, PlanError> {
    let metas = list(archive.storage()).await?;
    // Half of the budget: what is chosen has a quarter, whoever comes first.
    let half = archive.env().budget.limit() / 2 / SHARE_UNIT;
    let half = u32::try_from(half).unwrap_or(u32::MAX).max(1);
    let share = Semaphore::new(half as usize);
    let mut metas = futures::stream::iter(metas)
        .map(|object| read_meta(archive, object, &share, half))
        .buffer_unordered(METAS_AT_ONCE);
    let mut damaged: Option<Damage> = None;
    while let Some((meta, held)) = metas.try_next().await? {
        match meta.content {
            Ok(content) => choice.add(&content)?,
            // Of several, the first is named, whichever was read first.
            Err(damage) => damaged = Some(damaged.map_or(damage.clone(), |d| d.min(damage))),
        }
        drop(held);
    }
    match damaged {
        Some(damage) => Err(damage.into()),
        None => choice.finish(),
    }
}

async fn read_meta<'a>(
    archive: &Archive,
    object: ObjectInfo,
    share: &'a Semaphore,
    most: u32,
) -> Result<(MetaObject, Held<'a>), StorageError> {
    let (storage, env) = (archive.storage().as_ref(), archive.env());
    let bytes = object.size.saturating_mul(DECODED);
    let units = u32::try_from(bytes / SHARE_UNIT + 1)
        .unwrap_or(u32::MAX)
        .min(most);
    // Nobody closes the semaphore.
    let permit = share.acquire_many(units).await.ok();
    let bytes = bytes.min(env.budget.limit() / 2);
    let memory = env.budget.reserve(bytes).await;
    let meta = read_one(storage, env.clock.as_ref(), object.path).await?;
    Ok((meta, (permit, memory)))
}

/// The start of the window, if archive and window allow a restore.
fn admit(info: &ArchiveInfo, window: &Window) -> Result<Ts, PlanError> {
    let uri = || info.uri.clone();
    let meta = info
        .backup_meta
        .as_ref()
        .ok_or_else(|| PlanError::NoBackupMeta { uri: uri() })?;
    let max = info
        .log_max
        .ok_or_else(|| PlanError::NoCheckpoint { uri: uri() })?;
    if let Some(first) = info.migrations.first() {
        return Err(PlanError::Unsupported {
            object: first.clone(),
            what: "another tool changed the archive by a migration (truncation with clean-up, \
                   compaction, or a restore into the source): the log alone may lack records, \
                   and migrations are not read",
        });
    }
    let min = info.log_min();
    let start = window.start.unwrap_or(min);
    let asked = [("restored-ts", window.restored), ("start-ts", start)];
    for (what, asked) in asked {
        if asked < min || asked > max {
            return Err(PlanError::OutsideWindow {
                what,
                asked,
                min,
                max,
            });
        }
    }
    if start > window.restored {
        let (asked, max) = (start, window.restored);
        return Err(PlanError::OutsideWindow {
            what: "start-ts",
            asked,
            min,
            max,
        });
    }
    let whole = start == meta.start_ts && info.proven_empty();
    if !whole && !window.log_only {
        return Err(PlanError::NotProvenEmpty { start });
    }
    Ok(start)
}
