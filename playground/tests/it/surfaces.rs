//! What a store says of itself beside its data: its record at PD, with and without a front before it,
//! and its status pages.

use std::net::SocketAddr;

use super::cluster::{Stores, http};
use super::feed::{Feed, MULTIPLEXED, register};

/// Lines of `/metrics`: name with labels, and value.
async fn metrics(of: SocketAddr) -> std::collections::BTreeMap<String, f64> {
    let page = http(of, "GET", "/metrics").await;
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("text/plain"), "{head}");
    let lines = body.lines().filter(|l| !l.starts_with('#'));
    let pairs = lines.filter_map(|l| l.rsplit_once(' '));
    pairs
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_store_is_known_as_version_8_5_6_with_a_status_page_of_its_own() {
    let stores = Stores::start().await;
    let records = stores.records().await;
    assert_eq!(records.len(), 3);
    for record in records {
        assert_eq!(record.version, "8.5.6");
        assert_eq!(record.peer_address, "", "as TiKV leaves it");
        let status = record.status_address.parse().unwrap();
        let page = http(status, "GET", "/status").await;
        assert!(
            page.contains("\"version\":\"8.5.6\"") && page.contains(&record.address),
            "{page}"
        );
        let page = http(status, "GET", "/config").await;
        assert!(page.contains("\"log-backup\":{\"enable\":false}"), "{page}");
    }
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_is_advertised_in_the_place_of_a_store_and_the_others_keep_their_own() {
    let stores = Stores::start_with(|config| {
        config.advertise_status_addrs = vec!["front:1".to_owned(), String::new()];
        config.advertise_peer_addrs = vec![String::new(), "front:2".to_owned()];
    })
    .await;
    let addresses = stores.playground.addresses();
    let own = |at: usize| addresses[at].status.unwrap().to_string();
    let told: Vec<_> = stores
        .records()
        .await
        .into_iter()
        .map(|s| (s.status_address, s.peer_address))
        .collect();
    let pair = |status: String, peer: &str| (status, peer.to_owned());
    assert_eq!(
        told,
        [
            pair("front:1".to_owned(), ""),
            pair(own(1), "front:2"),
            pair(own(2), "")
        ]
    );
    // The store itself listens where it always did.
    let page = http(addresses[0].status.unwrap(), "GET", "/config").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_regions_leaders_subscriptions_and_commands_by_kind() {
    let stores = Stores::start().await;
    stores
        .playground
        .store()
        .split_at_user_keys(&[b"f", b"m"])
        .unwrap();
    let (region, leader) = stores.region_of(b"a").await;
    let at = leader.unwrap().store_id;
    let away = stores.region_of(b"z").await.0;
    let other = region.peers.iter().map(|p| p.store_id).find(|s| *s != at);
    let other = other.unwrap();
    stores.playground.transfer_leader(away.id, other).unwrap();
    for key in [b"a", b"b", b"c"] {
        stores.put(key, b"v").await;
    }
    stores.get_at(at, b"a").await.unwrap();
    let first = register(stores.playground.cluster_id(), &region, 1, 1);
    let channel = &stores.channels[&at];
    let mut feed = Feed::open(channel, MULTIPLEXED, vec![first]).await.unwrap();
    feed.wait_initialized(1).await;
    feed.wait_resolved(1).await;
    let page_of = async |store: u64| {
        let addresses = stores.playground.addresses();
        let address = addresses.iter().find(|a| a.id == store).unwrap();
        metrics(address.status.unwrap()).await
    };
    let (here, there) = (page_of(at).await, page_of(other).await);
    let subscriptions = "tikv_pitr_playground_cdc_subscriptions{stage=\"ready\"}";
    for (name, is_here, is_there) in [
        ("tikv_raftstore_region_count{type=\"region\"}", 3.0, 3.0),
        ("tikv_raftstore_region_count{type=\"leader\"}", 2.0, 1.0),
        ("tikv_cdc_captured_region_total", 1.0, 0.0),
        (subscriptions, 1.0, 0.0),
    ] {
        assert_eq!((here[name], there[name]), (is_here, is_there), "{name}");
    }
    let commands = |kind| format!("tikv_grpc_msg_duration_seconds_count{{type=\"{kind}\"}}");
    assert_eq!(here[&commands("kv_prewrite")], 3.0);
    assert_eq!(here[&commands("kv_get")], 1.0);
    assert_eq!(there.get(&commands("kv_get")), None);
    drop(feed);
    for _ in 0..100 {
        if page_of(at).await[subscriptions] == 0.0 {
            return stores.stop().await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the subscription of a closed stream is still counted");
}
