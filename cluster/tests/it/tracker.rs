//! The region tracker between a PD and a store of ours: what one learns from PD and the other
//! tells, from the first scan to a store that moved.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_cluster::regions::{RegionTracker, TrackerEvent, TrackerOptions};
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::metapb::{self, Peer, RegionEpoch};
use pitr_proto::{cdcpb, errorpb};

use crate::pd::{Shared, cluster};
use crate::store::{COMMIT, ScriptedStore, is_deregister};

const OWN: u64 = 7;

fn region(id: u64, start: &str, end: &str, led_by: u64) -> metapb::Region {
    let bound = |key: &str| match key {
        "" => Bytes::new(),
        key => EncodedKey::encode(key.as_bytes()).into_bytes(),
    };
    let peer = |store_id| Peer {
        id: id * 100 + store_id,
        store_id,
        ..Default::default()
    };
    metapb::Region {
        id,
        start_key: bound(start),
        end_key: bound(end),
        region_epoch: Some(RegionEpoch {
            conf_ver: 1,
            version: 3,
        }),
        peers: vec![peer(led_by), peer(9)],
        ..Default::default()
    }
}

fn at(address: &str) -> metapb::Store {
    metapb::Store {
        id: OWN,
        address: address.to_owned(),
        ..Default::default()
    }
}

struct World {
    pd: Arc<Shared>,
    store: ScriptedStore,
    url: String,
    tracker: RegionTracker,
    frontier: Arc<Mutex<Ts>>,
    /// A tracker that goes round in circles has events without end.
    give_up: tokio::time::Instant,
}

impl World {
    /// A tracker of all keys, and a PD that knows these regions.
    async fn start(regions: Vec<metapb::Region>) -> World {
        let (pd, client) = cluster().await;
        let (store, url) = ScriptedStore::start().await;
        *pd.regions.lock() = regions;
        *pd.stores.lock() = vec![at(&url)];
        let frontier = Arc::new(Mutex::new(Ts::new(200)));
        let durable = frontier.clone();
        let mut options = TrackerOptions::new(
            OWN,
            // Where it was long ago: PD knows better.
            "127.0.0.1:1",
            vec![EncodedRange::ALL],
            Arc::new(move |_: &EncodedRange| *durable.lock()),
        );
        options.audit_interval = Duration::from_millis(300);
        World {
            tracker: RegionTracker::new(client, options),
            pd,
            store,
            url,
            frontier,
            give_up: tokio::time::Instant::now() + Duration::from_secs(20),
        }
    }

    async fn next(&mut self) -> String {
        let event = tokio::time::timeout_at(self.give_up, self.tracker.next_event());
        match event.await.expect("an event").expect("a living tracker") {
            TrackerEvent::Started {
                sub,
                region,
                checkpoint_ts,
            } => format!("{} region {} from {checkpoint_ts}", sub.0, region.id),
            TrackerEvent::Records { sub, records } => format!("{} rows {}", sub.0, records.len()),
            TrackerEvent::Resolved { subs, ts } => {
                let mut subs: Vec<_> = subs.iter().map(|sub| sub.0).collect();
                subs.sort();
                format!("resolved {subs:?} {ts}")
            }
            TrackerEvent::Ended { sub, reason } => format!("{} {:?}", sub.0, reason.kind),
            TrackerEvent::Gap {
                checkpoint_ts,
                safe_point,
                ..
            } => format!("gap {checkpoint_ts} {safe_point}"),
            TrackerEvent::Failed { text } => format!("failed {text}"),
        }
    }

    /// Reads up to a resolved ts of `sub`, telling one again and again as a store does.
    async fn until_resolved(&mut self, regions: &[u64], ts: u64) -> Vec<String> {
        let (store, regions) = (self.store.clone(), regions.to_vec());
        let ticker = tokio::spawn(async move {
            loop {
                store.resolve(&regions, ts).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let mut seen = Vec::new();
        loop {
            let event = self.next().await;
            if event.starts_with("resolved") && event.ends_with(&ts.to_string()) {
                ticker.abort();
                seen.push(event);
                return seen;
            }
            seen.push(event);
        }
    }
}

#[tokio::test]
async fn the_regions_led_here_are_scanned_from_the_frontier_and_then_resolve() {
    let regions = vec![region(4, "", "m", OWN), region(6, "m", "", 9)];
    let mut world = World::start(regions).await;
    assert_eq!(world.next().await, "1 region 4 from 200");
    assert_eq!(world.next().await, "1 rows 1");
    let seen = world.until_resolved(&[4], 500).await;
    assert_eq!(seen.last().unwrap(), "resolved [1] 500");
    assert_eq!(world.store.registered(), [4]);
    let stats = world.tracker.stats();
    assert_eq!((stats.live, stats.scanning), (1, 0));
    let register = world.store.requests.lock()[0].clone();
    assert_eq!(register.checkpoint_ts, 200);
    assert_eq!(register.region_epoch.unwrap().version, 3);
}

#[tokio::test]
async fn a_region_that_becomes_led_here_is_taken_by_the_next_audit_and_another_one_is_let_go() {
    let mut world = World::start(vec![region(4, "", "m", OWN), region(6, "m", "", 9)]).await;
    assert_eq!(world.next().await, "1 region 4 from 200");
    *world.pd.regions.lock() = vec![region(4, "", "m", 9), region(6, "m", "", OWN)];
    let mut seen = Vec::new();
    while !seen.contains(&"2 region 6 from 200".to_owned()) {
        seen.push(world.next().await);
    }
    // Who leads is the store's own word: the stream of region 4 ends when the store says so.
    assert!(!seen.iter().any(|event| event.starts_with("1 NotLeader")));
}

#[tokio::test]
async fn a_store_that_restarts_elsewhere_is_followed_from_what_is_durable_then() {
    let mut world = World::start(vec![region(4, "", "", OWN)]).await;
    assert_eq!(world.next().await, "1 region 4 from 200");
    world.until_resolved(&[4], 300).await;
    let (moved, moved_url) = ScriptedStore::start().await;
    *world.pd.stores.lock() = vec![at(&moved_url)];
    *world.frontier.lock() = Ts::new(COMMIT);
    let old = std::mem::replace(&mut world.store, moved);
    assert_ne!(std::mem::replace(&mut world.url, moved_url), world.url);
    old.end_streams();
    let mut seen = Vec::new();
    while !seen.contains(&format!("2 region 4 from {COMMIT}")) {
        seen.push(world.next().await);
    }
    assert!(seen.contains(&"1 Stream".to_owned()), "{seen:?}");
    let seen = world.until_resolved(&[4], 900).await;
    assert_eq!(seen.last().unwrap(), "resolved [2] 900");
    assert_eq!(
        (old.registered().len(), world.store.registered().len()),
        (1, 1)
    );
}

#[tokio::test]
async fn a_first_region_whose_scan_never_ends_lets_the_others_resolve() {
    let regions = vec![region(4, "", "m", OWN), region(6, "m", "", OWN)];
    let mut world = World::start(regions).await;
    world.store.silent.lock().insert(4);
    let seen = world.until_resolved(&[4, 6], 500).await;
    assert_eq!(seen.last().unwrap(), "resolved [2] 500", "{seen:?}");
    assert_eq!(world.tracker.stats().scanning, 1);
}

#[tokio::test]
async fn a_busy_store_is_asked_again_after_its_wait_and_the_others_are_not_touched() {
    let regions = vec![region(4, "", "m", OWN), region(6, "m", "", OWN)];
    let mut world = World::start(regions).await;
    let busy = cdcpb::Error {
        server_is_busy: Some(errorpb::ServerIsBusy {
            backoff_ms: 400,
            ..Default::default()
        }),
        ..Default::default()
    };
    world.store.errors.lock().insert(6, busy);
    let mut seen = Vec::new();
    while !seen.contains(&"2 ServerIsBusy".to_owned()) {
        seen.push(world.next().await);
    }
    let refused = tokio::time::Instant::now();
    while !seen.contains(&"3 region 6 from 200".to_owned()) {
        seen.push(world.next().await);
    }
    assert!(refused.elapsed() >= Duration::from_millis(350));
    assert!(!seen.iter().any(|event| event.starts_with("1 Server")));
    world.store.wait_for_requests(3).await;
    assert_eq!(world.store.registered(), [4, 6, 6]);
}

#[tokio::test]
async fn a_range_whose_history_gc_has_passed_is_a_gap_and_nothing_of_it_is_subscribed() {
    let mut world = World::start(vec![region(4, "", "", OWN)]).await;
    world.pd.collected.store(150, Ordering::SeqCst);
    assert_eq!(world.next().await, "gap 200 250");
    assert!(world.store.registered().is_empty());
}

#[tokio::test]
async fn gc_that_passes_during_the_scan_is_a_gap_before_anything_resolves() {
    let mut world = World::start(vec![region(4, "", "", OWN)]).await;
    world.store.silent.lock().insert(4);
    assert_eq!(world.next().await, "1 region 4 from 200");
    world.pd.collected.store(150, Ordering::SeqCst);
    world.store.finish_scan(4).await;
    world.store.resolve(&[4], 900).await;
    let mut seen = Vec::new();
    while !seen.iter().any(|event: &String| event.starts_with("gap")) {
        seen.push(world.next().await);
    }
    assert_eq!(seen, ["1 rows 1", "1 Unknown", "gap 200 250"]);
    world.store.wait_for_requests(2).await;
    assert!(is_deregister(&world.store.requests.lock()[1]));
}

#[tokio::test]
async fn a_pd_that_changes_its_leader_meanwhile_delays_regions_and_loses_none() {
    let mut world = World::start(vec![region(4, "", "m", OWN)]).await;
    assert_eq!(world.next().await, "1 region 4 from 200");
    world.pd.leader.store(1, Ordering::SeqCst);
    world.pd.regions.lock().push(region(6, "m", "", OWN));
    let mut seen = Vec::new();
    while !seen.contains(&"2 region 6 from 200".to_owned()) {
        seen.push(world.next().await);
    }
    assert!(
        !seen.iter().any(|event| event.starts_with("failed")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn the_wrong_cluster_ends_the_tracker_with_its_reason() {
    let mut world = World::start(vec![region(4, "", "", OWN)]).await;
    let wrong = cdcpb::Error {
        cluster_id_mismatch: Some(cdcpb::ClusterIdMismatch {
            current: 1,
            request: 42,
        }),
        ..Default::default()
    };
    world.store.errors.lock().insert(4, wrong);
    assert_eq!(world.next().await, "1 region 4 from 200");
    assert_eq!(world.next().await, "1 ClusterIdMismatch");
    let failed = world.next().await;
    assert!(
        failed.contains("belongs to cluster 1, asked 42"),
        "{failed}"
    );
    let after = tokio::time::timeout(Duration::from_secs(5), world.tracker.next_event());
    assert!(after.await.unwrap().is_none());
}
