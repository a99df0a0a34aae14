//! What other transactions ask about a transaction: its primary lock (`CheckTxnStatus`), its
//! secondary locks (async commit), and what its own client does to stay alive (heart beat).
//! Source: tikv/tikv `src/storage/txn/actions/check_txn_status.rs`,
//! `src/storage/txn/commands/{check_txn_status,check_secondary_locks,txn_heart_beat}.rs`.

use pitr_format::write_cf::WriteType;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{
    Action, CheckSecondaryLocksRequest, CheckSecondaryLocksResponse, CheckTxnStatusRequest,
    CheckTxnStatusResponse, LockInfo, TxnHeartBeatRequest, TxnHeartBeatResponse,
};

use super::answer::answer;
use super::rollback::{Ended, IfUnknown, expired};
use crate::store::command::Command;
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::lock::LockRecord;
use crate::store::view::{TxnRecord, raw_key};

impl Store {
    /// `KvCheckTxnStatus`.
    pub(crate) fn check_txn_status(&self, req: CheckTxnStatusRequest) -> CheckTxnStatusResponse {
        let lock_ts = Ts::new(req.lock_ts);
        let result = self.write_command(req.context.as_ref(), |command| {
            // Whatever is computed from now on commits behind those who ask.
            for ts in [req.lock_ts, req.caller_start_ts, req.current_ts] {
                command.raise_max_ts(Ts::new(ts));
            }
            let key = command.view.key(&req.primary_key)?;
            match command.view.lock(&key)? {
                Some(lock) if lock.start_ts == lock_ts => command.status_of_lock(&req, &key, lock),
                other => command.status_without_lock(&req, &key, other),
            }
        });
        answer(result, |status| status)
    }

    /// `KvTxnHeartBeat`: raises the time to live of a primary lock.
    pub(crate) fn txn_heart_beat(&self, req: TxnHeartBeatRequest) -> TxnHeartBeatResponse {
        let start_ts = Ts::new(req.start_version);
        let result = self.write_command(req.context.as_ref(), |command| {
            let key = command.view.key(&req.primary_lock)?;
            let lock = command.view.lock(&key)?;
            let Some(mut lock) = lock.filter(|l| l.start_ts == start_ts) else {
                let key = req.primary_lock.clone();
                return Err(TxnError::TxnNotFound { start_ts, key }.into());
            };
            let (ttl, min_commit_ts) = (req.advise_lock_ttl, Ts::new(req.min_commit_ts));
            if ttl > lock.ttl || min_commit_ts > lock.min_commit_ts {
                lock.ttl = lock.ttl.max(ttl);
                lock.min_commit_ts = lock.min_commit_ts.max(min_commit_ts);
                command.put_lock(&key, &lock);
            }
            Ok(lock.ttl)
        });
        answer(result, |lock_ttl| TxnHeartBeatResponse {
            lock_ttl,
            ..Default::default()
        })
    }

    /// `KvCheckSecondaryLocks`: all locks are there, or the ts of the commit, or nothing (and
    /// then the transaction can never commit).
    pub(crate) fn check_secondary_locks(
        &self,
        req: CheckSecondaryLocksRequest,
    ) -> CheckSecondaryLocksResponse {
        let start_ts = Ts::new(req.start_version);
        let result = self.write_command(req.context.as_ref(), |command| {
            command.raise_max_ts(start_ts);
            let mut out = CheckSecondaryLocksResponse::default();
            for raw in &req.keys {
                let key = command.view.key(raw)?;
                match command.check_secondary(&key, start_ts)? {
                    Secondary::Locked(info) => out.locks.push(*info),
                    Secondary::Committed(commit_ts) => {
                        out.locks.clear();
                        out.commit_ts = commit_ts.get();
                        break;
                    }
                    Secondary::RolledBack => {
                        out.locks.clear();
                        break;
                    }
                }
            }
            Ok(out)
        });
        answer(result, |out| out)
    }
}

/// State of one secondary key.
enum Secondary {
    Locked(Box<LockInfo>),
    Committed(Ts),
    RolledBack,
}

impl Command<'_> {
    fn status_of_lock(
        &mut self,
        req: &CheckTxnStatusRequest,
        key: &EncodedKey,
        mut lock: LockRecord,
    ) -> Result<CheckTxnStatusResponse, KvError> {
        let (caller, current) = (Ts::new(req.caller_start_ts), Ts::new(req.current_ts));
        if req.verify_is_primary && req.primary_key != lock.primary {
            return self.status_of_other_primary(req, key, lock);
        }
        // An async commit is decided by all of its locks, not by this one.
        if lock.use_async_commit && !req.force_sync_commit {
            return Ok(uncommitted(req, &lock, Action::NoAction));
        }
        if expired(&lock, current) {
            let action = if req.resolving_pessimistic_lock && lock.is_pessimistic() {
                self.unlock(key);
                Action::TtlExpirePessimisticRollback
            } else {
                self.rollback_lock(key, &lock, true)?;
                Action::TtlExpireRollback
            };
            return Ok(with_action(action));
        }
        // Zero: the client does not expect to be pushed.
        let pushable = !lock.min_commit_ts.is_zero() && caller != Ts::MAX;
        if pushable && caller >= lock.min_commit_ts {
            lock.min_commit_ts = caller.next().max(current);
            self.put_lock(key, &lock);
        }
        // A reader of "the newest" may pass anyhow: nothing is committed now.
        let passes = caller == Ts::MAX || (!caller.is_zero() && lock.min_commit_ts > caller);
        let action = if passes {
            Action::MinCommitTsPushed
        } else {
            Action::NoAction
        };
        Ok(uncommitted(req, &lock, action))
    }

    /// The lock is of the transaction, but names another primary: the asker looked at a stale
    /// pessimistic lock, or this one is stale.
    fn status_of_other_primary(
        &mut self,
        req: &CheckTxnStatusRequest,
        key: &EncodedKey,
        lock: LockRecord,
    ) -> Result<CheckTxnStatusResponse, KvError> {
        if req.resolving_pessimistic_lock || !lock.is_pessimistic() {
            let info = lock.to_info(req.primary_key.clone());
            return Err(TxnError::PrimaryMismatch(Box::new(info)).into());
        }
        let status = self.status_without_lock(req, key, None)?;
        self.unlock(key);
        Ok(status)
    }

    fn status_without_lock(
        &mut self,
        req: &CheckTxnStatusRequest,
        key: &EncodedKey,
        other: Option<LockRecord>,
    ) -> Result<CheckTxnStatusResponse, KvError> {
        let lock_ts = Ts::new(req.lock_ts);
        let nothing_to_do = req.rollback_if_not_exist && req.resolving_pessimistic_lock;
        let if_unknown = match req.rollback_if_not_exist && !nothing_to_do {
            true => IfUnknown::RollbackProtected,
            false => IfUnknown::Report,
        };
        match self.rollback_without_lock(key, lock_ts, other, if_unknown) {
            Ok(Ended::Committed(commit_ts)) => Ok(CheckTxnStatusResponse {
                commit_version: commit_ts.get(),
                ..Default::default()
            }),
            Ok(Ended::RolledBack) => Ok(with_action(Action::NoAction)),
            Ok(Ended::NowRolledBack) => Ok(with_action(Action::LockNotExistRollback)),
            Err(KvError::Txn(TxnError::TxnNotFound { .. })) if nothing_to_do => {
                Ok(with_action(Action::LockNotExistDoNothing))
            }
            Err(error) => Err(error),
        }
    }

    fn check_secondary(&mut self, key: &EncodedKey, start_ts: Ts) -> Result<Secondary, KvError> {
        let (own, other) = match self.view.lock(key)? {
            Some(lock) if lock.start_ts == start_ts => (Some(lock), None),
            other => (None, other),
        };
        let record = match own {
            Some(lock) if !lock.is_pessimistic() => {
                return Ok(Secondary::Locked(Box::new(lock.to_info(raw_key(key)?))));
            }
            Some(_) => {
                self.unlock(key);
                self.view.txn_record(key, start_ts)?
            }
            None => self.view.txn_record(key, start_ts)?,
        };
        match record {
            TxnRecord::Own { commit_ts, write } if write.kind != WriteType::Rollback => {
                Ok(Secondary::Committed(commit_ts))
            }
            TxnRecord::Own { .. } | TxnRecord::OverlappedRollback => Ok(Secondary::RolledBack),
            TxnRecord::None { overlapped } => {
                // Protected: a late prewrite must not succeed after this answer.
                if let Some(lock) = other {
                    self.mark_on_lock(key, lock, start_ts);
                }
                self.put_rollback(key, start_ts, true, overlapped);
                self.collapse_previous(key, start_ts)?;
                Ok(Secondary::RolledBack)
            }
        }
    }
}

fn with_action(action: Action) -> CheckTxnStatusResponse {
    CheckTxnStatusResponse {
        action: action.into(),
        ..Default::default()
    }
}

fn uncommitted(
    req: &CheckTxnStatusRequest,
    lock: &LockRecord,
    action: Action,
) -> CheckTxnStatusResponse {
    CheckTxnStatusResponse {
        lock_ttl: lock.ttl,
        lock_info: Some(lock.to_info(req.primary_key.clone())),
        ..with_action(action)
    }
}
