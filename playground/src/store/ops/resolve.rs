//! Finding locks and clearing them away after their transaction was decided.
//! Source: tikv/tikv `src/storage/txn/commands/{resolve_lock,resolve_lock_lite}.rs`.

use std::collections::BTreeMap;

use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{
    ResolveLockRequest, ResolveLockResponse, ScanLockRequest, ScanLockResponse,
};

use super::answer::answer;
use super::commit::check_order;
use super::rollback::IfUnknown;
use crate::store::command::Command;
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::lock::LockRecord;
use crate::store::region::range_of;
use crate::store::view::raw_key;

impl Store {
    /// `KvScanLock`: locks of transactions that started at or before a ts.
    pub(crate) fn scan_lock(&self, req: ScanLockRequest) -> ScanLockResponse {
        let max = Ts::new(req.max_version);
        let result = self.read_view(req.context.as_ref(), max).and_then(|view| {
            let range = view.range(&req.start_key, &req.end_key)?;
            let locks = view.locks(&range, req.limit as usize, |l| l.start_ts <= max)?;
            let infos = locks
                .iter()
                .map(|(key, lock)| Ok(lock.to_info(raw_key(key)?)));
            Ok(infos.collect::<Result<Vec<_>, TxnError>>()?)
        });
        answer(result, |locks| ScanLockResponse {
            locks,
            ..Default::default()
        })
    }

    /// `KvResolveLock`: commits or (commit ts 0) rolls back the locks of one transaction or of
    /// several, in the whole region or on given keys.
    pub(crate) fn resolve_lock(&self, req: ResolveLockRequest) -> ResolveLockResponse {
        let result = self.write_command(req.context.as_ref(), |command| {
            if !req.keys.is_empty() {
                return command.resolve_keys(&req);
            }
            let mut decided: BTreeMap<Ts, Ts> = req
                .txn_infos
                .iter()
                .map(|info| (Ts::new(info.txn), Ts::new(info.status)))
                .collect();
            if decided.is_empty() {
                decided.insert(Ts::new(req.start_version), Ts::new(req.commit_version));
            }
            let range = range_of(&command.view.region);
            let wanted = |lock: &LockRecord| decided.contains_key(&lock.start_ts);
            for (key, lock) in command.view.locks(&range, 0, wanted)? {
                let commit_ts = decided.get(&lock.start_ts).copied().unwrap_or_default();
                command.resolve(&key, &lock, commit_ts)?;
            }
            Ok(())
        });
        answer(result, |()| ResolveLockResponse::default())
    }
}

impl Command<'_> {
    fn resolve_keys(&mut self, req: &ResolveLockRequest) -> Result<(), KvError> {
        let (start_ts, commit_ts) = (Ts::new(req.start_version), Ts::new(req.commit_version));
        for raw in &req.keys {
            let key = self.view.key(raw)?;
            if commit_ts.is_zero() {
                self.cleanup(&key, start_ts, Ts::ZERO, IfUnknown::Rollback)?;
            } else {
                check_order(start_ts, commit_ts)?;
                self.commit(&key, start_ts, commit_ts)?;
            }
        }
        Ok(())
    }

    fn resolve(
        &mut self,
        key: &EncodedKey,
        lock: &LockRecord,
        commit_ts: Ts,
    ) -> Result<(), KvError> {
        if commit_ts.is_zero() {
            return self.rollback_lock(key, lock, true);
        }
        check_order(lock.start_ts, commit_ts)?;
        self.commit(key, lock.start_ts, commit_ts)
    }
}
