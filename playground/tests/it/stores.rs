//! Three stores of one playground: who leads is the only one to answer, what PD says of them, leaders
//! that move, stores that stop, crash and come back, and the region trackers of three sidecars beside
//! all that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::regions::{RegionTracker, TrackerEvent, TrackerOptions};
use pitr_format::{Cf, EncodedRange, Ts};
use pitr_proto::import_sstpb::import_sst_client::ImportSstClient;
use pitr_proto::import_sstpb::upload_request::Chunk;
use pitr_proto::import_sstpb::{MultiIngestRequest, Range, SstMeta, UploadRequest};
use pitr_proto::kvrpcpb::GetRequest;
use pitr_proto::pdpb::{GetRegionByIdRequest, GetRegionRequest};

use super::cluster::{Stores, context, http};
use super::feed::{Feed, MULTIPLEXED, register};
use super::system::encode;

#[tokio::test(flavor = "multi_thread")]
async fn pd_lists_every_store_and_the_leader_of_each_region_by_every_call() {
    let stores = Stores::start().await;
    stores
        .playground
        .store()
        .split_at_user_keys(&[b"f", b"m"])
        .unwrap();
    let records = stores.records().await.into_iter();
    let listed: Vec<_> = records.map(|s| (s.id, s.address)).collect();
    let real = stores.playground.addresses().into_iter();
    assert_eq!(
        listed,
        real.map(|a| (a.id, a.store.to_string()))
            .collect::<Vec<_>>()
    );
    let regions = stores.regions().await;
    for (at, (region, _)) in regions.iter().enumerate() {
        assert_eq!(region.region_epoch.unwrap().conf_ver, 3);
        let places: Vec<u64> = region.peers.iter().map(|p| p.store_id).collect();
        assert_eq!(places, listed.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        stores
            .playground
            .transfer_leader(region.id, listed[at].0)
            .unwrap();
    }
    let peers: BTreeSet<u64> = regions
        .iter()
        .flat_map(|(r, _)| r.peers.iter().map(|p| p.id))
        .collect();
    assert_eq!(peers.len(), 9, "no peer id twice");
    for (at, (region, leader)) in stores.regions().await.into_iter().enumerate() {
        let leader = leader.unwrap();
        assert_eq!(leader.store_id, listed[at].0);
        assert!(region.peers.contains(&leader));
        let request = GetRegionByIdRequest {
            header: stores.header(),
            region_id: region.id,
            ..Default::default()
        };
        let by_id = stores.pd.clone().get_region_by_id(request).await.unwrap();
        assert_eq!(by_id.into_inner().leader, Some(leader));
        let request = GetRegionRequest {
            header: stores.header(),
            region_key: region.start_key.clone(),
            ..Default::default()
        };
        let by_key = stores.pd.clone().get_region(request).await.unwrap();
        assert_eq!(by_key.into_inner().leader, Some(leader));
    }
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_lead_answers_every_request_with_the_leader() {
    let stores = Stores::start().await;
    stores.put(b"a", b"1").await;
    let (region, leader) = stores.region_of(b"a").await;
    let leader = leader.unwrap();
    assert_eq!(stores.get_at(leader.store_id, b"a").await.unwrap(), "1");
    for store in stores.channels.keys().filter(|id| **id != leader.store_id) {
        let error = stores.get_at(*store, b"a").await.unwrap_err();
        let told = error.not_leader.unwrap();
        assert_eq!((told.region_id, told.leader), (region.id, Some(leader)));
        let mut stale = register(stores.playground.cluster_id(), &region, 5, 1);
        stale.region_epoch.as_mut().unwrap().version += 1;
        let mut feed = Feed::open(&stores.channels[store], MULTIPLEXED, vec![stale])
            .await
            .unwrap();
        let (request, id, error) = feed.next_error().await;
        assert_eq!((request, id), (5, region.id));
        let told = error
            .not_leader
            .expect("leadership is looked at before the epoch");
        assert_eq!(told.leader, Some(leader));
    }
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_new_leader_when_the_region_moves_and_goes_on_there() {
    let stores = Stores::start().await;
    stores.put(b"a", b"1").await;
    let (region, old) = stores.region_of(b"a").await;
    let old = old.unwrap().store_id;
    let new = *region.peers.iter().find(|p| p.store_id != old).unwrap();
    let request = register(stores.playground.cluster_id(), &region, 1, 1);
    let mut feed = Feed::open(&stores.channels[&old], MULTIPLEXED, vec![request.clone()])
        .await
        .unwrap();
    feed.wait_initialized(1).await;
    feed.wait_resolved(1).await;
    stores
        .playground
        .transfer_leader(region.id, new.store_id)
        .unwrap();
    let (_, _, error) = feed.next_error().await;
    assert_eq!(error.not_leader.unwrap().leader, Some(new));
    let (same, _) = stores.region_of(b"a").await;
    assert_eq!(same, region, "a transfer changes neither epoch nor peers");

    let mut feed = Feed::open(&stores.channels[&new.store_id], MULTIPLEXED, vec![request])
        .await
        .unwrap();
    feed.wait_initialized(1).await;
    let commit = stores.put(b"a", b"2").await;
    while feed.wait_resolved(1).await.1 < commit {}
    assert_eq!(stores.get_at(new.store_id, b"a").await.unwrap(), "2");
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_crashes_hands_its_regions_on_and_comes_back_with_what_it_missed() {
    let stores = Stores::start().await;
    stores.put(b"a", b"1").await;
    let (region, leader) = stores.region_of(b"a").await;
    let dead = leader.unwrap().store_id;
    let request = register(stores.playground.cluster_id(), &region, 1, 1);
    let mut feed = Feed::open(&stores.channels[&dead], MULTIPLEXED, vec![request])
        .await
        .unwrap();
    feed.wait_initialized(1).await;
    stores.command(move |p| p.crash_store(dead)).await.unwrap();
    loop {
        match feed.next_within(Duration::from_secs(5)).await {
            Some(Err(_)) => break,
            Some(Ok(_)) => {}
            None => panic!("the stream of a dead store is still open"),
        }
    }
    let read = GetRequest::default();
    assert!(
        stores.kv(dead).kv_get(read).await.is_err(),
        "it is not reachable"
    );
    stores.put(b"a", b"2").await;
    stores
        .playground
        .store()
        .split_at_user_keys(&[b"m"])
        .unwrap();
    stores.put(b"z", b"3").await;
    let (_, leader) = stores.region_of(b"a").await;
    assert_ne!(leader.unwrap().store_id, dead);
    let refused = stores.playground.transfer_leader(region.id, dead);
    assert!(refused.is_err());

    stores.command(move |p| p.start_store(dead)).await.unwrap();
    stores.assert_equal();
    stores.put(b"a", b"4").await;
    for key in [&b"a"[..], b"z"] {
        let (region, _) = stores.region_of(key).await;
        stores.playground.transfer_leader(region.id, dead).unwrap();
    }
    assert_eq!(stores.get_at(dead, b"a").await.unwrap(), "4");
    assert_eq!(stores.get_at(dead, b"z").await.unwrap(), "3");
    stores.assert_equal();
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_over_http_move_leaders_and_stores() {
    let stores = Stores::start().await;
    let admin = stores.playground.admin_addr().unwrap();
    let (region, _) = stores.region_of(b"a").await;
    let to = region.peers[2].store_id;
    let said = http(
        admin,
        "POST",
        &format!("/regions/{}/leader/{to}", region.id),
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert_eq!(stores.region_of(b"a").await.1.unwrap().store_id, to);
    let said = http(admin, "POST", &format!("/stores/{to}/stop")).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert_ne!(stores.region_of(b"a").await.1.unwrap().store_id, to);
    let said = http(admin, "POST", &format!("/stores/{to}/crash")).await;
    assert!(
        said.starts_with("HTTP/1.1 409") && said.contains("down already"),
        "{said}"
    );
    assert!(http(admin, "GET", "/stores").await.contains("\"up\":false"));
    let said = http(admin, "POST", &format!("/stores/{to}/start")).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(!http(admin, "GET", "/stores").await.contains("\"up\":false"));
    assert!(http(admin, "GET", "/regions").await.contains("\"leader\":"));
    stores.stop().await;
}

/// A table of one row in the write column family.
fn table(key: &[u8], commit: u64, value: &'static [u8]) -> Bytes {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.sst");
    let options = rocksdb::Options::default();
    let mut writer = rocksdb::SstFileWriter::create(&options);
    writer.open(&path).unwrap();
    let versioned = pitr_format::EncodedKey::encode(key).at(Ts::new(commit));
    let write = pitr_format::write_cf::WriteRecord::put(Ts::new(commit - 1), Some(value.into()));
    let key = pitr_format::key::data_key(versioned.as_bytes());
    writer.put(key, write.to_bytes()).unwrap();
    writer.finish().unwrap();
    std::fs::read(path).unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_ingested_by_every_store_and_by_none_while_one_lacks_it() {
    let stores = Stores::start().await;
    let (region, leader) = stores.region_of(b"a").await;
    let leader = leader.unwrap().store_id;
    let data = table(b"a", stores.now(), b"restored");
    let meta = SstMeta {
        uuid: vec![7; 16].into(),
        range: Some(Range {
            start: encode(b"a"),
            end: encode(b"b"),
        }),
        crc32: crc32fast::hash(&data),
        length: data.len() as u64,
        cf_name: "write".to_owned(),
        region_id: region.id,
        region_epoch: region.region_epoch,
        ..Default::default()
    };
    let import = |store: u64| ImportSstClient::new(stores.channels[&store].clone());
    let upload = async |store: u64| {
        let chunks = [Chunk::Meta(meta.clone()), Chunk::Data(data.clone())];
        let messages = chunks.map(|chunk| UploadRequest { chunk: Some(chunk) });
        let done = import(store).upload(futures::stream::iter(messages)).await;
        done.unwrap();
    };
    let ingest = async |store: u64| {
        let request = MultiIngestRequest {
            context: Some(context(&region, store)),
            ssts: vec![meta.clone()],
        };
        let done = import(store).multi_ingest(request).await;
        done.unwrap().into_inner().error
    };
    let followers: Vec<u64> = stores
        .channels
        .keys()
        .copied()
        .filter(|id| *id != leader)
        .collect();
    upload(leader).await;
    upload(followers[0]).await;
    let missing = ingest(leader).await.unwrap();
    assert!(missing.stale_command.is_some(), "{missing:?}");
    assert_eq!(stores.get_at(leader, b"a").await.unwrap(), "");
    stores.assert_equal();
    upload(followers[1]).await;
    let told = ingest(followers[1]).await.unwrap().not_leader.unwrap();
    assert_eq!(told.leader.unwrap().store_id, leader);
    assert_eq!(ingest(leader).await, None);
    stores.assert_equal();
    for store in [leader, followers[0], followers[1]] {
        stores.playground.transfer_leader(region.id, store).unwrap();
        assert_eq!(stores.get_at(store, b"a").await.unwrap(), "restored");
    }
    let again = ingest(followers[1]).await.unwrap();
    assert!(again.stale_command.is_some(), "the files are used up");
    stores.stop().await;
}

/// What the tracker of one store has delivered: keys with their commit ts, and how far each of its
/// regions is.
async fn track(
    pd: Arc<pitr_cluster::pd::PdClient>,
    store: u64,
    address: String,
    rows: tokio::sync::mpsc::Sender<(Bytes, u64)>,
) {
    let mut options = TrackerOptions::new(
        store,
        address,
        vec![EncodedRange::ALL],
        // Nothing is durable: each subscription begins with everything.
        Arc::new(|_: &EncodedRange| Ts::new(1)),
    );
    options.audit_interval = Duration::from_millis(200);
    let mut tracker = RegionTracker::new(pd, options);
    while let Some(event) = tracker.next_event().await {
        let TrackerEvent::Records { records, .. } = event else {
            continue;
        };
        for record in records.iter().filter(|r| r.cf == Cf::Write) {
            let (encoded, ts) = pitr_format::key::split_versioned(record.key).unwrap();
            let row = (super::system::decode(encoded), ts.get());
            if rows.send(row).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_region_trackers_together_see_every_commit_while_leaders_move_and_a_store_crashes() {
    let stores = Stores::start().await;
    stores
        .playground
        .store()
        .split_at_user_keys(&[b"k10", b"k20"])
        .unwrap();
    let url = format!("http://{}", stores.playground.pd_addr());
    let pd = pitr_cluster::pd::PdClient::connect(&[url]).await.unwrap();
    let (rows, mut seen) = tokio::sync::mpsc::channel(100_000);
    let mut trackers = Vec::new();
    for address in stores.playground.addresses() {
        let work = track(
            pd.clone(),
            address.id,
            address.store.to_string(),
            rows.clone(),
        );
        trackers.push(tokio::spawn(work));
    }
    let ids: Vec<u64> = stores.channels.keys().copied().collect();
    let mut missing = BTreeSet::new();
    for round in 0..60usize {
        let key = format!("k{:02}", round % 30);
        let ts = stores.put(key.as_bytes(), b"value").await;
        missing.insert((Bytes::from(key), ts));
        match round {
            20 => stores
                .command({
                    let id = ids[1];
                    move |p| p.crash_store(id)
                })
                .await
                .unwrap(),
            40 => stores
                .command({
                    let id = ids[1];
                    move |p| p.start_store(id)
                })
                .await
                .unwrap(),
            _ if round % 4 == 0 => {
                let (region, _) = stores.region_of(b"k15").await;
                // In vain while that store is down.
                let _ = stores
                    .playground
                    .transfer_leader(region.id, ids[round / 4 % 3]);
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = async {
        while !missing.is_empty() {
            let row = seen.recv().await.expect("trackers live");
            missing.remove(&row);
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), all).await;
    assert!(done.is_ok(), "never seen: {missing:?}");
    for tracker in trackers {
        tracker.abort();
    }
    stores.assert_equal();
    stores.stop().await;
}
