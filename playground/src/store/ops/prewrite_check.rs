//! May this transaction lock this key? The rules of prewrite for one mutation; nothing is
//! changed here but `max_ts`. Source: tikv/tikv `src/storage/txn/actions/prewrite.rs`.

use bytes::Bytes;
use pitr_format::write_cf::{SHORT_VALUE_MAX_LEN, WriteRecord, WriteType};
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::prewrite_request::PessimisticAction;
use pitr_proto::kvrpcpb::write_conflict::Reason;
use pitr_proto::kvrpcpb::{Mutation, Op, PrewriteRequest};

use crate::store::command::Command;
use crate::store::error::{Conflict, TxnError};
use crate::store::lock::{LockKind, LockRecord};
use crate::store::view::{View, raw_key};

/// A prewrite request with its timestamps as such.
pub(super) struct Prewrite<'r> {
    pub req: &'r PrewriteRequest,
    pub start_ts: Ts,
    /// Zero for an optimistic transaction.
    for_update_ts: Ts,
    is_retry: bool,
    txn_source: u64,
}

/// What one mutation comes to.
pub(super) enum Checked {
    /// Nothing to write (an existence check that passed).
    Nothing,
    /// This prewrite was done before; the `min_commit_ts` of its lock if that is an async commit,
    /// else zero.
    Repeated(Ts),
    /// A lock to write.
    Write(Box<NewLock>),
}

/// A lock that may be written.
pub(super) struct NewLock {
    pub key: EncodedKey,
    pub lock: LockRecord,
    /// A value that does not fit into the lock.
    pub long_value: Option<Bytes>,
    /// A pessimistic lock of the same transaction is replaced.
    pub had_pessimistic: bool,
}

impl<'r> Prewrite<'r> {
    pub fn new(req: &'r PrewriteRequest) -> Self {
        let context = req.context.as_ref();
        Prewrite {
            req,
            start_ts: Ts::new(req.start_version),
            for_update_ts: Ts::new(req.for_update_ts),
            is_retry: context.is_some_and(|c| c.is_retry_request),
            txn_source: context.map_or(0, |c| c.txn_source),
        }
    }

    fn is_pessimistic(&self) -> bool {
        !self.for_update_ts.is_zero()
    }

    fn action(&self, index: usize) -> PessimisticAction {
        let action = self.req.pessimistic_actions.get(index).copied();
        action
            .and_then(|a| PessimisticAction::try_from(a).ok())
            .unwrap_or(PessimisticAction::SkipPessimisticCheck)
    }

    /// The `for_update_ts` that the pessimistic lock of a mutation must still have, if asked for.
    fn expected_for_update_ts(&self, index: usize) -> Option<Ts> {
        let mut constraints = self.req.for_update_ts_constraints.iter();
        let found = constraints.find(|c| c.index as usize == index)?;
        Some(Ts::new(found.expected_for_update_ts))
    }

    /// Whether the history of the key need not be looked at.
    fn skips_newer_check(&self, action: PessimisticAction) -> bool {
        if !self.is_pessimistic() {
            return self.req.skip_constraint_check;
        }
        match action {
            PessimisticAction::DoPessimisticCheck => true,
            // Keys that the transaction did not lock (of indexes, say) need no check the first
            // time; a repeated request must find out that it was done.
            PessimisticAction::SkipPessimisticCheck => !self.is_retry,
            PessimisticAction::DoConstraintCheck => false,
        }
    }

    fn conflict(
        &self,
        key: &Bytes,
        commit_ts: Ts,
        write: &WriteRecord,
        reason: Reason,
    ) -> TxnError {
        TxnError::WriteConflict(Box::new(Conflict {
            start_ts: self.start_ts,
            conflict_start_ts: write.start_ts,
            conflict_commit_ts: commit_ts,
            key: key.clone(),
            primary: self.req.primary_lock.clone(),
            reason,
        }))
    }

    fn pessimistic_lock_gone(&self, key: &Bytes, reason: &'static str) -> TxnError {
        TxnError::PessimisticLockNotFound {
            start_ts: self.start_ts,
            key: key.clone(),
            reason,
        }
    }
}

impl Command<'_> {
    /// Checks the mutation at `index` of the request.
    pub(super) fn check_mutation(
        &mut self,
        txn: &Prewrite<'_>,
        index: usize,
        mutation: &Mutation,
    ) -> Result<Checked, TxnError> {
        let key = self.view.key(&mutation.key)?;
        let must_not_exist = matches!(mutation.op(), Op::Insert | Op::CheckNotExists);
        if must_not_exist {
            // Finding no key is a read.
            self.raise_max_ts(txn.start_ts);
        }
        let action = txn.action(index);
        let held = match self.check_lock(txn, index, &key, &mutation.key)? {
            Held::Prewritten(min_commit_ts) => return Ok(Checked::Repeated(min_commit_ts)),
            Held::Pessimistic(lock) => Some(lock),
            Held::Nothing => None,
        };
        if !txn.skips_newer_check(action) {
            check_newer(&self.view, txn, action, &key, &mutation.key, must_not_exist)?;
        }
        let kind = match mutation.op() {
            Op::CheckNotExists => return Ok(Checked::Nothing),
            Op::Put | Op::Insert => LockKind::Put,
            Op::Del => LockKind::Delete,
            Op::Lock => LockKind::Lock,
            _ => {
                return Err(TxnError::InvalidRequest(
                    "prewrite: operation is not one of its",
                ));
            }
        };
        let (primary, ttl) = (txn.req.primary_lock.clone(), txn.req.lock_ttl);
        let mut lock = LockRecord::new(kind, primary, txn.start_ts, ttl);
        lock.for_update_ts = txn.for_update_ts;
        lock.txn_size = txn.req.txn_size;
        lock.min_commit_ts = Ts::new(txn.req.min_commit_ts);
        lock.txn_source = txn.txn_source;
        if kind == LockKind::Lock {
            lock.last_change = Some(last_change(&self.view, &key)?);
        }
        if let Some(held) = &held {
            // Others may have pushed these meanwhile.
            lock.ttl = lock.ttl.max(held.ttl);
            lock.min_commit_ts = lock.min_commit_ts.max(held.min_commit_ts);
            lock.for_update_ts = lock.for_update_ts.max(held.for_update_ts);
        }
        let mut long_value = None;
        if kind == LockKind::Put {
            let value = mutation.value.clone();
            if value.len() <= SHORT_VALUE_MAX_LEN {
                lock.short_value = Some(value);
            } else {
                long_value = Some(value);
            }
        }
        Ok(Checked::Write(Box::new(NewLock {
            key,
            lock,
            long_value,
            had_pessimistic: held.is_some(),
        })))
    }

    fn check_lock(
        &self,
        txn: &Prewrite<'_>,
        index: usize,
        key: &EncodedKey,
        raw: &Bytes,
    ) -> Result<Held, TxnError> {
        let needs_lock = txn.action(index) == PessimisticAction::DoPessimisticCheck;
        let Some(lock) = self.view.lock(key)? else {
            if needs_lock {
                check_amend(&self.view, txn, key, raw)?;
            }
            return Ok(Held::Nothing);
        };
        if lock.start_ts != txn.start_ts {
            return Err(match needs_lock {
                true => txn.pessimistic_lock_gone(raw, "LockTsMismatch"),
                false => TxnError::KeyIsLocked(Box::new(lock.to_info(raw.clone()))),
            });
        }
        if !lock.is_pessimistic() {
            let decided_by_locks = lock.use_async_commit;
            let min_commit_ts = if decided_by_locks {
                lock.min_commit_ts
            } else {
                Ts::ZERO
            };
            return Ok(Held::Prewritten(min_commit_ts));
        }
        if !txn.is_pessimistic() {
            return Err(TxnError::LockTypeNotMatch {
                start_ts: txn.start_ts,
                key: raw.clone(),
                pessimistic: true,
            });
        }
        match txn.expected_for_update_ts(index) {
            Some(ts) if ts != lock.for_update_ts => {
                Err(txn.pessimistic_lock_gone(raw, "LockForUpdateTsMismatch"))
            }
            _ => Ok(Held::Pessimistic(Box::new(lock))),
        }
    }
}

/// The lock that the transaction itself has on a key.
enum Held {
    Nothing,
    Pessimistic(Box<LockRecord>),
    Prewritten(Ts),
}

/// The pessimistic lock is lost (it need not have been written before the client went on). It can
/// be made up for while nobody has changed the key since the transaction started.
fn check_amend(
    view: &View<'_>,
    txn: &Prewrite<'_>,
    key: &EncodedKey,
    raw: &Bytes,
) -> Result<(), TxnError> {
    match view.newest_write(key, Ts::MAX)? {
        Some((commit_ts, _)) if commit_ts >= txn.start_ts => {
            Err(txn.pessimistic_lock_gone(raw, "LockMissingAmendFail"))
        }
        _ => Ok(()),
    }
}

/// Nobody may have changed the key since the transaction looked at it, nor rolled it back.
fn check_newer(
    view: &View<'_>,
    txn: &Prewrite<'_>,
    action: PessimisticAction,
    key: &EncodedKey,
    raw: &Bytes,
    must_not_exist: bool,
) -> Result<(), TxnError> {
    let Some((commit_ts, write)) = view.newest_write(key, Ts::MAX)? else {
        return Ok(());
    };
    let rolled_back = write.kind == WriteType::Rollback || write.overlapped_rollback;
    let reason = if commit_ts == txn.start_ts && rolled_back {
        Some(Reason::SelfRolledBack)
    } else if !txn.is_pessimistic() {
        (commit_ts > txn.start_ts).then_some(Reason::Optimistic)
    } else if action == PessimisticAction::DoConstraintCheck && commit_ts > txn.start_ts {
        Some(Reason::LazyUniquenessCheck)
    } else {
        (commit_ts > txn.for_update_ts).then_some(Reason::NotLockedKeyConflict)
    };
    if let Some(reason) = reason {
        return Err(txn.conflict(raw, commit_ts, &write, reason));
    }
    if must_not_exist {
        check_absent(view, key, commit_ts, &write)?;
    }
    Ok(())
}

/// An insert needs a key that does not exist, as of its newest record.
pub(super) fn check_absent(
    view: &View<'_>,
    key: &EncodedKey,
    commit_ts: Ts,
    newest: &WriteRecord,
) -> Result<(), TxnError> {
    let exists = match newest.kind {
        WriteType::Put => true,
        WriteType::Delete => false,
        WriteType::Lock | WriteType::Rollback => view.visible(key, commit_ts.prev())?.is_some(),
    };
    if exists {
        let key = raw_key(key)?;
        return Err(TxnError::AlreadyExist { key });
    }
    Ok(())
}

/// For a lock-only record: the commit ts of the newest change of the key and the number of
/// records from here to there; `(0, 1)` if there is none.
/// Source: tikv/tikv `components/txn_types/src/types.rs`, `LastChange`.
fn last_change(view: &View<'_>, key: &EncodedKey) -> Result<(Ts, u64), TxnError> {
    let mut history = view.history(key)?;
    let mut next = history.at_or_below(Ts::MAX)?;
    let mut records = 1;
    while let Some((commit_ts, write)) = next {
        match (write.kind, write.last_change) {
            (WriteType::Put | WriteType::Delete, _) => return Ok((commit_ts, records)),
            (_, Some((ts, _))) if ts.is_zero() => break,
            (_, Some((ts, more))) => return Ok((ts, records + more)),
            _ => {}
        }
        records += 1;
        next = history.older()?;
    }
    Ok((Ts::ZERO, 1))
}
