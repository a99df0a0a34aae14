//! GC at PD, in both ways in which PD keeps it.
//!
//! Classic: service safepoints, each a floor for the next round of GC, and one GC safepoint that
//! everybody may raise past all of them. With *GC states*: barriers, which nothing passes, a
//! txn safepoint, which follows them, and the GC safepoint, which follows that. A service safepoint
//! that is set there is a barrier of the same id. Each call tries the new way first and falls back
//! when the server does not have it, since the leader may be of another version at any time.
//! Source: tikv/pd `pkg/gc/gc_state_manager.go`, `server/gc_service.go`.

use std::time::Duration;

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::pdpb;

use super::PdError;
use super::client::{PdClient, has_header};

/// The service whose safepoint is that of GC itself.
const GC_WORKER: &str = "gc_worker";

/// Where GC stands at a PD with GC states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcState {
    /// No transaction may begin or read below this; GC goes no further.
    pub txn_safe_point: Ts,
    /// Storage may have dropped versions that only reads below this would need.
    pub gc_safe_point: Ts,
}

has_header!(
    AdvanceGcSafePointResponse,
    AdvanceTxnSafePointResponse,
    DeleteGcBarrierResponse,
    GetGcSafePointResponse,
    GetGcStateResponse,
    SetGcBarrierResponse,
    UpdateGcSafePointResponse,
    UpdateServiceGcSafePointResponse,
);

impl PdClient {
    /// The GC safepoint: storage may already have dropped versions that only reads below it
    /// would need. Every PD tells it.
    pub async fn gc_safe_point(&self) -> Result<Ts, PdError> {
        let answer = self
            .call("GetGCSafePoint", |mut stub| async move {
                let header = self.header();
                let request = pdpb::GetGcSafePointRequest { header };
                stub.get_gc_safe_point(request).await
            })
            .await?;
        Ok(Ts::new(answer.safe_point))
    }

    /// Where GC stands, or nothing if PD has no GC states: then whoever raises the GC safepoint
    /// passes every service safepoint.
    pub async fn gc_state(&self) -> Result<Option<GcState>, PdError> {
        let answer = self
            .call("GetGCState", |mut stub| async move {
                let request = pdpb::GetGcStateRequest {
                    header: self.header(),
                    exclude_gc_barriers: true,
                    ..Default::default()
                };
                stub.get_gc_state(request).await
            })
            .await;
        let state = match answer {
            Ok(answer) => answer.gc_state,
            Err(PdError::Unsupported { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = state.ok_or(PdError::Malformed {
            call: "GetGCState",
            what: "no state",
        })?;
        Ok(Some(GcState {
            txn_safe_point: Ts::new(state.txn_safe_point),
            gc_safe_point: Ts::new(state.gc_safe_point),
        }))
    }

    /// Asks GC to keep what is after `ts` as `id`, for `ttl` from now on. Returns how far GC may go
    /// already: it is held at `ts` only if that is ≤ `ts`. What is held is a floor for later rounds
    /// of GC; whether an earlier one passed shows in [`PdClient::gc_safe_point`].
    pub async fn hold_gc(&self, id: &str, ttl: Duration, ts: Ts) -> Result<Ts, PdError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let set = self.call("SetGCBarrier", |mut stub| async move {
            let request = pdpb::SetGcBarrierRequest {
                header: self.header(),
                keyspace_scope: None,
                barrier_id: id.to_owned(),
                barrier_ts: ts.get(),
                ttl_seconds: ttl,
            };
            stub.set_gc_barrier(request).await
        });
        match set.await {
            Ok(_) => Ok(ts),
            Err(PdError::Unsupported { .. }) => self.set_service_safe_point(id, ttl, ts).await,
            Err(error @ PdError::BehindGc { .. }) => match self.gc_state().await? {
                Some(state) => Ok(state.txn_safe_point),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// GC need not keep anything for `id` any more.
    pub async fn release_gc(&self, id: &str) -> Result<(), PdError> {
        let delete = self.call("DeleteGCBarrier", |mut stub| async move {
            let request = pdpb::DeleteGcBarrierRequest {
                header: self.header(),
                keyspace_scope: None,
                barrier_id: id.to_owned(),
            };
            stub.delete_gc_barrier(request).await
        });
        match delete.await {
            Err(PdError::Unsupported { .. }) => {
                self.set_service_safe_point(id, 0, Ts::ZERO).await?;
                Ok(())
            }
            deleted => deleted.map(drop),
        }
    }

    /// First half of a round of GC: from now on no transaction may read below what is returned,
    /// the smallest of `target` and of all that holds GC. For the one that drives GC only.
    pub async fn raise_txn_safe_point(&self, target: Ts) -> Result<Ts, PdError> {
        let reached = match self.gc_state().await? {
            None => {
                let forever = i64::MAX;
                let min = self.set_service_safe_point(GC_WORKER, forever, target);
                min.await?
            }
            // PD refuses to go back.
            Some(state) if state.txn_safe_point >= target => state.txn_safe_point,
            Some(_) => {
                let answer = self
                    .call("AdvanceTxnSafePoint", |mut stub| async move {
                        let request = pdpb::AdvanceTxnSafePointRequest {
                            header: self.header(),
                            keyspace_scope: None,
                            target: target.get(),
                        };
                        stub.advance_txn_safe_point(request).await
                    })
                    .await?;
                let (old, blocker) = (answer.old_txn_safe_point, answer.blocker_description);
                tracing::info!(%target, old, new = answer.new_txn_safe_point, blocker, "GC's txn safepoint is raised");
                Ts::new(answer.new_txn_safe_point)
            }
        };
        Ok(reached.min(target))
    }

    /// Second half of a round of GC: storage may drop versions that only reads below `to` need.
    /// No lock may be left at or below it. Returns where the GC safepoint stands; it never goes
    /// back. For the one that drives GC only.
    pub async fn raise_gc_safe_point(&self, to: Ts) -> Result<Ts, PdError> {
        match self.gc_state().await? {
            None => {
                let answer = self
                    .call("UpdateGCSafePoint", |mut stub| async move {
                        let request = pdpb::UpdateGcSafePointRequest {
                            header: self.header(),
                            safe_point: to.get(),
                        };
                        stub.update_gc_safe_point(request).await
                    })
                    .await?;
                Ok(Ts::new(answer.new_safe_point))
            }
            Some(state) if state.gc_safe_point >= to => Ok(state.gc_safe_point),
            Some(_) => {
                let answer = self
                    .call("AdvanceGCSafePoint", |mut stub| async move {
                        let request = pdpb::AdvanceGcSafePointRequest {
                            header: self.header(),
                            keyspace_scope: None,
                            target: to.get(),
                        };
                        stub.advance_gc_safe_point(request).await
                    })
                    .await?;
                Ok(Ts::new(answer.new_gc_safe_point))
            }
        }
    }

    /// Sets the service safepoint `id` for `ttl` seconds (0 or less removes it). Returns the minimum
    /// over all services; PD ignores a value behind it without an error.
    async fn set_service_safe_point(&self, id: &str, ttl: i64, ts: Ts) -> Result<Ts, PdError> {
        let id = Bytes::copy_from_slice(id.as_bytes());
        let answer = self
            .call("UpdateServiceGCSafePoint", |mut stub| {
                let request = pdpb::UpdateServiceGcSafePointRequest {
                    header: self.header(),
                    service_id: id.clone(),
                    ttl,
                    safe_point: ts.get(),
                };
                async move { stub.update_service_gc_safe_point(request).await }
            })
            .await?;
        Ok(Ts::new(answer.min_safe_point))
    }
}
