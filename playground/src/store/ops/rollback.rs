//! Rollback: of a lock, of a transaction that has no lock (so that it can never get one), and
//! the care that the record of a rollback does not hide, and is not hidden by, a commit record of
//! another transaction under the same versioned key.
//!
//! A *protected* rollback must never be lost: whoever decided it relies on it. That are those of
//! primary keys and those that a status check has made up. The others may be dropped when a newer
//! one comes ("collapsed") or when their place is taken by a commit.
//! Source: tikv/tikv `src/storage/txn/actions/{cleanup,check_txn_status}.rs`, and
//! `src/storage/mvcc/txn.rs` for the marks.

use bytes::Bytes;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{
    BatchRollbackRequest, BatchRollbackResponse, CleanupRequest, CleanupResponse,
};

use super::answer::{Answer, answer};
use crate::store::command::Command;
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::lock::{LockKind, LockRecord};
use crate::store::view::{Overlapped, TxnRecord, raw_key};

/// Short value of a protected rollback record.
const PROTECTED: &[u8] = b"p";

/// What to do about a transaction that has neither lock nor record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfUnknown {
    /// Say so.
    Report,
    /// Leave a record that the next one may collapse.
    Rollback,
    /// Leave a record for good.
    RollbackProtected,
}

/// What became of a transaction that has no lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Committed at this ts.
    Committed(Ts),
    /// Rolled back earlier.
    RolledBack,
    /// Unknown; rolled back now.
    NowRolledBack,
}

impl Store {
    /// `KvBatchRollback`.
    pub(crate) fn batch_rollback(&self, req: BatchRollbackRequest) -> BatchRollbackResponse {
        let start_ts = Ts::new(req.start_version);
        let result = self.write_command(req.context.as_ref(), |command| {
            for raw in &req.keys {
                let key = command.view.key(raw)?;
                command.cleanup(&key, start_ts, Ts::ZERO, IfUnknown::Rollback)?;
            }
            Ok(())
        });
        answer(result, |()| BatchRollbackResponse::default())
    }

    /// `KvCleanup`: rolls one key back if its lock has expired at `current_ts` (0 = at once).
    pub(crate) fn cleanup(&self, req: CleanupRequest) -> CleanupResponse {
        let (start_ts, current_ts) = (Ts::new(req.start_version), Ts::new(req.current_ts));
        let result = self.write_command(req.context.as_ref(), |command| {
            let key = command.view.key(&req.key)?;
            command.cleanup(&key, start_ts, current_ts, IfUnknown::RollbackProtected)
        });
        match result {
            Ok(()) => CleanupResponse::default(),
            Err(KvError::Txn(TxnError::Committed { commit_ts, .. })) => CleanupResponse {
                commit_version: commit_ts.get(),
                ..Default::default()
            },
            Err(error) => CleanupResponse::of_error(&error),
        }
    }
}

impl Command<'_> {
    /// Rolls a transaction back on one key. With a `current_ts`, a lock that has not expired is
    /// an error.
    pub(super) fn cleanup(
        &mut self,
        key: &EncodedKey,
        start_ts: Ts,
        current_ts: Ts,
        if_unknown: IfUnknown,
    ) -> Result<(), KvError> {
        let lock = self.view.lock(key)?;
        if let Some(lock) = lock.as_ref().filter(|l| l.start_ts == start_ts) {
            if !current_ts.is_zero() && !expired(lock, current_ts) {
                let info = lock.to_info(raw_key(key)?);
                return Err(TxnError::KeyIsLocked(Box::new(info)).into());
            }
            let collapse = if_unknown != IfUnknown::RollbackProtected;
            return self.rollback_lock(key, lock, collapse);
        }
        match self.rollback_without_lock(key, start_ts, lock, if_unknown)? {
            Ended::Committed(commit_ts) => Err(KvError::Txn(TxnError::Committed {
                start_ts,
                commit_ts,
                key: raw_key(key)?,
            })),
            Ended::RolledBack | Ended::NowRolledBack => Ok(()),
        }
    }

    /// Rolls the holder of a lock back.
    pub(super) fn rollback_lock(
        &mut self,
        key: &EncodedKey,
        lock: &LockRecord,
        collapse: bool,
    ) -> Result<(), KvError> {
        if let TxnRecord::None { overlapped } = self.view.txn_record(key, lock.start_ts)? {
            if lock.kind == LockKind::Put && lock.short_value.is_none() {
                self.delete_value(key, lock.start_ts);
            }
            let protected = raw_key(key)? == lock.primary;
            self.put_rollback(key, lock.start_ts, protected, overlapped);
            if collapse {
                self.collapse_previous(key, lock.start_ts)?;
            }
        }
        self.unlock(key);
        Ok(())
    }

    /// Finds out what became of a transaction without a lock on `key`; if nothing is known, makes
    /// sure that it never commits. `other` is the lock of another transaction, if there is one.
    pub(super) fn rollback_without_lock(
        &mut self,
        key: &EncodedKey,
        start_ts: Ts,
        other: Option<LockRecord>,
        if_unknown: IfUnknown,
    ) -> Result<Ended, KvError> {
        let overlapped = match self.view.txn_record(key, start_ts)? {
            TxnRecord::Own { write, .. } if write.kind == WriteType::Rollback => {
                return Ok(Ended::RolledBack);
            }
            TxnRecord::Own { commit_ts, .. } => return Ok(Ended::Committed(commit_ts)),
            TxnRecord::OverlappedRollback => return Ok(Ended::RolledBack),
            TxnRecord::None { overlapped } => overlapped,
        };
        if if_unknown == IfUnknown::Report {
            let key = raw_key(key)?;
            return Err(TxnError::TxnNotFound { start_ts, key }.into());
        }
        let protected = if_unknown == IfUnknown::RollbackProtected;
        if !protected {
            self.collapse_previous(key, start_ts)?;
        }
        if let (Some(lock), None, true) = (other, &overlapped, protected) {
            self.mark_on_lock(key, lock, start_ts);
        }
        self.put_rollback(key, start_ts, protected, overlapped);
        Ok(Ended::NowRolledBack)
    }

    /// Writes the record of a rollback, or its mark on the commit record that has its place.
    pub(super) fn put_rollback(
        &mut self,
        key: &EncodedKey,
        start_ts: Ts,
        protected: bool,
        overlapped: Option<Overlapped>,
    ) {
        let record = match overlapped {
            // An unprotected rollback must not hide a commit, and need not survive.
            Some(_) if !protected => return,
            Some(Overlapped { write, gc_fence }) => WriteRecord {
                overlapped_rollback: true,
                gc_fence: Some(gc_fence),
                ..write
            },
            None => WriteRecord {
                kind: WriteType::Rollback,
                ..WriteRecord::put(start_ts, protected.then(|| Bytes::from_static(PROTECTED)))
            },
        };
        // A commit ts computed later must not take the place of this record.
        self.raise_max_ts(start_ts);
        self.put_write(key, start_ts, &record);
    }

    /// Removes the rollback record below, if nobody relies on it.
    pub(super) fn collapse_previous(
        &mut self,
        key: &EncodedKey,
        start_ts: Ts,
    ) -> Result<(), KvError> {
        if let Some((commit_ts, write)) = self.view.newest_write(key, start_ts)?
            && write.kind == WriteType::Rollback
            && write.short_value.as_deref() != Some(PROTECTED)
        {
            self.delete_write(key, commit_ts);
        }
        Ok(())
    }

    /// A lock of another transaction may be committed at exactly `start_ts` (only an async commit
    /// takes a ts that is nobody's): let it know, so that its commit record carries the mark.
    pub(super) fn mark_on_lock(&mut self, key: &EncodedKey, mut lock: LockRecord, start_ts: Ts) {
        if lock.use_async_commit && start_ts >= lock.min_commit_ts {
            lock.rollback_ts.push(start_ts);
            self.put_lock(key, &lock);
        }
    }
}

/// Whether the time to live of a lock is over.
pub(super) fn expired(lock: &LockRecord, now: Ts) -> bool {
    lock.start_ts.physical_ms().saturating_add(lock.ttl) < now.physical_ms()
}
