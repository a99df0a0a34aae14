//! The row matcher of one subscription: prewrites meet their commits, records come out.
//!
//! A state machine. Live rows and rows of the initial scan interleave, a version can come
//! both ways, and a live commit can come before the scanned prewrite that carries its value; so
//! everything is keyed by (key, start_ts) and whatever cannot be decided before the end of the
//! scan is put aside until then. A commit that cannot be matched afterwards is an error: the
//! subscription is ended and the range scanned again, which delivers the version as committed.
//!
//! The rows of an event go through in two steps: [`Matcher::stage`] copies what has to be kept
//! into one block of the pool, since a message also carries old values and is freed at once;
//! [`Matcher::advance`] applies the rules and can stop when enough records came out, because a few
//! commits can complete far more bytes than they have. Owned by [`super::feed::Feed`], called on
//! the reader's task.

use std::collections::VecDeque;
use std::mem::size_of;
use std::ops::Range;
use std::sync::Arc;

use pitr_budget::spill::SpillError;
use pitr_format::record::RecordError;
use pitr_format::{Class, EncodedRange, Ts, key};
use pitr_proto::cdcpb::event::LogType;
use pitr_proto::cdcpb::event::row::OpType;

use super::pool::{Block, Layout, NoRoom, Pool, Room, Span};
use super::prewrites::{Entry, Prewrites};
use super::records::{Batch, Commit};
use super::wire::{self, Row, WireError};

/// Rows that are staged at a time.
const STAGE_ROWS: usize = 1024;
/// Bytes of rows that are staged at a time.
const STAGE_BYTES: usize = 128 << 10;

/// Why a subscription cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    /// After the scan a commit came whose prewrite never did.
    #[error("commit {commit_ts} of transaction {start_ts} came without its prewrite")]
    MissingPrewrite {
        /// Start ts of the row.
        start_ts: Ts,
        /// Commit ts of the row.
        commit_ts: Ts,
    },
    /// Scan and live rows gave two values for one version and nothing tells which is newer.
    #[error("transaction {start_ts} came with two values before the scan ended")]
    TwoValues {
        /// Start ts of the rows.
        start_ts: Ts,
    },
    /// Before the scan ended a commit met a prewrite, both without a value: old servers repeat the
    /// row of a rewritten lock without its long value, so this may be an empty value or a missing one.
    #[error("transaction {start_ts} came without a value before the scan ended")]
    DoubtfulValue {
        /// Start ts of the rows.
        start_ts: Ts,
    },
    /// A row lacks what its type must have.
    #[error("row of type {kind} has no {what}")]
    Malformed {
        /// `LogType` of the row.
        kind: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// The rows cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A row is too long for any record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A value that was moved to disk did not come back.
    #[error("a value that waits for its commit is lost: {0}")]
    Lost(String),
    /// Memory and disk for unfinished transactions are full.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

impl MatchError {
    /// A new subscription reads the truth from the store; later, if there was no room.
    pub fn class(&self) -> Class {
        match self {
            MatchError::NoRoom(_) => Class::Retry,
            _ => Class::Refresh,
        }
    }
}

impl From<SpillError> for MatchError {
    fn from(error: SpillError) -> Self {
        MatchError::Lost(error.to_string())
    }
}

/// What has to wait for the end of the scan.
#[derive(Debug)]
struct Aside {
    block: Arc<Block>,
    key: Span,
    start_ts: Ts,
    kind: AsideKind,
}

#[derive(Debug)]
enum AsideKind {
    Commit {
        commit_ts: Ts,
        delete: bool,
        value: Span,
        txn_source: u64,
    },
    /// Rolled back or committed already: a prewrite that the scan still delivers is dead.
    Over,
}

/// A row with what was kept of it.
#[derive(Debug)]
struct StagedRow {
    row: Row,
    kind: LogType,
    key: Span,
    value: Span,
}

impl StagedRow {
    /// Copies what has a place, in the order in which the places were given.
    fn copy_kept(&self, rows: &[u8], keys: &mut Vec<u8>, values: &mut Vec<u8>) {
        if self.key.len > 0 {
            keys.extend_from_slice(&rows[self.row.key.clone()]);
        }
        if self.value.len > 0 {
            values.extend_from_slice(&rows[self.row.value.clone()]);
        }
    }
}

/// Rows on their way through a matcher; reused from event to event.
#[derive(Debug, Default)]
pub(super) struct Stage {
    rows: Vec<StagedRow>,
    next: usize,
    block: Option<Arc<Block>>,
    /// For the encoded form of a key.
    encoded: Vec<u8>,
}

impl Stage {
    /// Whether every staged row was applied.
    pub fn is_done(&self) -> bool {
        self.next >= self.rows.len()
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.next = 0;
        self.block = None;
    }
}

/// How far [`Matcher::advance`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All staged rows are applied.
    Done,
    /// Enough records came out; go on later.
    Enough,
    /// The scan is complete; go on with the rows behind.
    Initialized,
}

/// State of one subscription.
#[derive(Debug)]
pub(super) struct Matcher {
    /// Rows outside are dropped; `None` = everything the subscription delivers is wanted.
    wanted: Option<Box<[EncodedRange]>>,
    initialized: bool,
    prewrites: Prewrites,
    aside: VecDeque<Aside>,
    /// For `aside`, whose blocks are counted by themselves.
    room: Room,
    held: usize,
}

impl Matcher {
    /// A matcher for a new subscription of `region` for a task with the ranges `wanted`.
    pub fn new(region: &EncodedRange, wanted: &[EncodedRange], pool: &Pool) -> Self {
        let parts = wanted.iter().filter_map(|range| range.intersect(region));
        let parts: Box<[_]> = parts.collect();
        let covered = parts.first() == Some(region);
        Matcher {
            wanted: (!covered).then_some(parts),
            initialized: false,
            prewrites: Prewrites::new(pool),
            aside: VecDeque::new(),
            room: pool.nothing(),
            held: 0,
        }
    }

    /// Whether the scan is complete.
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// Bytes kept for transactions that are not finished, in memory or on disk.
    pub fn held(&self) -> usize {
        self.prewrites.held() + self.held
    }

    /// Reads rows from `at` on and copies what has to be kept of them. Nothing is staged before.
    /// After an error nothing is staged and `at` is where it was.
    pub fn stage(
        &mut self,
        rows: &[u8],
        at: &mut usize,
        stage: &mut Stage,
        pool: &mut Pool,
    ) -> Result<(), MatchError> {
        stage.clear();
        let mut behind = *at;
        let mut initialized = self.initialized;
        let (mut keys, mut values, mut keeps) = (Layout::default(), Layout::default(), false);
        while stage.rows.len() < STAGE_ROWS
            && behind - *at < STAGE_BYTES
            && let Some(row) = wire::next_row(rows, &mut behind)?
        {
            let kind = LogType::try_from(row.kind).unwrap_or(LogType::Unknown);
            initialized |= kind == LogType::Initialized;
            // A command with nothing but a default-CF put has no key.
            let idle = kind == LogType::Unknown;
            let key = &rows[row.key.clone()];
            if idle || (kind != LogType::Initialized && !self.wants(key, &mut stage.encoded)) {
                continue;
            }
            let (keep_key, keep_value) = match kind {
                LogType::Prewrite => (true, true),
                LogType::Commit => (!initialized, !initialized),
                LogType::Rollback => (!initialized, false),
                _ => (false, false),
            };
            keeps |= keep_key;
            let place = |keep: bool, layout: &mut Layout, bytes: &Range<usize>| match keep {
                true => layout.place(bytes.len()),
                false => Span::default(),
            };
            stage.rows.push(StagedRow {
                kind,
                key: place(keep_key, &mut keys, &row.key),
                value: place(keep_value, &mut values, &row.value),
                row,
            });
        }
        if keeps {
            let kept = pool.keep(keys, values, |keys, values| {
                for staged in &stage.rows {
                    staged.copy_kept(rows, keys, values);
                }
            });
            stage.block = Some(kept.inspect_err(|_| stage.rows.clear())?);
        }
        *at = behind;
        Ok(())
    }

    /// Applies staged rows until `enough` bytes of records came out. After [`MatchError::NoRoom`]
    /// it can be called again when there is room; after any other error never.
    pub fn advance(
        &mut self,
        rows: &[u8],
        stage: &mut Stage,
        pool: &mut Pool,
        out: &mut Batch,
        enough: usize,
    ) -> Result<Step, MatchError> {
        while let Some(staged) = stage.rows.get(stage.next) {
            if out.bytes() >= enough {
                return Ok(Step::Enough);
            }
            if staged.kind == LogType::Initialized {
                let before = self.initialized;
                if !self.finish_scan(pool, out, enough)? {
                    return Ok(Step::Enough);
                }
                stage.next += 1;
                if !before {
                    return Ok(Step::Initialized);
                }
                continue;
            }
            self.apply(rows, staged, stage.block.as_ref(), pool, out)?;
            stage.next += 1;
        }
        Ok(Step::Done)
    }

    fn apply(
        &mut self,
        rows: &[u8],
        staged: &StagedRow,
        block: Option<&Arc<Block>>,
        pool: &mut Pool,
        out: &mut Batch,
    ) -> Result<(), MatchError> {
        let row = &staged.row;
        let (key, value) = (&rows[row.key.clone()], &rows[row.value.clone()]);
        match (staged.kind, block) {
            (LogType::Prewrite, Some(block)) => self.prewrite(key, value, staged, block, pool),
            (LogType::Commit, block) => self.commit(key, value, staged, block, pool, out),
            (LogType::Rollback, block) => self.rollback(key, staged, block, pool),
            (LogType::Committed, _) => {
                let commit = commit_of(key, row, "COMMITTED")?;
                match is_delete(row, "COMMITTED")? {
                    true => out.delete(&commit)?,
                    false => out.put(&commit, value)?,
                }
                Ok(())
            }
            // Not staged.
            _ => Ok(()),
        }
    }

    fn wants(&self, key: &[u8], encoded: &mut Vec<u8>) -> bool {
        let Some(wanted) = &self.wanted else {
            return true;
        };
        encoded.clear();
        key::append_encoded(key, encoded);
        wanted.iter().any(|range| range.contains(encoded))
    }

    fn prewrite(
        &mut self,
        key: &[u8],
        value: &[u8],
        staged: &StagedRow,
        block: &Arc<Block>,
        pool: &mut Pool,
    ) -> Result<(), MatchError> {
        let row = &staged.row;
        is_delete(row, "PREWRITE")?;
        let start_ts = Ts::new(row.start_ts);
        let entry = Entry {
            block: block.clone(),
            key: staged.key,
            value: staged.value,
            start_ts,
            generation: row.generation,
            doubtful: false,
        };
        // One key has one lock at a time and live rows come in raft order: after the scan an entry
        // of another transaction was rolled back without a row and is dead.
        let alone = self.initialized;
        let Some(entry) = self.prewrites.add(key, entry, alone, pool)? else {
            return Ok(());
        };
        let Some(old) = self.prewrites.find(key, start_ts) else {
            return Ok(());
        };
        if value.is_empty() || row.generation < old.generation {
            return Ok(());
        }
        let mut doubtful = false;
        if !self.initialized {
            let same = row.generation != old.generation
                || old.value.len == 0
                || is_value(old, value, pool)?;
            doubtful = old.doubtful || !same;
        }
        let entry = Entry { doubtful, ..entry };
        self.prewrites.replace(key, entry);
        Ok(())
    }

    fn commit(
        &mut self,
        key: &[u8],
        value: &[u8],
        staged: &StagedRow,
        block: Option<&Arc<Block>>,
        pool: &mut Pool,
        out: &mut Batch,
    ) -> Result<(), MatchError> {
        let commit = commit_of(key, &staged.row, "COMMIT")?;
        let delete = is_delete(&staged.row, "COMMIT")?;
        if !self.initialized {
            let ready = self
                .prewrites
                .find(key, commit.start_ts)
                .is_some_and(|p| p.value.len > 0 && p.generation == 0 && !p.doubtful);
            let kind = match ready {
                true => AsideKind::Over,
                false => AsideKind::Commit {
                    commit_ts: commit.commit_ts,
                    delete,
                    value: staged.value,
                    txn_source: commit.txn_source,
                },
            };
            self.put_aside(staged, block, kind, pool)?;
            if !ready {
                return Ok(());
            }
        }
        let Some(entry) = self.prewrites.take(key, commit.start_ts) else {
            return Err(MatchError::MissingPrewrite {
                start_ts: commit.start_ts,
                commit_ts: commit.commit_ts,
            });
        };
        emit(&commit, delete, value, &entry, pool, out)
    }

    fn rollback(
        &mut self,
        key: &[u8],
        staged: &StagedRow,
        block: Option<&Arc<Block>>,
        pool: &mut Pool,
    ) -> Result<(), MatchError> {
        if self.initialized {
            self.prewrites.take(key, Ts::new(staged.row.start_ts));
            return Ok(());
        }
        self.put_aside(staged, block, AsideKind::Over, pool)
    }

    fn put_aside(
        &mut self,
        staged: &StagedRow,
        block: Option<&Arc<Block>>,
        kind: AsideKind,
        pool: &mut Pool,
    ) -> Result<(), MatchError> {
        // Staged as kept, since the scan is not over.
        let Some(block) = block else {
            return Ok(());
        };
        if self.aside.len() == self.aside.capacity() {
            let more = self.aside.capacity().max(4);
            pool.grow(&mut self.room, more * size_of::<Aside>())?;
            self.aside.reserve_exact(more);
        }
        self.held += size_of::<Aside>() + (staged.key.len + staged.value.len) as usize;
        self.aside.push_back(Aside {
            block: block.clone(),
            key: staged.key,
            start_ts: Ts::new(staged.row.start_ts),
            kind,
        });
        Ok(())
    }

    /// INITIALIZED: what was put aside is decided now; false if that is not done yet.
    fn finish_scan(
        &mut self,
        pool: &mut Pool,
        out: &mut Batch,
        enough: usize,
    ) -> Result<bool, MatchError> {
        while let Some(aside) = self.aside.pop_front() {
            self.decide(&aside, pool, out)?;
            if out.bytes() >= enough {
                return Ok(false);
            }
        }
        self.initialized = true;
        self.aside = VecDeque::new();
        self.room.shrink_to(0);
        self.held = 0;
        Ok(true)
    }

    /// A commit without a prewrite needs nothing: it was in the snapshot, and the scan delivered
    /// the version as COMMITTED.
    fn decide(
        &mut self,
        aside: &Aside,
        pool: &mut Pool,
        out: &mut Batch,
    ) -> Result<(), MatchError> {
        let key = aside.block.key(aside.key);
        let Some(entry) = self.prewrites.take(key, aside.start_ts) else {
            return Ok(());
        };
        let AsideKind::Commit {
            commit_ts,
            delete,
            value,
            txn_source,
        } = aside.kind
        else {
            return Ok(());
        };
        if !delete && value.len == 0 && entry.value.len == 0 {
            return Err(MatchError::DoubtfulValue {
                start_ts: aside.start_ts,
            });
        }
        let commit = Commit {
            key,
            start_ts: aside.start_ts,
            commit_ts,
            txn_source,
        };
        let mut buffer = Vec::new();
        let shared = pool.value(&aside.block, value, &mut buffer)?;
        let value = shared.as_deref().unwrap_or(&buffer);
        emit(&commit, delete, value, &entry, pool, out)
    }
}

/// Whether the entry's value is `value`.
fn is_value(entry: &Entry, value: &[u8], pool: &mut Pool) -> Result<bool, MatchError> {
    if entry.value.len as usize != value.len() {
        return Ok(false);
    }
    let mut buffer = Vec::new();
    let shared = entry.value(pool, &mut buffer)?;
    Ok(shared.as_deref().unwrap_or(&buffer) == value)
}

/// The records of a commit that met its prewrite.
fn emit(
    commit: &Commit<'_>,
    delete: bool,
    value: &[u8],
    entry: &Entry,
    pool: &mut Pool,
    out: &mut Batch,
) -> Result<(), MatchError> {
    match (delete, value.is_empty(), entry.value.len == 0) {
        (true, _, _) => out.delete(commit)?,
        // The write record had a short value, an empty one included.
        (false, false, _) | (false, true, true) => out.put(commit, value)?,
        (false, true, false) if entry.doubtful => {
            return Err(MatchError::TwoValues {
                start_ts: commit.start_ts,
            });
        }
        (false, true, false) => out.put_long(commit, |buffer| {
            if let Some(shared) = entry.value(pool, buffer)? {
                buffer.extend_from_slice(&shared);
            }
            Ok::<_, MatchError>(())
        })?,
    }
    Ok(())
}

fn commit_of<'a>(key: &'a [u8], row: &Row, kind: &'static str) -> Result<Commit<'a>, MatchError> {
    if row.commit_ts == 0 {
        return Err(MatchError::Malformed {
            kind,
            what: "commit_ts",
        });
    }
    Ok(Commit {
        key,
        start_ts: Ts::new(row.start_ts),
        commit_ts: Ts::new(row.commit_ts),
        txn_source: row.txn_source,
    })
}

fn is_delete(row: &Row, kind: &'static str) -> Result<bool, MatchError> {
    match OpType::try_from(row.op) {
        Ok(OpType::Put) => Ok(false),
        Ok(OpType::Delete) => Ok(true),
        Ok(OpType::Unknown) | Err(_) => Err(MatchError::Malformed {
            kind,
            what: "known operation",
        }),
    }
}

#[cfg(test)]
#[path = "matcher_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "matcher_model_tests.rs"]
mod model_tests;
