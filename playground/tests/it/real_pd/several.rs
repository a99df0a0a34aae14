//! Three stores at a real PD: what PD says of them and their regions, what it makes them do, and what it
//! learns of stores that leave and come back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pitr_proto::metapb::Region;
use serde_json::json;

use crate::it::cluster::Stores;
use crate::it::feed::{Feed, MULTIPLEXED, register};
use crate::it::pd_servers::PdServers;
use crate::it::system::encode;

/// Nothing PD has to learn or to do takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start(pd: &PdServers) -> Stores {
    let stores = Stores::start_with(|config| config.real_pd = pd.urls()).await;
    // A new PD splits at the bounds of the default keyspace.
    wait("five regions", async || {
        stores.known_regions().await.len() == 5
    })
    .await;
    stores
}

async fn wait(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_leader(stores: &Stores, key: &[u8], store: u64) {
    wait("PD knows the leader", async || {
        let leader = stores.region_of(key).await.1;
        leader.is_some_and(|leader| leader.store_id == store)
    })
    .await;
}

fn version(region: &Region) -> u64 {
    region.region_epoch.unwrap().version
}

/// A store that does not lead the region of a key.
async fn follower(stores: &Stores, key: &[u8]) -> u64 {
    let (region, leader) = stores.region_of(key).await;
    let mut others = region.peers.iter().map(|peer| peer.store_id);
    others.find(|id| *id != leader.unwrap().store_id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pd_knows_every_store_and_peer_by_ids_of_its_own_that_outlive_the_process() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let stores = start(&pd).await;
    let ids = |stores: &Stores| -> BTreeSet<u64> {
        let addresses = stores.playground.addresses().into_iter();
        addresses.map(|address| address.id).collect()
    };
    let before = ids(&stores);
    assert_eq!(before, [1, 4, 6].into(), "the first ids of a new PD");
    let records = stores.records().await;
    assert_eq!(
        records.iter().map(|r| r.id).collect::<BTreeSet<_>>(),
        before
    );
    for record in &records {
        assert_eq!(
            (&record.version[..], record.state),
            ("8.5.6", 0),
            "{record:?}"
        );
        assert!(!record.status_address.is_empty(), "{record:?}");
    }
    let regions = stores.known_regions().await;
    let peers: Vec<u64> = regions
        .iter()
        .flat_map(|(r, _)| r.peers.iter().map(|p| p.id))
        .collect();
    assert_eq!(
        peers.iter().collect::<BTreeSet<_>>().len(),
        15,
        "no peer id twice"
    );
    for (region, _) in &regions {
        let places: BTreeSet<u64> = region.peers.iter().map(|p| p.store_id).collect();
        assert_eq!(places, before);
    }
    let replication = pd.page("/pd/api/v1/config/replicate");
    assert_eq!(replication["max-replicas"], 3);
    stores.put(b"k", b"kept").await;
    let metas = |regions: Vec<(Region, _)>| regions.into_iter().map(|(r, _)| r).collect::<Vec<_>>();
    let regions = metas(stores.known_regions().await);

    let stores = stores.restart().await;
    assert_eq!(ids(&stores), before);
    let addresses: BTreeSet<String> = stores
        .playground
        .addresses()
        .iter()
        .map(|a| a.store.to_string())
        .collect();
    let records = stores.records().await.into_iter();
    assert_eq!(
        records.map(|r| r.address).collect::<BTreeSet<_>>(),
        addresses
    );
    wait("every region has a leader that tells of it", async || {
        let regions = stores.known_regions().await;
        regions.len() == 5 && regions.iter().all(|(_, leader)| leader.is_some())
    })
    .await;
    assert_eq!(metas(stores.known_regions().await), regions);
    let leader = stores.region_of(b"k").await.1.unwrap();
    wait_leader(&stores, b"k", stores.leader_of(b"k")).await;
    assert_ne!(leader.store_id, 0);
    assert_eq!(
        stores.get_at(stores.leader_of(b"k"), b"k").await.unwrap(),
        "kept"
    );
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_move_by_command_and_by_pds_operator_and_pd_sees_both() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let stores = start(&pd).await;
    let region = stores.region_of(b"k").await.0;
    let to = follower(&stores, b"k").await;
    stores
        .admin("POST", &format!("/regions/{}/leader/{to}", region.id))
        .await;
    wait_leader(&stores, b"k", to).await;
    let cluster_id = stores.playground.cluster_id();
    let first = register(cluster_id, &region, 1, 1);
    let channel = &stores.channels[&to];
    let mut feed = Feed::open(channel, MULTIPLEXED, vec![first]).await.unwrap();
    feed.wait_initialized(1).await;

    let next = follower(&stores, b"k").await;
    let operator = json!({"name": "transfer-leader", "region_id": region.id, "to_store_id": next});
    pd.post("/pd/api/v1/operators", &operator);
    let (.., error) = feed.next_error().await;
    let told = error.not_leader.unwrap().leader.unwrap();
    assert_eq!(told.store_id, next);
    wait_leader(&stores, b"k", next).await;
    assert_eq!(stores.leader_of(b"k"), next);
    let after = stores.region_of(b"k").await.0;
    assert_eq!(after, region, "a transfer changes neither epoch nor peers");
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pd_splits_in_the_middle_and_merges_again_and_no_row_is_lost() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let stores = start(&pd).await;
    let keys: Vec<String> = (0..20).map(|n| format!("k{n:02}")).collect();
    for key in &keys {
        stores.put(key.as_bytes(), key.as_bytes()).await;
    }
    let whole = stores.region_of(b"k00").await.0;
    let operator = json!({"name": "split-region", "region_id": whole.id, "policy": "scan"});
    pd.post("/pd/api/v1/operators", &operator);
    wait("PD knows both parts", async || {
        stores.known_regions().await.len() == 6
    })
    .await;
    let (left, right) = (
        stores.region_of(b"k00").await.0,
        stores.region_of(b"k19").await.0,
    );
    assert_eq!(
        left.end_key,
        encode(b"k10"),
        "half of the keys on each side"
    );
    assert_eq!((right.id, version(&left)), (whole.id, version(&whole) + 1));
    // The parts are led by different stores: PD merges them all the same.
    let to = follower(&stores, b"k19").await;
    stores.playground.transfer_leader(right.id, to).unwrap();
    wait_leader(&stores, b"k19", to).await;

    let cluster_id = stores.playground.cluster_id();
    let first = register(cluster_id, &left, 1, 1);
    let channel = &stores.channels[&stores.leader_of(b"k00")];
    let mut feed = Feed::open(channel, MULTIPLEXED, vec![first]).await.unwrap();
    feed.wait_initialized(1).await;
    let operator = json!({
        "name": "merge-region", "source_region_id": left.id, "target_region_id": right.id,
    });
    pd.post("/pd/api/v1/operators", &operator);
    let (.., error) = feed.next_error().await;
    assert!(error.epoch_not_match.unwrap().current_regions.is_empty());
    wait("PD knows one region", async || {
        stores.known_regions().await.len() == 5
    })
    .await;
    let merged = stores.region_of(b"k00").await.0;
    assert_eq!((merged.id, &merged.start_key), (right.id, &whole.start_key));
    assert_eq!(
        version(&merged),
        (version(&left) + 1).max(version(&right)) + 1
    );
    for key in &keys {
        let read = stores.get_at(to, key.as_bytes()).await.unwrap();
        assert_eq!(read, key.as_bytes());
    }
    stores.put(b"k00", b"after").await;
    stores.assert_equal();
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_leaves_is_silent_at_pd_and_leads_again_after_it_came_back() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let stores = start(&pd).await;
    stores.put(b"k", b"1").await;
    let away = stores.leader_of(b"k");
    let region = stores.region_of(b"k").await.0.id;
    let heard =
        || pd.page(&format!("/pd/api/v1/store/{away}"))["status"]["last_heartbeat_ts"].clone();
    for (command, value) in [("stop", "2"), ("crash", "3")] {
        stores
            .admin("POST", &format!("/stores/{away}/{command}"))
            .await;
        wait("PD knows of other leaders", async || {
            let regions = stores.known_regions().await;
            let leaders: Vec<_> = regions.iter().filter_map(|(_, leader)| *leader).collect();
            leaders.len() == 5 && leaders.iter().all(|leader| leader.store_id != away)
        })
        .await;
        stores.put(b"k", value.as_bytes()).await;
        let last = heard();
        // PD may ask for it; a store that is down leads nothing.
        let refused = stores.playground.transfer_leader(region, away);
        assert!(refused.is_err());
        // Longer than between two heartbeats.
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(heard(), last, "a heartbeat of a store that is down");

        stores.admin("POST", &format!("/stores/{away}/start")).await;
        wait("PD hears of the store", async || heard() != last).await;
        stores.assert_equal();
        stores.playground.transfer_leader(region, away).unwrap();
        wait_leader(&stores, b"k", away).await;
        assert_eq!(stores.get_at(away, b"k").await.unwrap(), value);
    }
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_stores_than_that_of_the_directory_is_refused_before_pd_is_told() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let stores = start(&pd).await;
    let refused = stores.restart_with(|config| config.stores = 2).await;
    assert!(refused.contains("made by 3 stores, not 2"), "{refused}");
    assert_eq!(pd.page("/pd/api/v1/stores")["count"], 3);
}
