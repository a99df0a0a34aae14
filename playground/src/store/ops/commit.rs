//! Commit of prewritten keys. Source: tikv/tikv `src/storage/txn/actions/commit.rs`.

use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{CommitRequest, CommitResponse};

use super::answer::answer;
use crate::store::command::Command;
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::lock::{LockKind, LockRecord};
use crate::store::view::{TxnRecord, raw_key};

impl Store {
    /// `KvCommit`: all keys or none.
    pub(crate) fn commit(&self, req: CommitRequest) -> CommitResponse {
        let (start_ts, commit_ts) = (Ts::new(req.start_version), Ts::new(req.commit_version));
        let result = self.write_command(req.context.as_ref(), |command| {
            check_order(start_ts, commit_ts)?;
            for raw in &req.keys {
                let key = command.view.key(raw)?;
                command.commit(&key, start_ts, commit_ts)?;
            }
            Ok(())
        });
        answer(result, |()| CommitResponse {
            commit_version: commit_ts.get(),
            ..Default::default()
        })
    }
}

/// A commit ts is above its start ts.
pub(super) fn check_order(start_ts: Ts, commit_ts: Ts) -> Result<(), TxnError> {
    if commit_ts > start_ts {
        return Ok(());
    }
    Err(TxnError::InvalidTxnTso {
        start_ts,
        commit_ts,
    })
}

impl Command<'_> {
    /// Commits one key. Doing it again is fine, whatever the ts.
    pub(super) fn commit(
        &mut self,
        key: &EncodedKey,
        start_ts: Ts,
        commit_ts: Ts,
    ) -> Result<(), KvError> {
        let lock = self.view.lock(key)?;
        let Some(lock) = lock.filter(|l| l.start_ts == start_ts) else {
            return match self.view.txn_record(key, start_ts)? {
                TxnRecord::Own { write, .. } if write.kind != WriteType::Rollback => Ok(()),
                _ => Err(KvError::Txn(TxnError::TxnLockNotFound {
                    start_ts,
                    commit_ts,
                    key: raw_key(key)?,
                })),
            };
        };
        if commit_ts < lock.min_commit_ts {
            return Err(KvError::Txn(TxnError::CommitTsExpired {
                start_ts,
                commit_ts,
                key: raw_key(key)?,
                min_commit_ts: lock.min_commit_ts,
            }));
        }
        // A pessimistic lock that nobody prewrote is a leftover: it goes, without a record.
        if let Some(record) = commit_record(&lock, commit_ts) {
            self.put_write(key, commit_ts, &record);
        }
        self.unlock(key);
        Ok(())
    }
}

/// The write record that committing a lock leaves; none for a pessimistic lock.
pub(super) fn commit_record(lock: &LockRecord, commit_ts: Ts) -> Option<WriteRecord> {
    let kind = match lock.kind {
        LockKind::Put => WriteType::Put,
        LockKind::Delete => WriteType::Delete,
        LockKind::Lock => WriteType::Lock,
        LockKind::Pessimistic => return None,
    };
    let overlapped = lock.rollback_ts.contains(&commit_ts);
    Some(WriteRecord {
        kind,
        overlapped_rollback: overlapped,
        gc_fence: None,
        last_change: lock.last_change,
        txn_source: lock.txn_source,
        ..WriteRecord::put(lock.start_ts, lock.short_value.clone())
    })
}
