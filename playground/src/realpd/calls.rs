//! The calls that a store makes at PD, on top of the client that finds the leader.
//!
//! Source of the errors: tikv/pd `server/grpc_service.go`.

use pitr_cluster::pd::{HasHeader, PdClient, PdError};
use pitr_proto::{metapb, pdpb};

use crate::store::RegionIds;

/// An answer with its header. The trait is of another crate, hence the wrapper.
struct Answer<T>(T);

macro_rules! has_header {
    ($($response:ident),* $(,)?) => {$(
        impl HasHeader for Answer<pdpb::$response> {
            fn header(&self) -> Option<&pdpb::ResponseHeader> {
                self.0.header.as_ref()
            }
        }
    )*};
}

has_header!(
    AllocIdResponse,
    AskBatchSplitResponse,
    BootstrapResponse,
    IsBootstrappedResponse,
    PutStoreResponse,
    ReportBatchSplitResponse,
    StoreHeartbeatResponse,
);

/// One call, written out once: request into stub method, answer out of its wrapper.
macro_rules! call {
    ($client:expr, $name:literal, $method:ident, $request:expr) => {{
        let client: &PdClient = $client;
        let request = $request;
        client
            .call($name, |mut stub| {
                let request = request.clone();
                async move { Ok(stub.$method(request).await?.map(Answer)) }
            })
            .await
            .map(|answer| answer.0)
    }};
}

/// Takes a fresh id. One at a time: PD of the 8.1 line does not know the field `count`.
pub(super) async fn alloc_id(client: &PdClient) -> Result<u64, PdError> {
    let request = pdpb::AllocIdRequest {
        header: client.header(),
        count: 1,
    };
    let answer = call!(client, "AllocID", alloc_id, request)?;
    Ok(answer.id)
}

pub(super) async fn is_bootstrapped(client: &PdClient) -> Result<bool, PdError> {
    let request = pdpb::IsBootstrappedRequest {
        header: client.header(),
    };
    let answer = call!(client, "IsBootstrapped", is_bootstrapped, request)?;
    Ok(answer.bootstrapped)
}

/// Makes the cluster of its first store and region. A rejection is that of a cluster that exists.
pub(super) async fn bootstrap(
    client: &PdClient,
    store: metapb::Store,
    region: metapb::Region,
) -> Result<(), PdError> {
    let request = pdpb::BootstrapRequest {
        header: client.header(),
        store: Some(store),
        region: Some(region),
    };
    call!(client, "Bootstrap", bootstrap, request).map(drop)
}

/// Tells the addresses and the version of the store.
pub(super) async fn put_store(client: &PdClient, store: metapb::Store) -> Result<(), PdError> {
    let request = pdpb::PutStoreRequest {
        header: client.header(),
        store: Some(store),
    };
    call!(client, "PutStore", put_store, request).map(drop)
}

pub(super) async fn store_heartbeat(
    client: &PdClient,
    stats: pdpb::StoreStats,
) -> Result<(), PdError> {
    let request = pdpb::StoreHeartbeatRequest {
        header: client.header(),
        stats: Some(stats),
    };
    call!(client, "StoreHeartbeat", store_heartbeat, request).map(drop)
}

/// Ids for the parts that come into being when `region` is cut at `count` keys.
pub(super) async fn ask_split(
    client: &PdClient,
    region: metapb::Region,
    count: usize,
) -> Result<Vec<RegionIds>, PdError> {
    let malformed = PdError::Malformed {
        call: "AskBatchSplit",
        what: "not one region id per part and one id per peer",
    };
    let peers = region.peers.len();
    let request = pdpb::AskBatchSplitRequest {
        header: client.header(),
        region: Some(region),
        split_count: u32::try_from(count).unwrap_or(u32::MAX),
    };
    let answer = call!(client, "AskBatchSplit", ask_batch_split, request)?;
    let ids = answer.ids.into_iter().map(|id| {
        (id.new_peer_ids.len() == peers).then_some(RegionIds {
            region: id.new_region_id,
            peers: id.new_peer_ids,
        })
    });
    match ids.collect::<Option<Vec<_>>>() {
        Some(ids) if ids.len() == count => Ok(ids),
        _ => Err(malformed),
    }
}

/// Tells what a region became, in key order.
pub(super) async fn report_split(
    client: &PdClient,
    regions: Vec<metapb::Region>,
) -> Result<(), PdError> {
    let request = pdpb::ReportBatchSplitRequest {
        header: client.header(),
        regions,
    };
    call!(client, "ReportBatchSplit", report_batch_split, request).map(drop)
}
