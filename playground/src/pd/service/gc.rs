//! The calls that hold GC back: messages in, messages out. The rules are those of `safepoint`, or of
//! `gc_states` where the playground was asked for them; without them the new calls do not exist.
//!
//! The new calls refuse in `header.error`, the old ones by a status, as PD does.

use pitr_proto::pdpb::{self, keyspace_scope::Keyspace};
use tonic::Status;

use super::{PdService, disk};
use crate::pd::gc_states::{self, Barrier, GcStateError, NULL_KEYSPACE};
use crate::pd::safepoint;

impl PdService {
    pub(super) fn gc_safe_point(
        &self,
        request: pdpb::UpdateGcSafePointRequest,
    ) -> Result<pdpb::UpdateGcSafePointResponse, Status> {
        self.check(request.header.as_ref())?;
        let target = request.safe_point;
        let state = &self.shared.state;
        let done = state.update(|r| match self.shared.gc_states {
            false => Ok(safepoint::advance_gc(r, target)),
            true => gc_states::update_gc(r, target).map_err(|e| e.to_string()),
        });
        let new_safe_point = done.map_err(disk)?.map_err(Status::unknown)?;
        Ok(pdpb::UpdateGcSafePointResponse {
            header: self.header(),
            new_safe_point,
        })
    }

    pub(super) fn service_safe_point(
        &self,
        request: pdpb::UpdateServiceGcSafePointRequest,
    ) -> Result<pdpb::UpdateServiceGcSafePointResponse, Status> {
        self.check(request.header.as_ref())?;
        let id = String::from_utf8_lossy(&request.service_id);
        let now_ms = (self.shared.clock)();
        let (ttl, ts) = (request.ttl, request.safe_point);
        let done = self.shared.state.update(|r| match self.shared.gc_states {
            false => {
                let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
                safepoint::update_service(r, &id, ttl, ts, now).map_err(|e| e.to_string())
            }
            true => {
                let id = id.into_owned();
                gc_states::update_service(r, Barrier { id, ts, ttl }, now_ms)
                    .map_err(|e| e.to_string())
            }
        });
        let minimum = done.map_err(disk)?.map_err(Status::unknown)?;
        Ok(pdpb::UpdateServiceGcSafePointResponse {
            header: self.header(),
            service_id: minimum.service_id.into(),
            ttl: minimum.ttl,
            min_safe_point: minimum.safe_point,
        })
    }

    pub(super) fn gc_state(
        &self,
        request: pdpb::GetGcStateRequest,
    ) -> Result<pdpb::GetGcStateResponse, Status> {
        self.admit("GetGCState", request.header.as_ref())?;
        let now_ms = (self.shared.clock)();
        let found = gc_states::null_keyspace(keyspace(request.keyspace_scope)).map(|()| {
            self.shared.state.read(|r| pdpb::GcState {
                keyspace_scope: Some(pdpb::KeyspaceScope {
                    keyspace: Some(Keyspace::KeyspaceId(NULL_KEYSPACE)),
                }),
                is_keyspace_level_gc: false,
                txn_safe_point: r.txn_safe_point,
                gc_safe_point: r.gc_safe_point,
                gc_barriers: match request.exclude_gc_barriers {
                    true => Vec::new(),
                    false => gc_states::barriers(r, now_ms)
                        .into_iter()
                        .map(info)
                        .collect(),
                },
            })
        });
        let (header, gc_state) = self.told(found);
        Ok(pdpb::GetGcStateResponse { header, gc_state })
    }

    pub(super) fn set_barrier(
        &self,
        request: pdpb::SetGcBarrierRequest,
    ) -> Result<pdpb::SetGcBarrierResponse, Status> {
        self.admit("SetGCBarrier", request.header.as_ref())?;
        let now_ms = (self.shared.clock)();
        let scope = keyspace(request.keyspace_scope);
        let wanted = Barrier {
            id: request.barrier_id,
            ts: request.barrier_ts,
            ttl: request.ttl_seconds,
        };
        let state = &self.shared.state;
        let done = state.update(|r| gc_states::set_barrier(r, scope, wanted, now_ms));
        let (header, barrier) = self.told(done.map_err(disk)?);
        Ok(pdpb::SetGcBarrierResponse {
            header,
            new_barrier_info: barrier.map(info),
        })
    }

    pub(super) fn delete_barrier(
        &self,
        request: pdpb::DeleteGcBarrierRequest,
    ) -> Result<pdpb::DeleteGcBarrierResponse, Status> {
        self.admit("DeleteGCBarrier", request.header.as_ref())?;
        let now_ms = (self.shared.clock)();
        let scope = keyspace(request.keyspace_scope);
        let id = &request.barrier_id;
        let state = &self.shared.state;
        let done = state.update(|r| gc_states::delete_barrier(r, scope, id, now_ms));
        let (header, barrier) = self.told(done.map_err(disk)?);
        Ok(pdpb::DeleteGcBarrierResponse {
            header,
            deleted_barrier_info: barrier.flatten().map(info),
        })
    }

    pub(super) fn advance_txn(
        &self,
        request: pdpb::AdvanceTxnSafePointRequest,
    ) -> Result<pdpb::AdvanceTxnSafePointResponse, Status> {
        self.admit("AdvanceTxnSafePoint", request.header.as_ref())?;
        let now_ms = (self.shared.clock)();
        let scope = keyspace(request.keyspace_scope);
        let state = &self.shared.state;
        let done = state.update(|r| gc_states::advance_txn(r, scope, request.target, now_ms));
        let (header, moved) = self.told(done.map_err(disk)?);
        let (old, new) = moved
            .as_ref()
            .map_or((0, 0), |moved| (moved.old, moved.new));
        Ok(pdpb::AdvanceTxnSafePointResponse {
            header,
            old_txn_safe_point: old,
            new_txn_safe_point: new,
            blocker_description: moved
                .and_then(|moved| moved.blocker)
                .map_or(String::new(), |by| {
                    format!("GC barrier {:?} at {}, {} s left", by.id, by.ts, by.ttl)
                }),
        })
    }

    pub(super) fn advance_gc(
        &self,
        request: pdpb::AdvanceGcSafePointRequest,
    ) -> Result<pdpb::AdvanceGcSafePointResponse, Status> {
        self.admit("AdvanceGCSafePoint", request.header.as_ref())?;
        let scope = keyspace(request.keyspace_scope);
        let state = &self.shared.state;
        let done = state.update(|r| gc_states::advance_gc(r, scope, request.target));
        let (header, moved) = self.told(done.map_err(disk)?);
        let (old_gc_safe_point, new_gc_safe_point) = moved.unwrap_or_default();
        Ok(pdpb::AdvanceGcSafePointResponse {
            header,
            old_gc_safe_point,
            new_gc_safe_point,
        })
    }

    /// Whether the method exists and the request is for this cluster.
    fn admit(&self, method: &str, header: Option<&pdpb::RequestHeader>) -> Result<(), Status> {
        match self.shared.gc_states {
            true => self.check(header),
            false => Err(Status::unimplemented(format!(
                "unknown method {method} for service pdpb.PD"
            ))),
        }
    }

    /// The header of an answer, and what goes with it.
    fn told<T>(&self, done: Result<T, GcStateError>) -> (Option<pdpb::ResponseHeader>, Option<T>) {
        match done {
            Ok(answer) => (self.header(), Some(answer)),
            Err(error) => {
                let header = self.error_header(pdpb::ErrorType::Unknown, error.to_string());
                (header, None)
            }
        }
    }
}

fn keyspace(scope: Option<pdpb::KeyspaceScope>) -> u32 {
    match scope.map(|scope| scope.keyspace) {
        None => NULL_KEYSPACE,
        Some(Some(Keyspace::KeyspaceId(id))) => id,
        // What a number that is left out means.
        Some(None) => 0,
    }
}

fn info(barrier: Barrier) -> pdpb::GcBarrierInfo {
    pdpb::GcBarrierInfo {
        barrier_id: barrier.id,
        barrier_ts: barrier.ts,
        ttl_seconds: barrier.ttl,
    }
}
