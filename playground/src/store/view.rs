//! The multi-version reading of one region at one point in time: locks, write records, values.
//!
//! Keys are encoded keys that [`View::key`] has found inside of the region. Source of the rules:
//! tikv/tikv `src/storage/mvcc/reader/{reader,point_getter}.rs`,
//! `components/txn_types/src/{lock,write}.rs`. Used by all reads and by the checks of all writes.

use std::sync::Arc;

use bytes::Bytes;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::kvrpcpb::{Context, IsolationLevel};
use pitr_proto::metapb::Region;
use pitr_restore_worker::engine::EngineCf;

use super::error::TxnError;
use super::lock::{LockKind, LockRecord};
use super::region::range_of;
use super::snapshot::{Cursor, Snapshot};

/// A region and a snapshot of the store.
pub(super) struct View<'s> {
    pub region: Arc<Region>,
    pub snapshot: Snapshot<'s>,
}

/// What the write column family knows about one transaction on one key.
#[derive(Debug)]
pub(super) enum TxnRecord {
    /// Its own commit or rollback record.
    Own { commit_ts: Ts, write: WriteRecord },
    /// The mark "overlapped rollback" on another transaction's commit record.
    OverlappedRollback,
    /// Nothing; a rollback would have to share the key of `overlapped`, if there is one.
    None { overlapped: Option<Overlapped> },
}

/// A commit record of another transaction whose commit ts is this transaction's start ts.
#[derive(Clone, Debug)]
pub(super) struct Overlapped {
    pub write: WriteRecord,
    /// Commit ts of the next newer change of the key, zero if there is none: rewriting the record
    /// must not bring it back when that newer change has been garbage-collected.
    pub gc_fence: Ts,
}

/// How a read treats locks.
pub(super) struct ReadRules<'a> {
    /// Reads see what was committed at or below.
    pub ts: Ts,
    /// Read committed: locks do not matter.
    ignore_locks: bool,
    /// Start ts of transactions that cannot commit at or below `ts`.
    bypass: &'a [u64],
    /// Start ts of transactions that are committed at or below `ts`, locks or not.
    access: &'a [u64],
}

impl<'a> ReadRules<'a> {
    pub fn new(ts: Ts, context: Option<&'a Context>) -> Self {
        let isolation = context.map_or(IsolationLevel::Si, |c| c.isolation_level());
        ReadRules {
            ts,
            ignore_locks: isolation == IsolationLevel::Rc,
            bypass: context.map_or(&[], |c| &c.resolved_locks),
            access: context.map_or(&[], |c| &c.committed_locks),
        }
    }
}

/// A value that a read found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub value: Bytes,
    /// Zero if the value is of a lock whose commit ts this store does not know.
    pub commit_ts: Ts,
}

impl<'s> View<'s> {
    /// Encodes a user key and makes sure that it lies inside of the region.
    pub fn key(&self, raw: &[u8]) -> Result<EncodedKey, TxnError> {
        let key = EncodedKey::encode(raw);
        if range_of(&self.region).contains(key.as_bytes()) {
            return Ok(key);
        }
        Err(TxnError::KeyOutOfRegion {
            key: key.into_bytes(),
            region: Box::new(Region::clone(&self.region)),
        })
    }

    /// The encoded range between two user keys, cut to the region. An empty bound is the
    /// region's; a start in front of the region is an error, since its keys would be missed.
    pub fn range(&self, start: &[u8], end: &[u8]) -> Result<EncodedRange, TxnError> {
        let region = range_of(&self.region);
        let bound = |raw: &[u8], or: &Bytes| match raw {
            [] => or.clone(),
            raw => EncodedKey::encode(raw).into_bytes(),
        };
        let asked = EncodedRange::new(bound(start, &region.start), bound(end, &region.end));
        let key = asked.start.clone();
        let (before, behind) = (
            key < region.start,
            !region.end.is_empty() && key > region.end,
        );
        if before || behind {
            let region = Box::new(Region::clone(&self.region));
            return Err(TxnError::KeyOutOfRegion { key, region });
        }
        let nothing = EncodedRange::new(key.clone(), key);
        Ok(asked.intersect(&region).unwrap_or(nothing))
    }

    /// The lock on a key.
    pub fn lock(&self, key: &EncodedKey) -> Result<Option<LockRecord>, TxnError> {
        let value = self.snapshot.get(EngineCf::Lock, key.as_bytes())?;
        value.map(|v| parse_lock(&v)).transpose()
    }

    /// The locks of a range that `wanted` accepts, at most `limit` (0 = all), in key order.
    pub fn locks(
        &self,
        range: &EncodedRange,
        limit: usize,
        wanted: impl Fn(&LockRecord) -> bool,
    ) -> Result<Vec<(EncodedKey, LockRecord)>, TxnError> {
        let mut out = Vec::new();
        let mut cursor = self.snapshot.cursor(EngineCf::Lock, range)?;
        let mut more = cursor.seek(&range.start)?;
        while let (true, Some(key), Some(value)) = (more, cursor.key(), cursor.value()) {
            let lock = parse_lock(value)?;
            if wanted(&lock) {
                out.push((EncodedKey::from_encoded(key.to_vec()), lock));
                if out.len() == limit {
                    break;
                }
            }
            more = cursor.advance()?;
        }
        Ok(out)
    }

    /// The write records of a key.
    pub fn history(&self, key: &EncodedKey) -> Result<History<'_>, TxnError> {
        let mut end = key.as_bytes().to_vec();
        // Above every ts, still below every other encoded key.
        end.extend_from_slice(&[u8::MAX; 9]);
        let range = EncodedRange::new(key.as_bytes().to_vec(), end);
        Ok(History {
            cursor: self.snapshot.cursor(EngineCf::Write, &range)?,
            key: key.clone(),
        })
    }

    /// The newest write record at or below a ts.
    pub fn newest_write(
        &self,
        key: &EncodedKey,
        ts: Ts,
    ) -> Result<Option<(Ts, WriteRecord)>, TxnError> {
        self.history(key)?.at_or_below(ts)
    }

    /// What is recorded about the transaction that started at `start_ts`.
    pub fn txn_record(&self, key: &EncodedKey, start_ts: Ts) -> Result<TxnRecord, TxnError> {
        let mut history = self.history(key)?;
        let mut next = history.at_or_below(Ts::MAX)?;
        let mut gc_fence = Ts::ZERO;
        while let Some((commit_ts, write)) = next {
            if write.start_ts == start_ts {
                return Ok(TxnRecord::Own { commit_ts, write });
            }
            if commit_ts == start_ts {
                if write.overlapped_rollback {
                    return Ok(TxnRecord::OverlappedRollback);
                }
                let overlapped = Some(Overlapped { write, gc_fence });
                return Ok(TxnRecord::None { overlapped });
            }
            if commit_ts < start_ts {
                break;
            }
            if matches!(write.kind, WriteType::Put | WriteType::Delete) {
                gc_fence = commit_ts;
            }
            next = history.older()?;
        }
        Ok(TxnRecord::None { overlapped: None })
    }

    /// The put that a read at `ts` sees.
    pub fn visible(&self, key: &EncodedKey, ts: Ts) -> Result<Option<(Ts, WriteRecord)>, TxnError> {
        self.history(key)?.visible(ts)
    }

    /// The value of a put record.
    pub fn value(&self, key: &EncodedKey, write: &WriteRecord) -> Result<Bytes, TxnError> {
        match &write.short_value {
            Some(value) => Ok(value.clone()),
            None => self.long_value(key, write.start_ts),
        }
    }

    fn long_value(&self, key: &EncodedKey, start_ts: Ts) -> Result<Bytes, TxnError> {
        let at = key.at(start_ts);
        let value = self.snapshot.get(EngineCf::Default, at.as_bytes())?;
        value.ok_or_else(|| TxnError::DefaultNotFound {
            key: at.into_bytes(),
        })
    }

    /// The value of a key, or the lock that is in the way.
    pub fn get(&self, key: &EncodedKey, rules: &ReadRules<'_>) -> Result<Option<Found>, TxnError> {
        if !rules.ignore_locks
            && let Some(lock) = self.lock(key)?
            && let Some(decided) = self.through_lock(key, &lock, rules)?
        {
            return Ok(decided);
        }
        let Some((commit_ts, write)) = self.visible(key, rules.ts)? else {
            return Ok(None);
        };
        let value = self.value(key, &write)?;
        Ok(Some(Found { value, commit_ts }))
    }

    /// What a lock means for a read: an error, or the answer itself (`Some`), or nothing.
    pub fn through_lock(
        &self,
        key: &EncodedKey,
        lock: &LockRecord,
        rules: &ReadRules<'_>,
    ) -> Result<Option<Option<Found>>, TxnError> {
        let changes_nothing = matches!(lock.kind, LockKind::Lock | LockKind::Pessimistic);
        if lock.start_ts > rules.ts || changes_nothing || lock.min_commit_ts > rules.ts {
            return Ok(None);
        }
        let start_ts = lock.start_ts.get();
        if rules.bypass.contains(&start_ts) {
            return Ok(None);
        }
        let raw = raw_key(key)?;
        // "The newest" of a primary key: not committed now, and nothing newer to wait for.
        if rules.ts == Ts::MAX && raw == lock.primary && !lock.use_async_commit {
            return Ok(None);
        }
        if !rules.access.contains(&start_ts) {
            return Err(TxnError::KeyIsLocked(Box::new(lock.to_info(raw))));
        }
        if lock.kind == LockKind::Delete {
            return Ok(Some(None));
        }
        let value = match &lock.short_value {
            Some(value) => value.clone(),
            None => self.long_value(key, lock.start_ts)?,
        };
        let commit_ts = Ts::ZERO;
        Ok(Some(Some(Found { value, commit_ts })))
    }
}

/// The write records of one key, newest first.
pub(super) struct History<'v> {
    cursor: Cursor<'v>,
    key: EncodedKey,
}

impl History<'_> {
    /// Moves to the newest record at or below a ts.
    pub fn at_or_below(&mut self, ts: Ts) -> Result<Option<(Ts, WriteRecord)>, TxnError> {
        let found = self.cursor.seek(self.key.at(ts).as_bytes())?;
        self.record(found)
    }

    /// Moves to the next older record. Only after a move that found one.
    pub fn older(&mut self) -> Result<Option<(Ts, WriteRecord)>, TxnError> {
        let found = self.cursor.advance()?;
        self.record(found)
    }

    /// The put that a read at `ts` sees, if the key existed then.
    pub fn visible(&mut self, ts: Ts) -> Result<Option<(Ts, WriteRecord)>, TxnError> {
        let mut next = self.at_or_below(ts)?;
        while let Some((commit_ts, write)) = next {
            match write.kind {
                WriteType::Put => return Ok(behind_fence(commit_ts, write, ts)),
                WriteType::Delete => return Ok(None),
                WriteType::Lock | WriteType::Rollback => next = self.older()?,
            }
        }
        Ok(None)
    }

    fn record(&self, found: bool) -> Result<Option<(Ts, WriteRecord)>, TxnError> {
        let (true, Some(key), Some(value)) = (found, self.cursor.key(), self.cursor.value()) else {
            return Ok(None);
        };
        parse_write(key, value).map(|(_, commit_ts, write)| Some((commit_ts, write)))
    }
}

/// A put with a GC fence at or below the read ts is a leftover of garbage collection.
pub(super) fn behind_fence(commit_ts: Ts, write: WriteRecord, ts: Ts) -> Option<(Ts, WriteRecord)> {
    match write.gc_fence {
        Some(fence) if !fence.is_zero() && fence <= ts => None,
        _ => Some((commit_ts, write)),
    }
}

/// Splits a key of the write column family and decodes its record.
pub(super) fn parse_write<'k>(
    key: &'k [u8],
    value: &[u8],
) -> Result<(&'k [u8], Ts, WriteRecord), TxnError> {
    let damaged = |e: &dyn std::fmt::Display| TxnError::Damaged(e.to_string());
    let (encoded, commit_ts) = pitr_format::key::split_versioned(key).map_err(|e| damaged(&e))?;
    let write = WriteRecord::parse(&Bytes::copy_from_slice(value)).map_err(|e| damaged(&e))?;
    Ok((encoded, commit_ts, write))
}

pub(super) fn parse_lock(value: &[u8]) -> Result<LockRecord, TxnError> {
    LockRecord::parse(value).map_err(|e| TxnError::Damaged(e.to_string()))
}

/// The user key behind an encoded key of the store.
pub(super) fn raw_key(key: &EncodedKey) -> Result<Bytes, TxnError> {
    match key.decode() {
        Ok(raw) => Ok(raw.into()),
        Err(e) => Err(TxnError::Damaged(e.to_string())),
    }
}
