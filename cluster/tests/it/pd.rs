//! PD's two error layers and its leader changes, against two small members.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pitr_cluster::pd::{PdClient, PdError, PdOptions};
use pitr_format::{Class, EncodedRange, Ts};
use pitr_proto::pdpb::pd_server::{Pd, PdServer};
use pitr_proto::pdpb::*;
use pitr_proto::{metapb, pdpb};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{bind, serve};

const CLUSTER: u64 = 42;

/// What both members share.
#[derive(Default)]
pub struct Shared {
    urls: Mutex<Vec<String>>,
    pub leader: AtomicUsize,
    /// Errors to answer first, in the header.
    header_errors: Mutex<VecDeque<(ErrorType, &'static str)>>,
    header_cluster: Mutex<Option<u64>>,
    /// The first peer of a region leads it.
    pub regions: Mutex<Vec<metapb::Region>>,
    pub stores: Mutex<Vec<metapb::Store>>,
    /// Added to the GC safe point.
    pub collected: AtomicU64,
}

struct Member {
    index: usize,
    shared: Arc<Shared>,
}

impl Member {
    /// The header of a leader-only call, or the refusal of a follower.
    fn header(&self) -> Result<Option<ResponseHeader>, Status> {
        if self.shared.leader.load(Ordering::SeqCst) != self.index {
            return Err(Status::unavailable("not leader"));
        }
        let error = self.shared.header_errors.lock().pop_front();
        Ok(Some(ResponseHeader {
            cluster_id: self.shared.header_cluster.lock().unwrap_or(CLUSTER),
            error: error.map(|(kind, message)| pdpb::Error {
                r#type: kind as i32,
                message: message.into(),
            }),
        }))
    }
}

/// Methods in the form that `async_trait` gives them: it does not look into macros.
macro_rules! not_served {
    ($($name:ident($request:ident) -> $response:ident;)*) => {$(
        fn $name<'a, 'b>(&'a self, _: Request<$request>) -> Answer<'b, $response>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        }
    )*};
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

#[tonic::async_trait]
impl Pd for Member {
    async fn get_members(
        &self,
        _: Request<GetMembersRequest>,
    ) -> Result<Response<GetMembersResponse>, Status> {
        let urls = self.shared.urls.lock().clone();
        let member = |url: &String| pdpb::Member {
            client_urls: vec![url.clone()],
            ..Default::default()
        };
        let leader = urls.get(self.shared.leader.load(Ordering::SeqCst));
        Ok(Response::new(GetMembersResponse {
            header: Some(ResponseHeader {
                cluster_id: CLUSTER,
                error: None,
            }),
            members: urls.iter().map(member).collect(),
            leader: leader.map(member),
            ..Default::default()
        }))
    }

    type TsoStream = ReceiverStream<Result<TsoResponse, Status>>;

    async fn tso(
        &self,
        request: Request<Streaming<TsoRequest>>,
    ) -> Result<Response<Self::TsoStream>, Status> {
        let header = self.header()?;
        let mut requests = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                assert_eq!(
                    (request.count, request.header.unwrap().cluster_id),
                    (1, CLUSTER)
                );
                let answer = TsoResponse {
                    header: header.clone(),
                    count: 1,
                    timestamp: Some(Timestamp {
                        physical: 1_795_313_719_643,
                        logical: 7,
                        suffix_bits: 0,
                    }),
                };
                let _ = sender.send(Ok(answer)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_gc_safe_point(
        &self,
        _: Request<GetGcSafePointRequest>,
    ) -> Result<Response<GetGcSafePointResponse>, Status> {
        Ok(Response::new(GetGcSafePointResponse {
            header: self.header()?,
            safe_point: 100 + self.index as u64 + self.shared.collected.load(Ordering::SeqCst),
        }))
    }

    async fn get_all_stores(
        &self,
        _: Request<GetAllStoresRequest>,
    ) -> Result<Response<GetAllStoresResponse>, Status> {
        Ok(Response::new(GetAllStoresResponse {
            header: self.header()?,
            stores: self.shared.stores.lock().clone(),
        }))
    }

    async fn scan_regions(
        &self,
        request: Request<ScanRegionsRequest>,
    ) -> Result<Response<ScanRegionsResponse>, Status> {
        let request = request.into_inner();
        let range = EncodedRange::new(request.start_key, request.end_key);
        let inside = |region: &&metapb::Region| {
            let region = EncodedRange::new(region.start_key.clone(), region.end_key.clone());
            region.intersect(&range).is_some()
        };
        let regions = self.shared.regions.lock();
        let regions = regions.iter().filter(inside).take(2);
        Ok(Response::new(ScanRegionsResponse {
            header: self.header()?,
            regions: regions
                .map(|region| pdpb::Region {
                    region: Some(region.clone()),
                    leader: region.peers.first().cloned(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }))
    }

    async fn get_region(
        &self,
        _: Request<GetRegionRequest>,
    ) -> Result<Response<GetRegionResponse>, Status> {
        Ok(Response::new(GetRegionResponse {
            header: self.header()?,
            ..Default::default()
        }))
    }

    type RegionHeartbeatStream = ReceiverStream<Result<RegionHeartbeatResponse, Status>>;

    async fn region_heartbeat(
        &self,
        _: Request<Streaming<RegionHeartbeatRequest>>,
    ) -> Result<Response<Self::RegionHeartbeatStream>, Status> {
        Err(Status::unimplemented("region_heartbeat"))
    }

    not_served! {
        get_gc_state(GetGcStateRequest) -> GetGcStateResponse;
        set_gc_barrier(SetGcBarrierRequest) -> SetGcBarrierResponse;
        delete_gc_barrier(DeleteGcBarrierRequest) -> DeleteGcBarrierResponse;
        advance_txn_safe_point(AdvanceTxnSafePointRequest) -> AdvanceTxnSafePointResponse;
        advance_gc_safe_point(AdvanceGcSafePointRequest) -> AdvanceGcSafePointResponse;
        bootstrap(BootstrapRequest) -> BootstrapResponse;
        put_store(PutStoreRequest) -> PutStoreResponse;
        store_heartbeat(StoreHeartbeatRequest) -> StoreHeartbeatResponse;
        ask_batch_split(AskBatchSplitRequest) -> AskBatchSplitResponse;
        report_batch_split(ReportBatchSplitRequest) -> ReportBatchSplitResponse;
        get_cluster_info(GetClusterInfoRequest) -> GetClusterInfoResponse;
        is_bootstrapped(IsBootstrappedRequest) -> IsBootstrappedResponse;
        alloc_id(AllocIdRequest) -> AllocIdResponse;
        is_snapshot_recovering(IsSnapshotRecoveringRequest) -> IsSnapshotRecoveringResponse;
        get_store(GetStoreRequest) -> GetStoreResponse;
        get_prev_region(GetRegionRequest) -> GetRegionResponse;
        get_region_by_id(GetRegionByIdRequest) -> GetRegionResponse;
        batch_scan_regions(BatchScanRegionsRequest) -> BatchScanRegionsResponse;
        get_cluster_config(GetClusterConfigRequest) -> GetClusterConfigResponse;
        scatter_region(ScatterRegionRequest) -> ScatterRegionResponse;
        update_gc_safe_point(UpdateGcSafePointRequest) -> UpdateGcSafePointResponse;
        update_service_gc_safe_point(UpdateServiceGcSafePointRequest)
            -> UpdateServiceGcSafePointResponse;
        get_operator(GetOperatorRequest) -> GetOperatorResponse;
        split_regions(SplitRegionsRequest) -> SplitRegionsResponse;
        split_and_scatter_regions(SplitAndScatterRegionsRequest)
            -> SplitAndScatterRegionsResponse;
    }
}

fn quick() -> PdOptions {
    PdOptions {
        call_timeout: Duration::from_millis(500),
        deadline: Duration::from_millis(1500),
        connect_deadline: Duration::from_millis(500),
        ..PdOptions::default()
    }
}

/// Two members, the first one leads; a client that knows only the second.
pub async fn cluster() -> (Arc<Shared>, Arc<PdClient>) {
    let shared = Arc::new(Shared::default());
    for index in 0..2 {
        let (listener, url) = bind().await;
        shared.urls.lock().push(url);
        let member = Member {
            index,
            shared: shared.clone(),
        };
        serve(
            listener,
            Server::builder().add_service(PdServer::new(member)),
        );
    }
    let known = shared.urls.lock()[1].clone();
    let client = PdClient::connect_with(&[known], quick()).await.unwrap();
    (shared, client)
}

#[tokio::test]
async fn the_leader_is_found_through_a_follower_and_again_after_it_changed() {
    let (shared, client) = cluster().await;
    assert_eq!(client.cluster_id(), CLUSTER);
    assert_eq!(client.urls().len(), 2);
    assert_eq!(client.gc_safe_point().await.unwrap(), Ts::new(100));
    shared.leader.store(1, Ordering::SeqCst);
    assert_eq!(client.gc_safe_point().await.unwrap(), Ts::new(101));
}

#[tokio::test]
async fn a_time_without_a_leader_is_waited_for() {
    let (shared, client) = cluster().await;
    shared.leader.store(9, Ordering::SeqCst);
    let call = client.gc_safe_point();
    let election = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        shared.leader.store(1, Ordering::SeqCst);
    };
    let (answer, ()) = tokio::join!(call, election);
    assert_eq!(answer.unwrap(), Ts::new(101));
}

#[tokio::test]
async fn errors_in_the_header_are_seen_although_the_status_is_ok() {
    let (shared, client) = cluster().await;
    shared
        .header_errors
        .lock()
        .push_back((ErrorType::NotBootstrapped, "wait"));
    assert_eq!(client.gc_safe_point().await.unwrap(), Ts::new(100));
    shared
        .header_errors
        .lock()
        .push_back((ErrorType::IncompatibleVersion, "too old"));
    let error = client.gc_safe_point().await.unwrap_err();
    assert_eq!(error.class(), Class::Permanent);
    assert!(error.to_string().contains("too old"), "{error}");
    let error = client.region_of(b"k").await.unwrap_err();
    assert_eq!(
        error.class(),
        Class::Refresh,
        "an empty answer is no region"
    );
}

#[tokio::test]
async fn an_answer_of_another_cluster_is_permanent() {
    let (shared, client) = cluster().await;
    *shared.header_cluster.lock() = Some(43);
    let error = client.gc_safe_point().await.unwrap_err();
    assert!(
        matches!(error, PdError::WrongCluster { found: 43, .. }),
        "{error}"
    );
    assert_eq!(error.class(), Class::Permanent);
}

#[tokio::test]
async fn a_call_that_pd_does_not_serve_fails_at_once() {
    let (_shared, client) = cluster().await;
    let held = client.hold_gc("pitr", Duration::from_secs(60), Ts::new(1));
    let error = held.await.unwrap_err();
    assert!(matches!(error, PdError::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn a_timestamp_comes_from_a_stream_that_stays_open_until_the_answer() {
    let (_shared, client) = cluster().await;
    let ts = client.tso().await.unwrap();
    assert_eq!((ts.physical_ms(), ts.logical()), (1_795_313_719_643, 7));
}

#[tokio::test]
async fn regions_are_read_page_by_page_up_to_a_hole() {
    let (shared, client) = cluster().await;
    let region = |id, start: &'static str, end: &'static str| metapb::Region {
        id,
        start_key: start.into(),
        end_key: end.into(),
        ..Default::default()
    };
    *shared.regions.lock() = vec![
        region(1, "", "b"),
        region(2, "b", "d"),
        region(3, "d", "f"),
        region(4, "g", ""),
    ];
    let (regions, rest) = client.regions_in(&EncodedRange::ALL).await.unwrap();
    let ids: Vec<_> = regions.iter().map(|r| r.meta.id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(rest, Some(EncodedRange::new("f", "")));
    let (regions, rest) = client
        .regions_in(&EncodedRange::new("c", "d"))
        .await
        .unwrap();
    assert_eq!((regions.len(), rest), (1, None));
}

#[tokio::test]
async fn unreachable_end_points_are_all_named() {
    let urls = ["http://127.0.0.1:9", "127.0.0.1:11"].map(str::to_owned);
    let error = match PdClient::connect_with(&urls, quick()).await {
        Err(error) => error,
        Ok(_) => panic!("nobody listens there"),
    };
    assert_eq!(error.class(), Class::Retry);
    let text = error.to_string();
    for part in ["http://127.0.0.1:9", "http://127.0.0.1:11", "refused"] {
        assert!(text.contains(part), "{text}");
    }
}
