//! What a restore reads: pure over the archive's metadata, so that it can be printed and checked
//! before a byte moves.
//!
//! Chosen are put slices that overlap the window and the ranges: of `write` those with
//! max_ts > start and min_ts ≤ T; of `default` those with max_ts ≥ shift ts and min_ts ≤ T, where
//! the shift ts is the smallest `min_begin_ts_in_default_cf` of the chosen write slices, because a
//! transaction that committed inside the window may have written its values before it (BR
//! `br/pkg/stream/stream_metas.go` UpdateShiftTS). A value of 0 means "unknown": everything is
//! read. Delete slices hold nothing that a restore needs (see `filter`).

mod reads;

use std::collections::BTreeSet;
use std::fmt;

use pitr_format::{Cf, Class, EncodedRange, Ts};
use pitr_proto::backup::{DataFileInfo, FileType};

use crate::archive::{Archive, ArchiveInfo};
use crate::damage::Damage;
pub use reads::{Read, ReadLimits, coalesce};

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
}

impl PlanError {
    /// What to do about it: only the missing checkpoint may come by itself.
    pub fn class(&self) -> Class {
        match self {
            PlanError::NoCheckpoint { .. } => Class::Retry,
            _ => Class::Permanent,
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
    fn add(&mut self, info: &DataFileInfo) {
        self.slices += 1;
        // Numbers from outside: a sum that does not fit is only shown, never relied on.
        let entries = info.number_of_entries.max(0) as u64;
        self.records = self.records.saturating_add(entries);
        self.stored_bytes = self.stored_bytes.saturating_add(info.range_length);
        self.plain_bytes = self.plain_bytes.saturating_add(info.length);
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
    pub reads: Vec<Read>,
    /// Slices of `write` that are read.
    pub write: Amount,
    /// Slices of `default` that are read.
    pub default: Amount,
    /// Slices that are not.
    pub skipped: Skipped,
    /// Objects that are read.
    pub objects: u64,
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
            self.objects
        )
    }
}

/// Chooses the slices of `window`, or says why there can be no restore.
pub fn plan(archive: &Archive, window: &Window) -> Result<Plan, PlanError> {
    let start = admit(&archive.info, window)?;
    let slices = archive.slices()?;
    let mut plan = Plan {
        uri: archive.info.uri.clone(),
        start,
        shift: shift_ts(&slices, start, window.restored),
        restored: window.restored,
        ranges: window.ranges.clone(),
        reads: Vec::new(),
        write: Amount::default(),
        default: Amount::default(),
        skipped: Skipped::default(),
        objects: 0,
    };
    let mut chosen = Vec::new();
    for slice in slices {
        if let Some(slice) = plan.choose(slice)? {
            chosen.push(slice);
        }
    }
    plan.objects = chosen
        .iter()
        .map(|s| &s.object)
        .collect::<BTreeSet<_>>()
        .len() as u64;
    plan.reads = coalesce(chosen, &ReadLimits::default())?;
    Ok(plan)
}

impl Plan {
    fn choose(&mut self, slice: Slice) -> Result<Option<Slice>, PlanError> {
        let info = &slice.info;
        let outside = match slice.cf {
            Cf::Write => info.max_ts <= self.start.get(),
            Cf::Default => info.max_ts < self.shift.get(),
        };
        if is_delete(info) {
            self.skipped.deletes.add(info);
        } else if outside || info.min_ts > self.restored.get() {
            self.skipped.by_window.add(info);
        } else if !overlaps(info, &self.ranges) {
            self.skipped.by_range.add(info);
        } else if info.file_encryption_info.is_some() {
            let what = "encrypted log files cannot be read";
            return Err(PlanError::Unsupported {
                object: slice.object,
                what,
            });
        } else {
            match slice.cf {
                Cf::Write => self.write.add(info),
                Cf::Default => self.default.add(info),
            }
            return Ok(Some(slice));
        }
        Ok(None)
    }
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

fn shift_ts(slices: &[Slice], start: Ts, restored: Ts) -> Ts {
    slices
        .iter()
        .filter(|s| s.cf == Cf::Write && !is_delete(&s.info))
        .filter(|s| s.info.max_ts > start.get() && s.info.min_ts <= restored.get())
        .map(|s| Ts::new(s.info.min_begin_ts_in_default_cf))
        .min()
        .unwrap_or(start)
}

fn is_delete(info: &DataFileInfo) -> bool {
    info.r#type == FileType::Delete as i32
}

fn overlaps(info: &DataFileInfo, ranges: &[EncodedRange]) -> bool {
    let unknown = info.start_key.is_empty() && info.end_key.is_empty();
    let overlaps =
        |r: &EncodedRange| info.end_key >= r.start && (r.end.is_empty() || info.start_key < r.end);
    unknown || ranges.is_empty() || ranges.iter().any(overlaps)
}
