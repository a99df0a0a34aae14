//! Reads of single keys.

use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::kvrpcpb::{
    BatchGetRequest, BatchGetResponse, GetRequest, GetResponse, KvPair, MvccGetByKeyRequest,
    MvccGetByKeyResponse, MvccInfo, MvccLock, MvccValue, MvccWrite, Op,
};
use pitr_restore_worker::engine::EngineCf;

use super::answer::{answer, error_pair};
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::lock::LockRecord;
use crate::store::view::{Found, ReadRules, View};

impl Store {
    /// `KvGet`.
    pub(crate) fn get(&self, req: GetRequest) -> GetResponse {
        let rules = ReadRules::new(Ts::new(req.version), req.context.as_ref());
        let result = self
            .read_view(req.context.as_ref(), rules.ts)
            .and_then(|view| Ok(view.get(&view.key(&req.key)?, &rules)?));
        answer(result, |found| match found {
            Some(Found { value, commit_ts }) => GetResponse {
                value,
                commit_ts: if req.need_commit_ts {
                    commit_ts.get()
                } else {
                    0
                },
                ..Default::default()
            },
            None => GetResponse {
                not_found: true,
                ..Default::default()
            },
        })
    }

    /// `KvBatchGet`: absent keys are left out, a locked key is a pair with an error.
    pub(crate) fn batch_get(&self, req: BatchGetRequest) -> BatchGetResponse {
        let rules = ReadRules::new(Ts::new(req.version), req.context.as_ref());
        let result = self
            .read_view(req.context.as_ref(), rules.ts)
            .and_then(|view| {
                let keys = req.keys.iter().map(|raw| view.key(raw));
                let keys = keys.collect::<Result<Vec<_>, TxnError>>()?;
                let mut pairs = Vec::new();
                for (raw, key) in req.keys.iter().zip(keys) {
                    match view.get(&key, &rules) {
                        Ok(Some(Found { value, commit_ts })) => pairs.push(KvPair {
                            key: raw.clone(),
                            value,
                            commit_ts: if req.need_commit_ts {
                                commit_ts.get()
                            } else {
                                0
                            },
                            ..Default::default()
                        }),
                        Ok(None) => {}
                        Err(locked @ TxnError::KeyIsLocked(_)) => pairs.push(error_pair(&locked)),
                        Err(other) => return Err(KvError::Txn(other)),
                    }
                }
                Ok(pairs)
            });
        answer(result, |pairs| BatchGetResponse {
            pairs,
            ..Default::default()
        })
    }

    /// `MvccGetByKey`: everything that the store knows about a key.
    pub(crate) fn mvcc_get_by_key(&self, req: MvccGetByKeyRequest) -> MvccGetByKeyResponse {
        let result = self
            .read_view(req.context.as_ref(), Ts::MAX)
            .and_then(|view| Ok(mvcc_info(&view, &view.key(&req.key)?)?));
        answer(result, |info| MvccGetByKeyResponse {
            info: Some(info),
            ..Default::default()
        })
    }
}

fn mvcc_info(view: &View<'_>, key: &EncodedKey) -> Result<MvccInfo, TxnError> {
    let mut info = MvccInfo {
        lock: view.lock(key)?.map(mvcc_lock),
        ..Default::default()
    };
    let mut history = view.history(key)?;
    let mut next = history.at_or_below(Ts::MAX)?;
    while let Some((commit_ts, write)) = next {
        info.writes.push(mvcc_write(commit_ts, write));
        next = history.older()?;
    }
    let range = EncodedRange::new(key.at(Ts::MAX).into_bytes(), {
        let mut end = key.as_bytes().to_vec();
        end.extend_from_slice(&[u8::MAX; 9]);
        end
    });
    let mut values = view.snapshot.cursor(EngineCf::Default, &range)?;
    let mut more = values.seek(&range.start)?;
    while let (true, Some(key), Some(value)) = (more, values.key(), values.value()) {
        let (_, start_ts) =
            pitr_format::key::split_versioned(key).map_err(|e| TxnError::Damaged(e.to_string()))?;
        info.values.push(MvccValue {
            start_ts: start_ts.get(),
            value: value.to_vec().into(),
        });
        more = values.advance()?;
    }
    Ok(info)
}

fn mvcc_lock(lock: LockRecord) -> MvccLock {
    let (last_change_ts, versions_to_last_change) = lock.last_change.unwrap_or_default();
    MvccLock {
        r#type: lock.kind.op().into(),
        start_ts: lock.start_ts.get(),
        primary: lock.primary,
        short_value: lock.short_value.unwrap_or_default(),
        ttl: lock.ttl,
        for_update_ts: lock.for_update_ts.get(),
        txn_size: lock.txn_size,
        use_async_commit: lock.use_async_commit,
        secondaries: lock.secondaries,
        rollback_ts: lock.rollback_ts.into_iter().map(Ts::get).collect(),
        last_change_ts: last_change_ts.get(),
        versions_to_last_change,
    }
}

fn mvcc_write(commit_ts: Ts, write: WriteRecord) -> MvccWrite {
    let (last_change_ts, versions_to_last_change) = write.last_change.unwrap_or_default();
    let op = match write.kind {
        WriteType::Put => Op::Put,
        WriteType::Delete => Op::Del,
        WriteType::Lock => Op::Lock,
        WriteType::Rollback => Op::Rollback,
    };
    MvccWrite {
        r#type: op.into(),
        start_ts: write.start_ts.get(),
        commit_ts: commit_ts.get(),
        short_value: write.short_value.unwrap_or_default(),
        has_overlapped_rollback: write.overlapped_rollback,
        has_gc_fence: write.gc_fence.is_some(),
        gc_fence: write.gc_fence.unwrap_or_default().get(),
        last_change_ts: last_change_ts.get(),
        versions_to_last_change,
    }
}
