//! `pdpb.PD`: one member, leader of itself.
//!
//! Every request but `GetMembers` and `GetClusterInfo` has to name the cluster; another id is
//! answered with FAILED_PRECONDITION, as PD does. What is not in the service definition is
//! answered with UNIMPLEMENTED by tonic.

mod gc;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use pitr_proto::metapb;
use pitr_proto::pdpb::{self, pd_server::Pd};
use tonic::{Request, Response, Status, Streaming};

use crate::pd::clock::Clock;
use crate::pd::state::{StateError, StateFile};
use crate::pd::topology::{Placed, Topology, region_at, regions_between, with_leader};
use crate::pd::tso::{MAX_COUNT, TimestampOracle};

/// What PD reports as its own version.
const PD_VERSION: &str = "v8.5.6";
/// The same for one with GC states: the first that has them.
const PD_VERSION_GC_STATES: &str = "v9.0.0-beta.2.pre";

type Answer<T> = Result<Response<T>, Status>;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct PdService {
    shared: Arc<Shared>,
}

struct Shared {
    state: Arc<StateFile>,
    oracle: Arc<TimestampOracle>,
    topology: Arc<dyn Topology>,
    clock: Clock,
    client_url: String,
    gc_states: bool,
}

impl PdService {
    /// `client_url` is what clients are told to connect to, `http://host:port`; with `gc_states` it is
    /// a PD that has them.
    pub fn new(
        state: Arc<StateFile>,
        oracle: Arc<TimestampOracle>,
        topology: Arc<dyn Topology>,
        clock: Clock,
        client_url: String,
        gc_states: bool,
    ) -> Self {
        let shared = Shared {
            state,
            oracle,
            topology,
            clock,
            client_url,
            gc_states,
        };
        PdService {
            shared: Arc::new(shared),
        }
    }

    fn check(&self, header: Option<&pdpb::RequestHeader>) -> Result<(), Status> {
        let need = self.shared.state.cluster_id();
        match header.map_or(0, |h| h.cluster_id) {
            got if got == need => Ok(()),
            got => Err(Status::failed_precondition(format!(
                "mismatch cluster id, need {need} but got {got}"
            ))),
        }
    }

    fn header(&self) -> Option<pdpb::ResponseHeader> {
        Some(pdpb::ResponseHeader {
            cluster_id: self.shared.state.cluster_id(),
            error: None,
        })
    }

    fn error_header(&self, kind: pdpb::ErrorType, message: String) -> Option<pdpb::ResponseHeader> {
        Some(pdpb::ResponseHeader {
            cluster_id: self.shared.state.cluster_id(),
            error: Some(pdpb::Error {
                r#type: kind.into(),
                message,
            }),
        })
    }

    fn region(&self, found: Option<&Placed>) -> pdpb::GetRegionResponse {
        pdpb::GetRegionResponse {
            header: self.header(),
            leader: found.and_then(|placed| placed.leader),
            region: found.map(|placed| placed.region.clone()),
            ..Default::default()
        }
    }

    fn timestamp(&self, request: &pdpb::TsoRequest) -> Result<pdpb::TsoResponse, Status> {
        self.check(request.header.as_ref())?;
        if !(1..=MAX_COUNT).contains(&request.count) {
            return Err(Status::unknown(
                "[PD:tso:ErrGenerateTimestamp]generate timestamp failed, tso count should be positive",
            ));
        }
        let ts = self.shared.oracle.next(request.count).map_err(disk)?;
        Ok(pdpb::TsoResponse {
            header: self.header(),
            count: request.count,
            timestamp: Some(pdpb::Timestamp {
                physical: ts.physical_ms() as i64,
                logical: ts.logical() as i64,
                suffix_bits: 0,
            }),
        })
    }

    fn scatter(&self, regions: &[u64]) {
        for region in regions {
            self.shared.topology.scatter(*region);
        }
    }

    fn split(&self, keys: &[bytes::Bytes]) -> Result<Vec<u64>, Status> {
        self.shared
            .topology
            .split(keys)
            .map_err(|e| Status::unknown(format!("split of regions: {e}")))
    }
}

/// The answer to every call of a store: those that exist are in this process and ask no service.
fn no_other_store() -> Status {
    Status::unimplemented("the playground's PD serves the stores of its own process only")
}

/// New regions per key asked for, in percent: a key that is a bound already counts as not done.
fn share(new: &[u64], keys: &[bytes::Bytes]) -> u64 {
    match keys.len() as u64 {
        0 => 100,
        keys => new.len() as u64 * 100 / keys,
    }
}

fn disk(error: StateError) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl Pd for PdService {
    async fn get_cluster_info(
        &self,
        _: Request<pdpb::GetClusterInfoRequest>,
    ) -> Answer<pdpb::GetClusterInfoResponse> {
        Ok(Response::new(pdpb::GetClusterInfoResponse {
            header: self.header(),
            service_modes: vec![pdpb::ServiceMode::PdSvcMode.into()],
            tso_urls: Vec::new(),
        }))
    }

    async fn get_members(
        &self,
        _: Request<pdpb::GetMembersRequest>,
    ) -> Answer<pdpb::GetMembersResponse> {
        let version = match self.shared.gc_states {
            true => PD_VERSION_GC_STATES,
            false => PD_VERSION,
        };
        let me = pdpb::Member {
            name: "playground".to_owned(),
            member_id: 1,
            peer_urls: vec![self.shared.client_url.clone()],
            client_urls: vec![self.shared.client_url.clone()],
            binary_version: version.to_owned(),
            ..Default::default()
        };
        Ok(Response::new(pdpb::GetMembersResponse {
            header: self.header(),
            members: vec![me.clone()],
            leader: Some(me.clone()),
            etcd_leader: Some(me),
            ..Default::default()
        }))
    }

    type TsoStream = BoxStream<'static, Result<pdpb::TsoResponse, Status>>;

    async fn tso(&self, request: Request<Streaming<pdpb::TsoRequest>>) -> Answer<Self::TsoStream> {
        let me = self.clone();
        let answers = request
            .into_inner()
            .map(move |message| message.and_then(|m| me.timestamp(&m)));
        Ok(Response::new(answers.boxed()))
    }

    async fn bootstrap(
        &self,
        request: Request<pdpb::BootstrapRequest>,
    ) -> Answer<pdpb::BootstrapResponse> {
        self.check(request.get_ref().header.as_ref())?;
        let message = "cluster is already bootstrapped".to_owned();
        Ok(Response::new(pdpb::BootstrapResponse {
            header: self.error_header(pdpb::ErrorType::AlreadyBootstrapped, message),
        }))
    }

    async fn is_bootstrapped(
        &self,
        request: Request<pdpb::IsBootstrappedRequest>,
    ) -> Answer<pdpb::IsBootstrappedResponse> {
        self.check(request.get_ref().header.as_ref())?;
        Ok(Response::new(pdpb::IsBootstrappedResponse {
            header: self.header(),
            bootstrapped: true,
        }))
    }

    async fn alloc_id(
        &self,
        request: Request<pdpb::AllocIdRequest>,
    ) -> Answer<pdpb::AllocIdResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let count = request.count.max(1);
        let id = self.shared.state.alloc_ids(count).map_err(disk)?;
        Ok(Response::new(pdpb::AllocIdResponse {
            header: self.header(),
            id,
            count,
        }))
    }

    async fn is_snapshot_recovering(
        &self,
        _: Request<pdpb::IsSnapshotRecoveringRequest>,
    ) -> Answer<pdpb::IsSnapshotRecoveringResponse> {
        Ok(Response::new(pdpb::IsSnapshotRecoveringResponse {
            header: self.header(),
            marked: false,
        }))
    }

    async fn get_store(
        &self,
        request: Request<pdpb::GetStoreRequest>,
    ) -> Answer<pdpb::GetStoreResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let stores = self.shared.topology.stores();
        let Some(store) = stores.into_iter().find(|s| s.id == request.store_id) else {
            let message = format!("invalid store ID {}, not found", request.store_id);
            return Ok(Response::new(pdpb::GetStoreResponse {
                header: self.error_header(pdpb::ErrorType::Unknown, message),
                ..Default::default()
            }));
        };
        let stats = pdpb::StoreStats {
            store_id: store.id,
            region_count: u32::try_from(self.shared.topology.regions().len()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        Ok(Response::new(pdpb::GetStoreResponse {
            header: self.header(),
            store: Some(store),
            stats: Some(stats),
        }))
    }

    async fn get_all_stores(
        &self,
        request: Request<pdpb::GetAllStoresRequest>,
    ) -> Answer<pdpb::GetAllStoresResponse> {
        self.check(request.get_ref().header.as_ref())?;
        Ok(Response::new(pdpb::GetAllStoresResponse {
            header: self.header(),
            stores: [self.shared.topology.stores(), self.shared.topology.ghosts()].concat(),
        }))
    }

    async fn put_store(&self, _: Request<pdpb::PutStoreRequest>) -> Answer<pdpb::PutStoreResponse> {
        Err(no_other_store())
    }

    async fn store_heartbeat(
        &self,
        _: Request<pdpb::StoreHeartbeatRequest>,
    ) -> Answer<pdpb::StoreHeartbeatResponse> {
        Err(no_other_store())
    }

    type RegionHeartbeatStream = BoxStream<'static, Result<pdpb::RegionHeartbeatResponse, Status>>;

    async fn region_heartbeat(
        &self,
        _: Request<Streaming<pdpb::RegionHeartbeatRequest>>,
    ) -> Answer<Self::RegionHeartbeatStream> {
        Err(no_other_store())
    }

    async fn ask_batch_split(
        &self,
        _: Request<pdpb::AskBatchSplitRequest>,
    ) -> Answer<pdpb::AskBatchSplitResponse> {
        Err(no_other_store())
    }

    async fn report_batch_split(
        &self,
        _: Request<pdpb::ReportBatchSplitRequest>,
    ) -> Answer<pdpb::ReportBatchSplitResponse> {
        Err(no_other_store())
    }

    async fn get_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let regions = self.shared.topology.regions();
        let at = region_at(&regions, &request.region_key);
        Ok(Response::new(
            self.region(at.and_then(|at| regions.get(at))),
        ))
    }

    async fn get_prev_region(
        &self,
        request: Request<pdpb::GetRegionRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let regions = self.shared.topology.regions();
        let at = region_at(&regions, &request.region_key).and_then(|at| at.checked_sub(1));
        Ok(Response::new(
            self.region(at.and_then(|at| regions.get(at))),
        ))
    }

    async fn get_region_by_id(
        &self,
        request: Request<pdpb::GetRegionByIdRequest>,
    ) -> Answer<pdpb::GetRegionResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let regions = self.shared.topology.regions();
        let found = regions.iter().find(|r| r.region.id == request.region_id);
        Ok(Response::new(self.region(found)))
    }

    async fn scan_regions(
        &self,
        request: Request<pdpb::ScanRegionsRequest>,
    ) -> Answer<pdpb::ScanRegionsResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let all = self.shared.topology.regions();
        let found = regions_between(&all, &request.start_key, &request.end_key, request.limit);
        Ok(Response::new(pdpb::ScanRegionsResponse {
            header: self.header(),
            region_metas: found.iter().map(|placed| placed.region.clone()).collect(),
            leaders: found
                .iter()
                .map(|placed| placed.leader.unwrap_or_default())
                .collect(),
            regions: found.iter().map(with_leader).collect(),
        }))
    }

    async fn batch_scan_regions(
        &self,
        request: Request<pdpb::BatchScanRegionsRequest>,
    ) -> Answer<pdpb::BatchScanRegionsResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let all = self.shared.topology.regions();
        let mut found: Vec<&Placed> = Vec::new();
        for range in &request.ranges {
            for region in regions_between(&all, &range.start_key, &range.end_key, 0) {
                // Neighbouring ranges share a region; it is listed once.
                if found
                    .last()
                    .is_none_or(|last| last.region.id != region.region.id)
                {
                    found.push(region);
                }
            }
        }
        if let Ok(limit @ 1..) = usize::try_from(request.limit) {
            found.truncate(limit);
        }
        Ok(Response::new(pdpb::BatchScanRegionsResponse {
            header: self.header(),
            regions: found.into_iter().map(with_leader).collect(),
        }))
    }

    async fn get_cluster_config(
        &self,
        request: Request<pdpb::GetClusterConfigRequest>,
    ) -> Answer<pdpb::GetClusterConfigResponse> {
        self.check(request.get_ref().header.as_ref())?;
        Ok(Response::new(pdpb::GetClusterConfigResponse {
            header: self.header(),
            cluster: Some(metapb::Cluster {
                id: self.shared.state.cluster_id(),
                max_peer_count: u32::try_from(self.shared.topology.stores().len()).unwrap_or(1),
            }),
        }))
    }

    async fn scatter_region(
        &self,
        request: Request<pdpb::ScatterRegionRequest>,
    ) -> Answer<pdpb::ScatterRegionResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let regions = self.shared.topology.regions();
        let unknown = |id: &u64| !regions.iter().any(|r| r.region.id == *id);
        if !request.regions_id.is_empty() && request.regions_id.iter().all(unknown) {
            return Err(Status::unknown("region not found"));
        }
        // Every store has a peer of every region; only leaders can move.
        self.scatter(&request.regions_id);
        Ok(Response::new(pdpb::ScatterRegionResponse {
            header: self.header(),
            finished_percentage: 100,
            failed_regions_id: Vec::new(),
        }))
    }

    async fn get_gc_safe_point(
        &self,
        request: Request<pdpb::GetGcSafePointRequest>,
    ) -> Answer<pdpb::GetGcSafePointResponse> {
        self.check(request.get_ref().header.as_ref())?;
        Ok(Response::new(pdpb::GetGcSafePointResponse {
            header: self.header(),
            safe_point: self.shared.state.read(|record| record.gc_safe_point),
        }))
    }

    async fn update_gc_safe_point(
        &self,
        request: Request<pdpb::UpdateGcSafePointRequest>,
    ) -> Answer<pdpb::UpdateGcSafePointResponse> {
        self.gc_safe_point(request.into_inner()).map(Response::new)
    }

    async fn update_service_gc_safe_point(
        &self,
        request: Request<pdpb::UpdateServiceGcSafePointRequest>,
    ) -> Answer<pdpb::UpdateServiceGcSafePointResponse> {
        self.service_safe_point(request.into_inner())
            .map(Response::new)
    }

    async fn get_gc_state(
        &self,
        request: Request<pdpb::GetGcStateRequest>,
    ) -> Answer<pdpb::GetGcStateResponse> {
        self.gc_state(request.into_inner()).map(Response::new)
    }

    async fn set_gc_barrier(
        &self,
        request: Request<pdpb::SetGcBarrierRequest>,
    ) -> Answer<pdpb::SetGcBarrierResponse> {
        self.set_barrier(request.into_inner()).map(Response::new)
    }

    async fn delete_gc_barrier(
        &self,
        request: Request<pdpb::DeleteGcBarrierRequest>,
    ) -> Answer<pdpb::DeleteGcBarrierResponse> {
        self.delete_barrier(request.into_inner()).map(Response::new)
    }

    async fn advance_txn_safe_point(
        &self,
        request: Request<pdpb::AdvanceTxnSafePointRequest>,
    ) -> Answer<pdpb::AdvanceTxnSafePointResponse> {
        self.advance_txn(request.into_inner()).map(Response::new)
    }

    async fn advance_gc_safe_point(
        &self,
        request: Request<pdpb::AdvanceGcSafePointRequest>,
    ) -> Answer<pdpb::AdvanceGcSafePointResponse> {
        self.advance_gc(request.into_inner()).map(Response::new)
    }

    async fn get_operator(
        &self,
        request: Request<pdpb::GetOperatorRequest>,
    ) -> Answer<pdpb::GetOperatorResponse> {
        self.check(request.get_ref().header.as_ref())?;
        // No scheduler, so never an operator; clients read this as "scatter finished".
        Ok(Response::new(pdpb::GetOperatorResponse {
            header: self.error_header(pdpb::ErrorType::RegionNotFound, "Not Found".to_owned()),
            ..Default::default()
        }))
    }

    async fn split_regions(
        &self,
        request: Request<pdpb::SplitRegionsRequest>,
    ) -> Answer<pdpb::SplitRegionsResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let regions_id = self.split(&request.split_keys)?;
        Ok(Response::new(pdpb::SplitRegionsResponse {
            header: self.header(),
            finished_percentage: share(&regions_id, &request.split_keys),
            regions_id,
        }))
    }

    async fn split_and_scatter_regions(
        &self,
        request: Request<pdpb::SplitAndScatterRegionsRequest>,
    ) -> Answer<pdpb::SplitAndScatterRegionsResponse> {
        let request = request.into_inner();
        self.check(request.header.as_ref())?;
        let regions_id = self.split(&request.split_keys)?;
        self.scatter(&regions_id);
        Ok(Response::new(pdpb::SplitAndScatterRegionsResponse {
            header: self.header(),
            split_finished_percentage: share(&regions_id, &request.split_keys),
            scatter_finished_percentage: 100,
            regions_id,
        }))
    }
}
