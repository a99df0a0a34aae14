//! Pessimistic locks: taken while a transaction runs, before its prewrite.
//!
//! A request that meets a lock waits for it (as long as its client allows), and then starts
//! again from the beginning: it either gets the lock or learns of the conflict. What it checks
//! and writes is in [`Command::acquire`].
//! Source: tikv/tikv `src/storage/txn/actions/acquire_pessimistic_lock.rs`,
//! `src/storage/lock_manager/mod.rs` for the waiting times.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::write_conflict::Reason;
use pitr_proto::kvrpcpb::{
    Assertion, LockInfo, Mutation, PessimisticLockKeyResult, PessimisticLockRequest,
    PessimisticLockResponse, PessimisticLockWakeUpMode, PessimisticRollbackRequest,
    PessimisticRollbackResponse,
};
use tokio::time::Instant;

use super::answer::{Answer, answer};
use super::prewrite_check::check_absent;
use crate::store::command::Command;
use crate::store::error::{Conflict, KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::lock::{LockKind, LockRecord};
use crate::store::region::range_of;
use crate::store::view::{View, raw_key};
use crate::store::wait::{Ticket, Wait};

/// How long a request waits that leaves it to the store (`wait-for-lock-timeout` of TiKV).
const DEFAULT_WAIT: Duration = Duration::from_secs(1);
/// Nobody waits longer, whatever it asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a lock request has read of its key.
struct Seen {
    value: Option<Bytes>,
}

/// How one attempt ended.
enum Attempt {
    Done(Vec<Seen>),
    Blocked(Ticket, Box<LockInfo>),
}

/// `KvPessimisticLock`.
pub(in crate::store) async fn pessimistic_lock(
    store: Arc<Store>,
    req: PessimisticLockRequest,
) -> PessimisticLockResponse {
    let req = Arc::new(req);
    let deadline = Instant::now() + wait_time(req.wait_timeout);
    loop {
        let (worker, request) = (store.clone(), req.clone());
        let may_wait = Instant::now() < deadline;
        let attempt = move || worker.try_pessimistic_lock(&request, may_wait);
        let (ticket, info) = match tokio::task::spawn_blocking(attempt).await {
            Ok(Ok(Attempt::Done(seen))) => return locked(&req, seen),
            Ok(Ok(Attempt::Blocked(ticket, info))) => (ticket, info),
            Ok(Err(error)) => return PessimisticLockResponse::of_error(&error),
            Err(_) => {
                // The runtime is going down.
                let error = TxnError::InvalidRequest("the store is shutting down");
                return PessimisticLockResponse::of_error(&KvError::Txn(error));
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if !store.group.waiters.wait(ticket, left).await {
            let error = TxnError::KeyIsLocked(info);
            return PessimisticLockResponse::of_error(&KvError::Txn(error));
        }
    }
}

/// Milliseconds; zero leaves it to the store, a negative number does not wait.
fn wait_time(asked: i64) -> Duration {
    match u64::try_from(asked) {
        Ok(0) => DEFAULT_WAIT,
        Ok(millis) => Duration::from_millis(millis).min(LONGEST_WAIT),
        Err(_) => Duration::ZERO,
    }
}

fn locked(req: &PessimisticLockRequest, seen: Vec<Seen>) -> PessimisticLockResponse {
    let mut out = PessimisticLockResponse::default();
    let wants_existence = req.return_values || req.check_existence;
    if req.wake_up_mode() == PessimisticLockWakeUpMode::WakeUpModeForceLock {
        let result = |seen: Seen| PessimisticLockKeyResult {
            existence: wants_existence && seen.value.is_some(),
            value: seen.value.filter(|_| req.return_values).unwrap_or_default(),
            ..Default::default()
        };
        out.results = seen.into_iter().map(result).collect();
        return out;
    }
    if wants_existence {
        out.not_founds = seen.iter().map(|s| s.value.is_none()).collect();
    }
    if req.return_values {
        out.values = seen
            .into_iter()
            .map(|s| s.value.unwrap_or_default())
            .collect();
    }
    out
}

impl Store {
    fn try_pessimistic_lock(
        &self,
        req: &PessimisticLockRequest,
        may_wait: bool,
    ) -> Result<Attempt, KvError> {
        self.write_command(req.context.as_ref(), |command| {
            let mut seen = Vec::with_capacity(req.mutations.len());
            for mutation in &req.mutations {
                match command.acquire(req, mutation) {
                    Ok(value) => seen.push(Seen { value }),
                    Err(KvError::Txn(TxnError::KeyIsLocked(info))) if may_wait => {
                        command.discard();
                        return self.queue(req, info);
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(Attempt::Done(seen))
        })
    }

    /// Registers as a waiter, under the write lock, so that the release cannot be missed.
    fn queue(&self, req: &PessimisticLockRequest, info: Box<LockInfo>) -> Result<Attempt, KvError> {
        let (start_ts, lock_ts) = (Ts::new(req.start_version), Ts::new(info.lock_version));
        let wait = Wait {
            waiter: start_ts,
            holder: lock_ts,
            key: info.key.clone(),
        };
        let encoded = EncodedKey::encode(&info.key).into_bytes();
        match self.group.waiters.register(encoded, wait) {
            Ok(ticket) => Ok(Attempt::Blocked(ticket, info)),
            Err(cycle) => Err(KvError::Txn(TxnError::Deadlock {
                start_ts,
                lock_ts,
                key: info.key,
                cycle,
            })),
        }
    }

    /// `KVPessimisticRollback`: gives up locks that were not prewritten; without keys, all of the
    /// transaction in the region.
    pub(crate) fn pessimistic_rollback(
        &self,
        req: PessimisticRollbackRequest,
    ) -> PessimisticRollbackResponse {
        let (start_ts, for_update_ts) = (Ts::new(req.start_version), Ts::new(req.for_update_ts));
        let wanted = |lock: &LockRecord| {
            let own = lock.start_ts == start_ts && lock.is_pessimistic();
            own && lock.for_update_ts <= for_update_ts
        };
        let result = self.write_command(req.context.as_ref(), |command| {
            if req.keys.is_empty() {
                let range = range_of(&command.view.region);
                for (key, _) in command.view.locks(&range, 0, wanted)? {
                    command.unlock(&key);
                }
            }
            for raw in &req.keys {
                let key = command.view.key(raw)?;
                if command.view.lock(&key)?.as_ref().is_some_and(wanted) {
                    command.unlock(&key);
                }
            }
            Ok(())
        });
        answer(result, |()| PessimisticRollbackResponse::default())
    }
}

impl Command<'_> {
    /// Takes one lock; gives the value that the transaction sees, if asked for (an empty one if
    /// only existence was asked for).
    fn acquire(
        &mut self,
        req: &PessimisticLockRequest,
        mutation: &Mutation,
    ) -> Result<Option<Bytes>, KvError> {
        let key = self.view.key(&mutation.key)?;
        let (start_ts, for_update_ts) = (Ts::new(req.start_version), Ts::new(req.for_update_ts));
        let must_not_exist = mutation.assertion() == Assertion::NotExist;
        let reads = req.return_values || req.check_existence;
        if req.lock_only_if_exists && !reads {
            let reason = "lock_only_if_exists needs return_values or check_existence";
            return Err(TxnError::InvalidRequest(reason).into());
        }
        if must_not_exist || reads {
            self.raise_max_ts(for_update_ts);
        }
        let held = self.view.lock(&key)?;
        if let Some(lock) = &held {
            check_own(lock, start_ts, &mutation.key)?;
        }
        if let Some((commit_ts, write)) = self.view.newest_write(&key, Ts::MAX)? {
            if held.is_none() {
                check_conflict(&self.view, req, &key, commit_ts, &write)?;
            }
            if must_not_exist {
                check_absent(&self.view, &key, commit_ts, &write)?;
            }
        }
        let value = match reads {
            true => read_value(&self.view, &key, for_update_ts, req.return_values)?,
            false => None,
        };
        if req.lock_only_if_exists && value.is_none() {
            return Ok(None);
        }
        if held
            .as_ref()
            .is_none_or(|l| for_update_ts > l.for_update_ts)
        {
            let (primary, ttl) = (req.primary_lock.clone(), req.lock_ttl);
            let mut lock = LockRecord::new(LockKind::Pessimistic, primary, start_ts, ttl);
            lock.for_update_ts = for_update_ts;
            lock.min_commit_ts = Ts::new(req.min_commit_ts);
            if let Some(held) = held {
                lock.min_commit_ts = lock.min_commit_ts.max(held.min_commit_ts);
                lock.ttl = lock.ttl.max(held.ttl);
            }
            self.put_lock(&key, &lock);
        }
        Ok(value)
    }
}

fn check_own(lock: &LockRecord, start_ts: Ts, raw: &Bytes) -> Result<(), TxnError> {
    if lock.start_ts != start_ts {
        return Err(TxnError::KeyIsLocked(Box::new(lock.to_info(raw.clone()))));
    }
    if lock.is_pessimistic() {
        return Ok(());
    }
    Err(TxnError::LockTypeNotMatch {
        start_ts,
        key: raw.clone(),
        pessimistic: false,
    })
}

/// Nobody may have changed the key after `for_update_ts`, and the transaction must not have been
/// rolled back on it.
fn check_conflict(
    view: &View<'_>,
    req: &PessimisticLockRequest,
    key: &EncodedKey,
    commit_ts: Ts,
    write: &WriteRecord,
) -> Result<(), TxnError> {
    let start_ts = Ts::new(req.start_version);
    if commit_ts > Ts::new(req.for_update_ts) {
        return Err(TxnError::WriteConflict(Box::new(Conflict {
            start_ts,
            conflict_start_ts: write.start_ts,
            conflict_commit_ts: commit_ts,
            key: raw_key(key)?,
            primary: req.primary_lock.clone(),
            reason: Reason::PessimisticRetry,
        })));
    }
    // The mark of a rollback lies at the start ts, perhaps below newer records.
    if commit_ts >= start_ts
        && let Some((at, record)) = view.newest_write(key, start_ts)?
        && at == start_ts
        && (record.kind == WriteType::Rollback || record.overlapped_rollback)
    {
        let key = raw_key(key)?;
        return Err(TxnError::PessimisticLockRolledBack { start_ts, key });
    }
    Ok(())
}

fn read_value(
    view: &View<'_>,
    key: &EncodedKey,
    ts: Ts,
    with_value: bool,
) -> Result<Option<Bytes>, TxnError> {
    match view.visible(key, ts)? {
        Some((_, write)) if with_value => view.value(key, &write).map(Some),
        Some(_) => Ok(Some(Bytes::new())),
        None => Ok(None),
    }
}
