//! Commands on key ranges outside of transactions: delete range and split.

use pitr_format::EncodedKey;
use pitr_format::key::data_key;
use pitr_proto::kvrpcpb::{
    DeleteRangeRequest, DeleteRangeResponse, SplitRegionRequest, SplitRegionResponse,
};
use pitr_restore_worker::engine::EngineCf;

use super::answer::answer;
use crate::store::error::{KvError, TxnError};
use crate::store::kernel::Store;
use crate::store::split::SplitError;

impl Store {
    /// `KvDeleteRange`: removes every version, value and lock of a range. It is no transaction:
    /// observers are not told, as those of a real store are not.
    pub(crate) fn delete_range(&self, req: DeleteRangeRequest) -> DeleteRangeResponse {
        let result = self.write_command(req.context.as_ref(), |command| {
            if req.end_key <= req.start_key {
                let reason = "delete range: the end is not above the start";
                return Err(TxnError::InvalidRequest(reason).into());
            }
            let range = command.view.range(&req.start_key, &req.end_key)?;
            let end = EncodedKey::encode(&req.end_key);
            if range.end != end.as_bytes() {
                let region = Box::new((*command.view.region).clone());
                let key = end.into_bytes();
                return Err(KvError::Txn(TxnError::KeyOutOfRegion { key, region }));
            }
            if req.notify_only {
                return Ok(());
            }
            let (start, end) = (data_key(&range.start), data_key(&range.end));
            Ok(command.write_everywhere(|engine, batch| {
                for cf in EngineCf::ALL {
                    batch.delete_range_cf(engine.cf(cf)?, &start, &end);
                }
                Ok(())
            })?)
        });
        answer(result, |()| DeleteRangeResponse::default())
    }

    /// `SplitRegion`, at one user key or at several.
    pub(crate) fn split_region(&self, req: SplitRegionRequest) -> SplitRegionResponse {
        let single = Some(&req.split_key).filter(|key| !key.is_empty());
        let keys = single.map_or(&req.split_keys[..], std::slice::from_ref);
        let encoded = keys.iter().map(|key| match req.is_raw_kv {
            true => key.clone(),
            false => EncodedKey::encode(key).into_bytes(),
        });
        match self.split(req.context.as_ref(), encoded) {
            Ok(regions) => SplitRegionResponse {
                left: regions.first().cloned(),
                right: regions.get(1).cloned(),
                regions,
                ..Default::default()
            },
            Err(SplitError::Refused(error)) => SplitRegionResponse {
                region_error: Some(*error),
                ..Default::default()
            },
            Err(SplitError::Engine(e)) => SplitRegionResponse {
                errors: vec![TxnError::Engine(e).to_key_error()],
                ..Default::default()
            },
        }
    }
}
