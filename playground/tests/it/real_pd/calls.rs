//! The calls of PD that clients make, good ones and bad ones. Their order matters: later ones see
//! the safe points and splits of earlier ones.

use futures::{StreamExt, stream};
use pitr_format::EncodedKey;
use pitr_proto::metapb;
use pitr_proto::pdpb::*;
use serde_json::{Value, json};

use super::answer::Asked;

/// A new real PD makes the store split at the bounds of the default keyspace; the playground's own
/// PD is asked to.
pub async fn settle(asked: &Asked, own: bool) {
    let mut pd = asked.pd.clone();
    if own {
        let bounds = [b"r\0\0\0", b"r\0\0\x01", b"x\0\0\0", b"x\0\0\x01"];
        let keys = bounds
            .iter()
            .map(|b| EncodedKey::encode(&b[..]).into_bytes());
        let request = SplitRegionsRequest {
            header: asked.header(),
            split_keys: keys.collect(),
            retry_limit: 1,
        };
        pd.split_regions(request).await.unwrap();
    }
    for _ in 0..300 {
        let request = ScanRegionsRequest {
            header: asked.header(),
            ..Default::default()
        };
        let answer = pd.scan_regions(request).await.unwrap().into_inner();
        if answer.regions.len() == 5 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("there are not five regions");
}

/// Asks everything.
pub async fn ask(asked: &mut Asked) {
    members(asked).await;
    stores(asked).await;
    refusals(asked).await;
    timestamps(asked).await;
    safe_points(asked).await;
    gc_worker(asked).await;
    regions(asked).await;
    splits(asked).await;
}

async fn members(asked: &mut Asked) {
    let mut pd = asked.pd.clone();
    let answer = pd.get_members(GetMembersRequest::default()).await;
    asked.pd(
        "GetMembers without a header",
        answer,
        |a| a.header.as_ref(),
        |a| json!({"members": a.members.len(), "leads": a.leader == a.members.first().cloned()}),
    );
    let request = IsBootstrappedRequest {
        header: asked.header(),
    };
    let answer = pd.is_bootstrapped(request).await;
    asked.pd(
        "IsBootstrapped",
        answer,
        |a| a.header.as_ref(),
        |a| json!(a.bootstrapped),
    );
    let request = BootstrapRequest {
        header: asked.header(),
        store: Some(metapb::Store {
            id: 4,
            address: "127.0.0.1:1".to_owned(),
            ..Default::default()
        }),
        region: Some(metapb::Region {
            id: 5,
            peers: vec![metapb::Peer {
                id: 6,
                store_id: 4,
                ..Default::default()
            }],
            ..Default::default()
        }),
    };
    let answer = pd.bootstrap(request).await;
    asked.pd(
        "Bootstrap a second time",
        answer,
        |a| a.header.as_ref(),
        |_| Value::Null,
    );
}

async fn stores(asked: &mut Asked) {
    let mut pd = asked.pd.clone();
    let request = GetAllStoresRequest {
        header: asked.header(),
        exclude_tombstone_stores: true,
    };
    let answer = pd.get_all_stores(request).await;
    let store = answer.as_ref().unwrap().get_ref().stores[0].id;
    asked.pd(
        "GetAllStores",
        answer,
        |a| a.header.as_ref(),
        |a| {
            let stores = a.stores.iter();
            stores
                .map(
                    |s| json!({"state": s.state, "version": s.version, "node_state": s.node_state}),
                )
                .collect()
        },
    );
    for (what, store_id) in [("known", store), ("unknown", 9999), ("0", 0)] {
        let request = GetStoreRequest {
            header: asked.header(),
            store_id,
        };
        let answer = pd.get_store(request).await;
        asked.pd(
            &format!("GetStore, {what} id"),
            answer,
            |a| a.header.as_ref(),
            |a| json!({"store": a.store.is_some(), "stats": a.stats.is_some()}),
        );
    }
    let request = GetClusterInfoRequest::default();
    let answer = pd.get_cluster_info(request).await;
    asked.pd(
        "GetClusterInfo",
        answer,
        |a| a.header.as_ref(),
        |a| json!({"modes": a.service_modes, "tso_urls": a.tso_urls}),
    );
}

async fn refusals(asked: &mut Asked) {
    let mut pd = asked.pd.clone();
    for (what, header) in [
        (
            "another cluster id",
            Some(RequestHeader {
                cluster_id: 7,
                ..Default::default()
            }),
        ),
        ("no header", None),
    ] {
        let request = GetAllStoresRequest {
            header,
            ..Default::default()
        };
        let answer = pd.get_all_stores(request).await;
        asked.pd(
            &format!("GetAllStores, {what}"),
            answer,
            |a| a.header.as_ref(),
            |_| Value::Null,
        );
    }
    let request = GetOperatorRequest {
        header: asked.header(),
        region_id: 9999,
    };
    let answer = pd.get_operator(request).await;
    asked.pd(
        "GetOperator without an operator",
        answer,
        |a| a.header.as_ref(),
        |_| Value::Null,
    );
    let request = ScatterRegionRequest {
        header: asked.header(),
        regions_id: vec![9999],
        ..Default::default()
    };
    let answer = pd.scatter_region(request).await;
    asked.pd(
        "ScatterRegion, unknown region",
        answer,
        |a| a.header.as_ref(),
        |a| json!({"percentage": a.finished_percentage, "failed": a.failed_regions_id}),
    );
}

async fn timestamps(asked: &mut Asked) {
    let mut pd = asked.pd.clone();
    let good = asked.header();
    let wrong = Some(RequestHeader {
        cluster_id: 7,
        ..Default::default()
    });
    for (what, header, count) in [
        ("of 10", good.clone(), 10),
        ("of 0", good, 0),
        ("of another cluster", wrong, 1),
    ] {
        let request = TsoRequest {
            header,
            count,
            ..Default::default()
        };
        let answer = match pd.tso(stream::iter([request])).await {
            Ok(answers) => answers.into_inner().next().await.unwrap(),
            Err(status) => Err(status),
        };
        asked.plain(&format!("Tso {what}"), answer, |a| {
            let ts = a.timestamp.unwrap_or_default();
            json!({
                "count": a.count,
                "physical": ts.physical > 0,
                "logical_holds_the_batch": ts.logical >= i64::from(a.count),
                "suffix_bits": ts.suffix_bits,
            })
        });
    }
}

async fn service(asked: &mut Asked, call: &str, id: &'static str, ttl: i64, safe_point: u64) {
    let request = UpdateServiceGcSafePointRequest {
        header: asked.header(),
        service_id: id.into(),
        ttl,
        safe_point,
    };
    let answer = asked.pd.clone().update_service_gc_safe_point(request).await;
    asked.pd(
        &format!("UpdateServiceGCSafePoint, {call}"),
        answer,
        |a| a.header.as_ref(),
        |a| {
            // The seconds left may have begun to run.
            let ttl = match a.ttl {
                550..=600 => "about 600",
                ttl if (i64::MAX - unix_seconds() - ttl).abs() < 60 => "largest less the clock",
                _ => "something else",
            };
            json!({
                "service": String::from_utf8_lossy(&a.service_id),
                "ttl": ttl,
                "minimum": a.min_safe_point,
            })
        },
    );
}

fn unix_seconds() -> i64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

async fn safe_points(asked: &mut Asked) {
    service(asked, "the first: a at 100", "a", 600, 100).await;
    service(asked, "removal of an unknown one", "nobody", 0, 0).await;
    service(asked, "no id", "", 600, 100).await;
    let mut pd = asked.pd.clone();
    for (what, safe_point) in [("forward to 70", 70), ("back to 30", 30)] {
        let request = UpdateGcSafePointRequest {
            header: asked.header(),
            safe_point,
        };
        let answer = pd.update_gc_safe_point(request).await;
        asked.pd(
            &format!("UpdateGCSafePoint, {what}"),
            answer,
            |a| a.header.as_ref(),
            |a| json!(a.new_safe_point),
        );
    }
    let request = GetGcSafePointRequest {
        header: asked.header(),
    };
    let answer = pd.get_gc_safe_point(request).await;
    asked.pd(
        "GetGCSafePoint",
        answer,
        |a| a.header.as_ref(),
        |a| json!(a.safe_point),
    );
}

async fn gc_worker(asked: &mut Asked) {
    service(asked, "gc_worker removed", "gc_worker", 0, 0).await;
    service(asked, "gc_worker with an end", "gc_worker", 600, 90).await;
    service(
        asked,
        "gc_worker to 200, a is at 100",
        "gc_worker",
        i64::MAX,
        200,
    )
    .await;
    service(asked, "b below the minimum", "b", 600, 60).await;
    service(asked, "b above the minimum", "b", 600, 120).await;
    service(asked, "a raised to 150", "a", 600, 150).await;
    service(asked, "a back to 110, below b", "a", 600, 110).await;
    service(asked, "b removed", "b", 0, 0).await;
    service(asked, "a removed by a negative time", "a", -1, 0).await;
    service(asked, "gc_worker back to 150", "gc_worker", i64::MAX, 150).await;
    service(asked, "c equal to the minimum", "c", 600, 200).await;
}

fn shape(region: Option<&metapb::Region>, leader: Option<&metapb::Peer>) -> Value {
    let Some(region) = region else {
        return Value::Null;
    };
    json!({
        "start": hex::encode(&region.start_key),
        "end": hex::encode(&region.end_key),
        "version": region.region_epoch.unwrap_or_default().version,
        "conf_ver": region.region_epoch.unwrap_or_default().conf_ver,
        "peers": region.peers.len(),
        "leads": leader == region.peers.first(),
    })
}

async fn regions(asked: &mut Asked) {
    let mut pd = asked.pd.clone();
    for key in ["", "k"] {
        let request = GetRegionRequest {
            header: asked.header(),
            region_key: key.into(),
            ..Default::default()
        };
        let answer = pd.get_region(request.clone()).await;
        let show = |a: &GetRegionResponse| shape(a.region.as_ref(), a.leader.as_ref());
        asked.pd(
            &format!("GetRegion {key:?}"),
            answer,
            |a| a.header.as_ref(),
            show,
        );
        let answer = pd.get_prev_region(request).await;
        asked.pd(
            &format!("GetPrevRegion {key:?}"),
            answer,
            |a| a.header.as_ref(),
            show,
        );
    }
    for region_id in [0, 999_999] {
        let request = GetRegionByIdRequest {
            header: asked.header(),
            region_id,
            ..Default::default()
        };
        let answer = pd.get_region_by_id(request).await;
        asked.pd(
            &format!("GetRegionByID {region_id}"),
            answer,
            |a| a.header.as_ref(),
            |a| shape(a.region.as_ref(), a.leader.as_ref()),
        );
    }
}

fn encoded(key: &str) -> bytes::Bytes {
    EncodedKey::encode(key.as_bytes()).into_bytes()
}

async fn splits(asked: &mut Asked) {
    let mut pd = asked.pd.clone();
    for (what, keys) in [("at two keys", vec!["d", "m"]), ("at a bound", vec!["m"])] {
        let request = SplitRegionsRequest {
            header: asked.header(),
            split_keys: keys.into_iter().map(encoded).collect(),
            retry_limit: 1,
        };
        let answer = pd.split_regions(request).await;
        asked.pd(
            &format!("SplitRegions {what}"),
            answer,
            |a| a.header.as_ref(),
            |a| json!({"percentage": a.finished_percentage, "new": a.regions_id.len()}),
        );
    }
    for (what, start, end, limit) in [
        ("of all", "", "", 0),
        ("of two", "", "", 2),
        ("between", "d", "m", -1),
        ("one key before a bound", "e", "e0", 10),
        ("backwards", "z", "a", 0),
    ] {
        let key = |key: &str| match key {
            "" => bytes::Bytes::new(),
            key => encoded(key),
        };
        let request = ScanRegionsRequest {
            header: asked.header(),
            start_key: key(start),
            end_key: key(end),
            limit,
        };
        let answer = pd.scan_regions(request).await;
        asked.pd(
            &format!("ScanRegions {what}"),
            answer,
            |a| a.header.as_ref(),
            |a| {
                let parallel = (a.region_metas.len(), a.leaders.len());
                let regions = a.regions.iter();
                let regions = regions.map(|r| shape(r.region.as_ref(), r.leader.as_ref()));
                json!({"regions": regions.collect::<Vec<_>>(), "parallel": parallel})
            },
        );
    }
}
