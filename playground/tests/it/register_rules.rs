//! Rules of `ChangeData` that the recording does not show: the order of the checks at a
//! registration, what a split does, the ends of a subscription (cdc-and-pd 1.3 to 1.6, 1.10).

use std::time::Duration;

use pitr_proto::cdcpb::change_data_request::{Deregister, KvApi, Request};
use pitr_proto::cdcpb::{ChangeDataRequest, Error};
use pitr_proto::errorpb::RegionNotFound;

use super::feed::{Feed, Item, MULTIPLEXED, Protocol, register};
use super::system::{OFTEN, System, encode};

/// Registers once and returns the error.
async fn refused(system: &System, request: ChangeDataRequest) -> Error {
    let id = request.request_id;
    let region = request.region_id;
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, vec![request])
        .await
        .expect("stream opens");
    match feed.next().await {
        Item::Error {
            request_id,
            region_id,
            error,
        } => {
            assert_eq!((request_id, region_id), (id, region));
            error
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_failing_check_of_a_registration_answers() {
    let system = System::start(OFTEN).await;
    let region = system.regions().await.remove(0);
    let mut bad = register(1, &region, 9, 1);
    bad.kv_api = KvApi::TxnKv.into();
    bad.region_id = 4_000_000;
    bad.region_epoch.as_mut().unwrap().version += 1;
    let error = refused(&system, bad.clone()).await;
    let mismatch = error
        .cluster_id_mismatch
        .expect("the cluster id is compared first");
    assert_eq!((mismatch.current, mismatch.request), (system.cluster_id, 1));

    bad.header.as_mut().unwrap().cluster_id = system.cluster_id;
    let error = refused(&system, bad.clone()).await;
    assert_eq!(
        error.compatibility.expect("then the API").required_version,
        "6.2.0"
    );

    bad.kv_api = KvApi::RawKv.into();
    let error = refused(&system, bad.clone()).await;
    assert_eq!(
        error
            .compatibility
            .expect("no raw keys here")
            .required_version,
        "6.2.0"
    );

    bad.kv_api = KvApi::TiDb.into();
    let error = refused(&system, bad.clone()).await;
    assert_eq!(
        error.region_not_found.expect("then the region").region_id,
        4_000_000
    );

    bad.region_id = region.id;
    let error = refused(&system, bad.clone()).await;
    let current = error
        .epoch_not_match
        .expect("then the epoch")
        .current_regions;
    assert_eq!(current, std::slice::from_ref(&region));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_registration_is_a_duplicate_before_its_epoch_is_looked_at() {
    let system = System::start(OFTEN).await;
    let region = system.regions().await.remove(0);
    let good = register(system.cluster_id, &region, 3, 1);
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, vec![good.clone()])
        .await
        .unwrap();
    feed.wait_initialized(3).await;
    let mut again = good;
    again.region_epoch.as_mut().unwrap().version += 1;
    feed.send(again);
    let (id, _, error) = feed.next_error().await;
    assert_eq!(id, 3);
    assert_eq!(
        error.duplicate_request.expect("duplicate").region_id,
        region.id
    );
    // The healthy subscription goes on.
    let (regions, first) = feed.wait_resolved(3).await;
    assert_eq!(regions, [region.id]);
    while feed.wait_resolved(3).await.1 <= first {}
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_client_is_not_asked_for_its_cluster() {
    let system = System::start(OFTEN).await;
    let region = system.regions().await.remove(0);
    let mut request = register(1, &region, 2, 1);
    request.header.as_mut().unwrap().ticdc_version = "5.2.9".to_owned();
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, vec![request])
        .await
        .unwrap();
    feed.wait_initialized(2).await;
    feed.wait_resolved(2).await;
    // The version of the first request decides for the stream.
    let mut second = register(1, &region, 4, 1);
    second.header.as_mut().unwrap().ticdc_version = "8.5.0".to_owned();
    feed.send(second);
    feed.wait_initialized(4).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn features_are_a_trimmed_list_and_an_empty_one_is_unknown() {
    let system = System::start(OFTEN).await;
    let region = system.regions().await.remove(0);
    let first = || vec![register(system.cluster_id, &region, 1, 1)];
    let spaced = Protocol::Features(" stream-multiplexing ,stream-multiplexing");
    let mut feed = Feed::open(&system.store_channel, spaced, first())
        .await
        .unwrap();
    feed.wait_initialized(1).await;
    for unknown in ["", "stream-multiplexing,other"] {
        let opened = Feed::open(&system.store_channel, Protocol::Features(unknown), first()).await;
        let status = opened.err().expect("unknown feature");
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{unknown:?}");
        assert!(
            !status.message().contains("stream-multiplexing"),
            "names only the unknown"
        );
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn region_zero_deregisters_all_of_a_request_id_and_of_no_other() {
    let system = System::start(OFTEN).await;
    system.split(&[b"g", b"p"]).await;
    let regions = system.regions().await;
    let mut requests: Vec<_> = regions
        .iter()
        .map(|r| register(system.cluster_id, r, 5, 1))
        .collect();
    requests.push(register(system.cluster_id, &regions[0], 6, 1));
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, requests)
        .await
        .unwrap();
    feed.wait_initialized(6).await;
    feed.send(ChangeDataRequest {
        header: register(system.cluster_id, &regions[0], 5, 1).header,
        request_id: 5,
        request: Some(Request::Deregister(Deregister {})),
        ..ChangeDataRequest::default()
    });
    let mut ended = Vec::new();
    for _ in &regions {
        let (id, region_id, error) = feed.next_error().await;
        assert_eq!(id, 5);
        assert_eq!(error.region_not_found, Some(RegionNotFound { region_id }));
        ended.push(region_id);
    }
    ended.sort_unstable();
    let mut ids: Vec<u64> = regions.iter().map(|r| r.id).collect();
    ids.sort_unstable();
    assert_eq!(ended, ids);
    let (left, _) = feed.wait_resolved(6).await;
    assert_eq!(left, [regions[0].id]);
    // The id is free again.
    feed.send(register(system.cluster_id, &regions[1], 5, 1));
    feed.wait_initialized(5).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resolved_timestamps_come_per_request_id_for_several_regions_together() {
    let system = System::start(OFTEN).await;
    system.split(&[b"g", b"p"]).await;
    let regions = system.regions().await;
    let requests = regions
        .iter()
        .map(|r| register(system.cluster_id, r, 5, 1))
        .collect();
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, requests)
        .await
        .unwrap();
    let mut ids: Vec<u64> = regions.iter().map(|r| r.id).collect();
    ids.sort_unstable();
    for attempt in 0.. {
        let (mut together, _) = feed.wait_resolved(5).await;
        together.sort_unstable();
        if together == ids {
            break;
        }
        assert!(
            attempt < 20,
            "three regions never came in one batch: {together:?}"
        );
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_ends_the_subscriptions_of_the_region_with_the_regions_it_became() {
    let system = System::start(OFTEN).await;
    let old = system.regions().await.remove(0);
    let requests = [1, 2]
        .map(|id| register(system.cluster_id, &old, id, 1))
        .to_vec();
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, requests)
        .await
        .unwrap();
    feed.wait_initialized(1).await;
    feed.wait_resolved(1).await;
    system.split(&[b"h"]).await;
    let now = system.regions().await;
    assert_eq!(now.len(), 2);
    assert_eq!(now[0].end_key, encode(b"h"));
    let mut ended = Vec::new();
    for _ in 0..2 {
        let (id, region_id, error) = feed.next_error().await;
        assert_eq!(region_id, old.id);
        let mut current = error
            .epoch_not_match
            .expect("epoch not match")
            .current_regions;
        current.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        assert_eq!(current, now);
        ended.push(id);
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 2]);
    // Nothing comes after the error, not even a resolved timestamp.
    assert!(feed.next_within(Duration::from_millis(400)).await.is_none());
    for region in &now {
        feed.send(register(system.cluster_id, region, 8, 1));
        feed.wait_initialized(8).await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closing_ends_the_subscriptions() {
    let system = System::start(OFTEN).await;
    let region = system.regions().await.remove(0);
    let request = register(system.cluster_id, &region, 1, 1);
    let mut feed = Feed::open(&system.store_channel, MULTIPLEXED, vec![request])
        .await
        .unwrap();
    feed.wait_resolved(1).await;
    feed.half_close();
    for _ in 0..20 {
        match feed.next_within(Duration::from_secs(2)).await {
            // Deregistered, whether or not the server says so before it ends the stream.
            Some(Err(_)) | None => {
                system.stop().await;
                return;
            }
            Some(Ok(_)) => {}
        }
    }
    panic!("events go on after the client closed its side");
}
