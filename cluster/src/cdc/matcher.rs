//! The row matcher of one subscription: prewrites meet their commits, records come out.
//!
//! A pure state machine. Live rows and rows of the initial scan interleave, a version can come
//! both ways, and a live commit can come before the scanned prewrite that carries its value; so
//! everything is keyed by (key, start_ts) and whatever cannot be decided before the end of the
//! scan is put aside until then. A commit that cannot be matched afterwards is an error: the
//! subscription is ended and the range scanned again, which delivers the version as committed.
//!
//! Nothing that is kept shares memory with the message it came in: a message carries old values
//! and is freed at once. Owned by [`super::feed::Feed`], called on the reader's task.

use std::collections::HashMap;

use bytes::Bytes;
use pitr_format::{Class, EncodedKey, EncodedRange, KvRecord, Ts};
use pitr_proto::cdcpb::event::row::OpType;
use pitr_proto::cdcpb::event::{LogType, Row};

use super::records::Commit;

/// Memory of one kept entry besides key and value: map slot, vector and entry.
const ENTRY_OVERHEAD: usize = 128;

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
}

impl MatchError {
    /// A new subscription reads the truth from the store.
    pub fn class(&self) -> Class {
        Class::Refresh
    }
}

/// What a prewrite left.
#[derive(Debug)]
struct Prewrite {
    start_ts: Ts,
    value: Bytes,
    generation: u64,
    /// Another value came for the same version before the end of the scan.
    doubtful: bool,
}

/// What has to wait for the end of the scan.
#[derive(Debug)]
struct Aside {
    key: Bytes,
    start_ts: Ts,
    kind: AsideKind,
}

#[derive(Debug)]
enum AsideKind {
    Commit {
        commit_ts: Ts,
        delete: bool,
        value: Bytes,
        txn_source: u64,
    },
    /// Rolled back or committed already: a prewrite that the scan still delivers is dead.
    Over,
}

/// State of one subscription.
#[derive(Debug)]
pub struct Matcher {
    /// Rows outside are dropped; `None` = everything the subscription delivers is wanted.
    wanted: Option<Vec<EncodedRange>>,
    initialized: bool,
    prewrites: HashMap<Bytes, Vec<Prewrite>>,
    aside: Vec<Aside>,
    memory: usize,
}

impl Matcher {
    /// A matcher for a new subscription of `region` for a task with the ranges `wanted`.
    pub fn new(region: &EncodedRange, wanted: &[EncodedRange]) -> Self {
        let parts = wanted.iter().filter_map(|range| range.intersect(region));
        let parts: Vec<_> = parts.collect();
        let covered = parts.first() == Some(region);
        Matcher {
            wanted: (!covered).then_some(parts),
            initialized: false,
            prewrites: HashMap::new(),
            aside: Vec::new(),
            memory: 0,
        }
    }

    /// Whether the scan is complete.
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// Bytes kept for transactions that are not finished.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Takes the rows of one event and appends the records they complete. Returns true if the
    /// scan ended in it. After an error the matcher must not be used again.
    pub fn apply(&mut self, rows: Vec<Row>, out: &mut Vec<KvRecord>) -> Result<bool, MatchError> {
        let before = self.initialized;
        for row in rows {
            self.apply_row(&row, out)?;
        }
        Ok(self.initialized != before)
    }

    fn apply_row(&mut self, row: &Row, out: &mut Vec<KvRecord>) -> Result<(), MatchError> {
        let kind = LogType::try_from(row.r#type).unwrap_or(LogType::Unknown);
        match kind {
            LogType::Initialized => self.finish_scan(out),
            // A command with nothing but a default-CF put: empty key.
            LogType::Unknown => Ok(()),
            _ if !self.wants(&row.key) => Ok(()),
            LogType::Prewrite => self.prewrite(row),
            LogType::Commit => self.commit(row, out),
            LogType::Rollback => {
                self.rollback(row);
                Ok(())
            }
            LogType::Committed => {
                let commit = commit_of(row, "COMMITTED")?;
                match is_delete(row, "COMMITTED")? {
                    true => commit.deleted(out),
                    false => commit.put(&row.value, out),
                }
                Ok(())
            }
        }
    }

    fn wants(&self, key: &[u8]) -> bool {
        let Some(wanted) = &self.wanted else {
            return true;
        };
        let encoded = EncodedKey::encode(key);
        wanted
            .iter()
            .any(|range| range.contains(encoded.as_bytes()))
    }

    fn prewrite(&mut self, row: &Row) -> Result<(), MatchError> {
        is_delete(row, "PREWRITE")?;
        let start_ts = Ts::new(row.start_ts);
        if self.initialized {
            // One key has one lock at a time and live rows come in raft order: an entry of
            // another transaction was rolled back without a row and is dead.
            self.forget_others(&row.key, start_ts);
        }
        let initialized = self.initialized;
        if let Some(old) = self.find(&row.key, start_ts) {
            if row.value.is_empty() || row.generation < old.generation {
                return Ok(());
            }
            let (old_len, new_len) = (old.value.len(), row.value.len());
            let conflict =
                !old.value.is_empty() && old.value != row.value && row.generation == old.generation;
            old.doubtful = !initialized && (old.doubtful || conflict);
            old.generation = row.generation;
            old.value = Bytes::copy_from_slice(&row.value);
            self.memory = self.memory + new_len - old_len;
            return Ok(());
        }
        let entry = Prewrite {
            start_ts,
            value: Bytes::copy_from_slice(&row.value),
            generation: row.generation,
            doubtful: false,
        };
        self.memory += ENTRY_OVERHEAD + row.key.len() + entry.value.len();
        match self.prewrites.get_mut(&row.key[..]) {
            Some(entries) => entries.push(entry),
            None => {
                let key = Bytes::copy_from_slice(&row.key);
                self.prewrites.insert(key, vec![entry]);
            }
        }
        Ok(())
    }

    fn commit(&mut self, row: &Row, out: &mut Vec<KvRecord>) -> Result<(), MatchError> {
        let commit = commit_of(row, "COMMIT")?;
        let delete = is_delete(row, "COMMIT")?;
        if !self.initialized {
            let ready = self
                .find(&row.key, commit.start_ts)
                .is_some_and(|p| !p.value.is_empty() && p.generation == 0 && !p.doubtful);
            let kind = match ready {
                true => AsideKind::Over,
                false => AsideKind::Commit {
                    commit_ts: commit.commit_ts,
                    delete,
                    value: Bytes::copy_from_slice(&row.value),
                    txn_source: row.txn_source,
                },
            };
            self.put_aside(&row.key, commit.start_ts, kind);
            if !ready {
                return Ok(());
            }
        }
        let Some(entry) = self.take(&row.key, commit.start_ts) else {
            return Err(MatchError::MissingPrewrite {
                start_ts: commit.start_ts,
                commit_ts: commit.commit_ts,
            });
        };
        emit(&commit, delete, &row.value, entry, out)
    }

    fn rollback(&mut self, row: &Row) {
        let start_ts = Ts::new(row.start_ts);
        if self.initialized {
            self.take(&row.key, start_ts);
        } else {
            self.put_aside(&row.key, start_ts, AsideKind::Over);
        }
    }

    fn put_aside(&mut self, key: &Bytes, start_ts: Ts, kind: AsideKind) {
        let value_len = match &kind {
            AsideKind::Commit { value, .. } => value.len(),
            AsideKind::Over => 0,
        };
        self.memory += ENTRY_OVERHEAD + key.len() + value_len;
        self.aside.push(Aside {
            key: Bytes::copy_from_slice(key),
            start_ts,
            kind,
        });
    }

    /// INITIALIZED: what was put aside is decided now.
    fn finish_scan(&mut self, out: &mut Vec<KvRecord>) -> Result<(), MatchError> {
        self.initialized = true;
        for aside in std::mem::take(&mut self.aside) {
            // A commit without a prewrite needs nothing: it was in the snapshot, and the scan
            // delivered the version as COMMITTED.
            let entry = self.take(&aside.key, aside.start_ts);
            let mut kept = ENTRY_OVERHEAD + aside.key.len();
            if let AsideKind::Commit {
                commit_ts,
                delete,
                value,
                txn_source,
            } = aside.kind
            {
                kept += value.len();
                if let Some(entry) = entry {
                    if !delete && value.is_empty() && entry.value.is_empty() {
                        return Err(MatchError::DoubtfulValue {
                            start_ts: aside.start_ts,
                        });
                    }
                    let commit = Commit {
                        key: &aside.key,
                        start_ts: aside.start_ts,
                        commit_ts,
                        txn_source,
                    };
                    emit(&commit, delete, &value, entry, out)?;
                }
            }
            self.memory -= kept;
        }
        Ok(())
    }

    fn find(&mut self, key: &[u8], start_ts: Ts) -> Option<&mut Prewrite> {
        let entries = self.prewrites.get_mut(key)?;
        entries.iter_mut().find(|e| e.start_ts == start_ts)
    }

    fn take(&mut self, key: &[u8], start_ts: Ts) -> Option<Prewrite> {
        let entries = self.prewrites.get_mut(key)?;
        let at = entries.iter().position(|e| e.start_ts == start_ts)?;
        let entry = entries.swap_remove(at);
        if entries.is_empty() {
            self.prewrites.remove(key);
        }
        self.memory -= ENTRY_OVERHEAD + key.len() + entry.value.len();
        Some(entry)
    }

    fn forget_others(&mut self, key: &[u8], start_ts: Ts) {
        let Some(entries) = self.prewrites.get_mut(key) else {
            return;
        };
        let mut freed = 0;
        entries.retain(|entry| {
            let keep = entry.start_ts == start_ts;
            if !keep {
                freed += ENTRY_OVERHEAD + key.len() + entry.value.len();
            }
            keep
        });
        if entries.is_empty() {
            self.prewrites.remove(key);
        }
        self.memory -= freed;
    }
}

/// The records of a commit that met its prewrite.
fn emit(
    commit: &Commit<'_>,
    delete: bool,
    value: &Bytes,
    entry: Prewrite,
    out: &mut Vec<KvRecord>,
) -> Result<(), MatchError> {
    match (delete, value.is_empty(), entry.value.is_empty()) {
        (true, _, _) => commit.deleted(out),
        // The write record had a short value, an empty one included.
        (false, false, _) | (false, true, true) => commit.put(value, out),
        (false, true, false) if entry.doubtful => {
            return Err(MatchError::TwoValues {
                start_ts: commit.start_ts,
            });
        }
        (false, true, false) => commit.put_long(entry.value, out),
    }
    Ok(())
}

fn commit_of<'a>(row: &'a Row, kind: &'static str) -> Result<Commit<'a>, MatchError> {
    if row.commit_ts == 0 {
        return Err(MatchError::Malformed {
            kind,
            what: "commit_ts",
        });
    }
    Ok(Commit {
        key: &row.key,
        start_ts: Ts::new(row.start_ts),
        commit_ts: Ts::new(row.commit_ts),
        txn_source: row.txn_source,
    })
}

fn is_delete(row: &Row, kind: &'static str) -> Result<bool, MatchError> {
    match OpType::try_from(row.op_type) {
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
