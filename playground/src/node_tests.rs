//! The assembled process over its sockets.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use pitr_proto::cdcpb::{self, change_data_client::ChangeDataClient};
use pitr_proto::etcdserverpb::{
    self as etcd, kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use pitr_proto::metapb;
use pitr_proto::pdpb::{self, pd_client::PdClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::{Playground, PlaygroundConfig};

async fn channel(playground: &Playground) -> Channel {
    let url = format!("http://{}", playground.pd_addr());
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn header(cluster_id: u64) -> Option<pdpb::RequestHeader> {
    Some(pdpb::RequestHeader {
        cluster_id,
        ..Default::default()
    })
}

async fn tso(pd: &mut PdClient<Channel>, cluster_id: u64, counts: &[u32]) -> Vec<(i64, i64)> {
    let requests: Vec<_> = counts
        .iter()
        .map(|count| pdpb::TsoRequest {
            header: header(cluster_id),
            count: *count,
            ..Default::default()
        })
        .collect();
    let mut answers = pd.tso(stream::iter(requests)).await.unwrap().into_inner();
    let mut out = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let ts = answer.timestamp.unwrap();
        out.push((ts.physical, ts.logical));
    }
    out
}

fn put(key: &'static str, value: &'static str) -> etcd::PutRequest {
    etcd::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_playground_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let first = Playground::start(PlaygroundConfig::new(dir.path())).unwrap();
    let cluster = first.cluster_id();
    let mut pd = PdClient::new(channel(&first).await);
    let members = pd.get_members(pdpb::GetMembersRequest::default()).await;
    let leader = members.unwrap().into_inner().leader.unwrap();
    assert_eq!(leader.client_urls, [format!("http://{}", first.pd_addr())]);
    let before = tso(&mut pd, cluster, &[1, 10, 5]).await;
    assert!(before[1].1 - before[0].1 >= 10 || before[1].0 > before[0].0);
    first.store().split_at_user_keys(&[b"m"]).unwrap();
    let mut kv = KvClient::new(channel(&first).await);
    let put = kv.put(put("k", "v")).await.unwrap().into_inner();
    tokio::task::spawn_blocking(move || first.shutdown())
        .await
        .unwrap();

    let second = Playground::start(PlaygroundConfig::new(dir.path())).unwrap();
    assert_eq!(second.cluster_id(), cluster);
    let mut pd = PdClient::new(channel(&second).await);
    assert!(tso(&mut pd, cluster, &[1]).await[0] > before[2]);
    let scan = pdpb::ScanRegionsRequest {
        header: header(cluster),
        ..Default::default()
    };
    let regions = pd.scan_regions(scan).await.unwrap().into_inner();
    assert_eq!((regions.regions.len(), regions.leaders.len()), (2, 2));
    let mut kv = KvClient::new(channel(&second).await);
    let range = etcd::RangeRequest {
        key: "k".into(),
        ..Default::default()
    };
    let found = kv.range(range).await.unwrap().into_inner();
    assert_eq!(found.kvs[0].value, "v");
    assert_eq!(found.header.unwrap().revision, put.header.unwrap().revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_playground_has_closed_its_databases_and_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = PlaygroundConfig::new(dir.path());
    config.stores = 2;
    for _ in 0..3 {
        let playground = Playground::start(config.clone()).unwrap();
        // A second run at the same addresses fails as long as anything of the first is open.
        let addresses = playground.addresses();
        config.pd_addr = playground.pd_addr();
        config.store_addr = addresses[0].store;
        drop(playground);
        for address in &addresses {
            std::net::TcpListener::bind(address.store).unwrap();
        }
        config.store_addr.set_port(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_advertised_addresses_than_stores_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = PlaygroundConfig::new(dir.path().join("data"));
    config.advertise_peer_addrs = vec!["a:1".to_owned(), "b:1".to_owned()];
    let refused = Playground::start(config).err().unwrap().to_string();
    assert!(
        refused.contains("2 advertised addresses for 1"),
        "{refused}"
    );
    assert!(!dir.path().join("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let playground = Playground::start(PlaygroundConfig::new(dir.path())).unwrap();
    let need = playground.cluster_id();
    let mut pd = PdClient::new(channel(&playground).await);
    let request = pdpb::GetAllStoresRequest {
        header: header(5),
        ..Default::default()
    };
    let status = pd.get_all_stores(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        format!("mismatch cluster id, need {need} but got 5")
    );
}

fn watch(key: &'static str, start_revision: i64) -> etcd::WatchRequest {
    etcd::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(etcd::WatchCreateRequest {
            key: key.into(),
            range_end: Bytes::from_static(&[0]),
            start_revision,
            prev_kv: true,
            ..Default::default()
        })),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_share_a_stream_and_begin_in_the_past_or_now() {
    let dir = tempfile::tempdir().unwrap();
    let playground = Playground::start(PlaygroundConfig::new(dir.path())).unwrap();
    let mut kv = KvClient::new(channel(&playground).await);
    kv.put(put("a", "1")).await.unwrap();
    kv.put(put("a", "2")).await.unwrap();
    let mut client = WatchClient::new(channel(&playground).await);
    let (requests, stream) = mpsc::channel(4);
    requests.send(watch("a", 2)).await.unwrap();
    let mut answers = client
        .watch(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let message = tokio::time::timeout(Duration::from_secs(10), answers.message());
        message.await.unwrap().unwrap().unwrap()
    };
    let created = next().await;
    assert!(created.created);
    let past = next().await;
    let values: Vec<_> = past
        .events
        .iter()
        .map(|e| e.kv.clone().unwrap().value)
        .collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(past.events[1].prev_kv.as_ref().unwrap().value, "1");
    requests.send(watch("a", 0)).await.unwrap();
    let second = next().await;
    assert!(second.created && second.watch_id != created.watch_id);
    kv.put(put("b", "3")).await.unwrap();
    let mut ids = [next().await.watch_id, next().await.watch_id];
    ids.sort_unstable();
    assert_eq!(ids, [created.watch_id, second.watch_id]);
    let cancel = etcd::WatchCancelRequest {
        watch_id: second.watch_id,
    };
    let cancel = RequestUnion::CancelRequest(cancel);
    let request_union = Some(cancel);
    requests
        .send(etcd::WatchRequest { request_union })
        .await
        .unwrap();
    assert!(next().await.canceled);
    kv.put(put("c", "4")).await.unwrap();
    assert_eq!(next().await.watch_id, created.watch_id);
}

fn feed(region: &metapb::Region, cluster_id: u64) -> cdcpb::ChangeDataRequest {
    cdcpb::ChangeDataRequest {
        header: Some(cdcpb::Header {
            cluster_id,
            ticdc_version: "8.5.0".to_owned(),
        }),
        region_id: region.id,
        region_epoch: region.region_epoch,
        request_id: 9,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_data_answer_on_the_store_port_and_name_unknown_features() {
    let dir = tempfile::tempdir().unwrap();
    let playground = Playground::start(PlaygroundConfig {
        resolved_ts_interval: Duration::from_millis(50),
        ..PlaygroundConfig::new(dir.path())
    })
    .unwrap();
    let url = format!("http://{}", playground.store_addr());
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = ChangeDataClient::new(channel);
    let region = playground.store().regions().find(b"").unwrap().clone();
    let request = feed(&region, playground.cluster_id());
    let open = |features: &'static str| {
        // The stream stays open behind its first request.
        let requests = stream::iter([request.clone()]).chain(stream::pending());
        let mut call = tonic::Request::new(requests);
        let features = MetadataValue::from_static(features);
        call.metadata_mut().insert("features", features);
        call
    };
    let refused = client.event_feed_v2(open("x-unknown")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    assert_eq!(refused.message(), "x-unknown");

    let answers = client.event_feed_v2(open("stream-multiplexing"));
    let mut answers = answers.await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.events[0].request_id, 9);
    let mut previous = 0;
    for _ in 0..3 {
        let message = answers.message().await.unwrap().unwrap();
        let resolved = message.resolved_ts.unwrap();
        assert_eq!(
            (&resolved.regions[..], resolved.request_id),
            (&[region.id][..], 9)
        );
        assert!(resolved.ts > previous);
        assert!(playground.store().lock_writes().max_ts().get() >= resolved.ts);
        previous = resolved.ts;
    }
}
