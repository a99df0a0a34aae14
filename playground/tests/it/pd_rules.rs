//! Rules of PD that no recording shows: timestamps, service safe points, regions, headers
//! (cdc-and-pd 4.1 to 4.7).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::{StreamExt, stream};
use pitr_proto::pdpb::{
    AllocIdRequest, ErrorType, GetAllStoresRequest, GetGcSafePointRequest, GetMembersRequest,
    GetRegionByIdRequest, GetRegionRequest, RequestHeader, ScanRegionsRequest, TsoRequest,
    UpdateGcSafePointRequest, UpdateServiceGcSafePointRequest,
};

use super::system::{SELDOM, System, encode};

/// An answer to a service safe point: whose is the minimum, for how long, and where.
type Minimum = (String, i64, u64);

async fn safe_point(system: &System, id: &'static str, ttl: i64, ts: u64) -> Minimum {
    let request = UpdateServiceGcSafePointRequest {
        header: system.header(),
        service_id: id.into(),
        ttl,
        safe_point: ts,
    };
    let answer = system
        .pd
        .clone()
        .update_service_gc_safe_point(request)
        .await
        .unwrap();
    let answer = answer.into_inner();
    assert_eq!(
        answer.header.unwrap().error.unwrap_or_default().r#type(),
        ErrorType::Ok
    );
    let id = String::from_utf8(answer.service_id.to_vec()).unwrap();
    // What never ends is told as the largest number less the clock.
    let ttl = match answer.ttl {
        ttl if ttl > i64::MAX / 2 => i64::MAX,
        ttl => ttl,
    };
    (id, ttl, answer.min_safe_point)
}

fn gc_worker(ts: u64) -> Minimum {
    ("gc_worker".to_owned(), i64::MAX, ts)
}

#[tokio::test(flavor = "multi_thread")]
async fn service_safe_points_keep_a_minimum_that_only_its_owner_raises() {
    let system = System::start(SELDOM).await;
    // The GC worker's own entry exists from the start, with 0 and for ever.
    assert_eq!(safe_point(&system, "a", 600, 100).await, gc_worker(0));
    assert_eq!(safe_point(&system, "gc_worker", i64::MAX, 200).await.2, 100);
    // Below the minimum: ignored in silence, the answer tells.
    let (id, ttl, min) = safe_point(&system, "b", 600, 60).await;
    assert_eq!((id.as_str(), min), ("a", 100));
    assert!((590..=600).contains(&ttl), "{ttl}");
    let (id, _, min) = safe_point(&system, "b", 600, 120).await;
    assert_eq!(
        (id.as_str(), min),
        ("a", 100),
        "an equal or larger one is kept beside it"
    );
    let (id, _, min) = safe_point(&system, "a", 600, 150).await;
    assert_eq!(
        (id.as_str(), min),
        ("b", 120),
        "the owner raised the minimum, b is next"
    );
    let (id, _, min) = safe_point(&system, "b", 0, 0).await;
    assert_eq!(
        (id.as_str(), min),
        ("a", 150),
        "no time to live takes it out"
    );
    assert_eq!(safe_point(&system, "a", -1, 0).await, gc_worker(200));
    assert_eq!(
        safe_point(&system, "c", 600, 200).await.2,
        200,
        "equal to the minimum is success"
    );
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_safe_point_ends_with_its_time_to_live_and_survives_a_restart() {
    let system = System::start(SELDOM).await;
    safe_point(&system, "gc_worker", i64::MAX, 40).await;
    // Long enough for two calls on a busy machine.
    let short = Instant::now();
    assert_eq!(safe_point(&system, "short", 4, 50).await, gc_worker(40));
    assert_eq!(safe_point(&system, "long", 600, 60).await, gc_worker(40));
    let (id, _, min) = safe_point(&system, "gc_worker", i64::MAX, 90).await;
    assert_eq!((id.as_str(), min), ("short", 50));
    let system = system.restart(SELDOM).await;
    let gone = Duration::from_millis(5100);
    tokio::time::sleep(gone.saturating_sub(short.elapsed())).await;
    let (id, _, min) = safe_point(&system, "gc_worker", i64::MAX, 95).await;
    assert_eq!((id.as_str(), min), ("long", 60));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gc_safe_point_looks_at_no_service_and_never_falls() {
    let system = System::start(SELDOM).await;
    safe_point(&system, "a", 600, 10).await;
    let raise = async |ts| {
        let request = UpdateGcSafePointRequest {
            header: system.header(),
            safe_point: ts,
        };
        system
            .pd
            .clone()
            .update_gc_safe_point(request)
            .await
            .unwrap()
            .into_inner()
            .new_safe_point
    };
    assert_eq!(raise(70).await, 70);
    assert_eq!(raise(30).await, 70);
    let request = GetGcSafePointRequest {
        header: system.header(),
    };
    let answer = system
        .pd
        .clone()
        .get_gc_safe_point(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.safe_point, 70);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_timestamps_ends_with_the_one_answered() {
    let system = System::start(SELDOM).await;
    let mut last = system.now().await;
    let physical = Duration::from_millis(last >> 18);
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(clock.abs_diff(physical) < Duration::from_secs(5));
    for count in [1, 10, 100_000, 200_000, 262_143, 1] {
        let highest = system.timestamps(count).await;
        assert!(
            highest >= last + u64::from(count),
            "{count}: {last} then {highest}"
        );
        let logical = highest & ((1 << 18) - 1);
        assert!(
            logical + 1 >= u64::from(count),
            "a batch lies in one millisecond"
        );
        last = highest;
    }
    let system = system.restart(SELDOM).await;
    assert!(system.now().await > last, "never again after a restart");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_streams_never_get_one_timestamp_twice() {
    let system = System::start(SELDOM).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let mut pd = system.pd.clone();
        let header = system.header();
        tasks.push(tokio::spawn(async move {
            let requests: Vec<TsoRequest> = (1..=200_u32)
                .map(|i| TsoRequest {
                    header: header.clone(),
                    count: i % 7 + 1,
                    ..TsoRequest::default()
                })
                .collect();
            let counts: Vec<u32> = requests.iter().map(|r| r.count).collect();
            let mut answers = pd.tso(stream::iter(requests)).await.unwrap().into_inner();
            let mut given = Vec::new();
            for count in counts {
                let answer = answers.next().await.unwrap().unwrap();
                assert_eq!(
                    answer.count, count,
                    "answers come in the order of the requests"
                );
                let ts = answer.timestamp.unwrap();
                let highest = ts.physical << 18 | ts.logical;
                given.extend(
                    (highest - i64::from(count) + 1..=highest)
                        .rev()
                        .take(count as usize),
                );
            }
            given
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_timestamps_are_not_a_batch() {
    let system = System::start(SELDOM).await;
    let request = TsoRequest {
        header: system.header(),
        count: 0,
        ..TsoRequest::default()
    };
    let refused = match system.pd.clone().tso(stream::iter([request])).await {
        Err(_) => true,
        Ok(answers) => match answers.into_inner().next().await {
            Some(Ok(answer)) => answer.header.unwrap().error.is_some(),
            _ => true,
        },
    };
    assert!(refused);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_id_is_refused_but_members_answer_without_one() {
    let system = System::start(SELDOM).await;
    let answer = system
        .pd
        .clone()
        .get_members(GetMembersRequest::default())
        .await
        .unwrap();
    let answer = answer.into_inner();
    assert_eq!(answer.header.unwrap().cluster_id, system.cluster_id);
    let leader = answer.leader.expect("a leader");
    assert!(
        answer
            .members
            .iter()
            .any(|m| m.member_id == leader.member_id)
    );
    assert!(!leader.client_urls.is_empty());
    let request = GetAllStoresRequest {
        header: Some(RequestHeader {
            cluster_id: 1,
            ..RequestHeader::default()
        }),
        ..GetAllStoresRequest::default()
    };
    let status = system.pd.clone().get_all_stores(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("mismatch cluster id"), "{status}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_are_found_by_encoded_key_by_id_and_in_pages() {
    let system = System::start(SELDOM).await;
    system.split(&[b"g", b"p"]).await;
    let all = system.regions().await;
    assert_eq!(all.len(), 3);
    let mut pd = system.pd.clone();
    let by_key = |key: &[u8]| GetRegionRequest {
        header: system.header(),
        region_key: encode(key),
        ..GetRegionRequest::default()
    };
    for (key, index) in [(b"a", 0), (b"g", 1), (b"o", 1), (b"p", 2), (b"\xff", 2)] {
        let answer = pd.get_region(by_key(key)).await.unwrap().into_inner();
        assert_eq!(answer.region.as_ref(), Some(&all[index]), "{key:?}");
        assert_eq!(answer.leader.as_ref(), all[index].peers.first());
    }
    let previous = pd.get_prev_region(by_key(b"p")).await.unwrap().into_inner();
    assert_eq!(previous.region.as_ref(), Some(&all[1]));
    for region in &all {
        let request = GetRegionByIdRequest {
            header: system.header(),
            region_id: region.id,
            ..GetRegionByIdRequest::default()
        };
        let answer = pd.get_region_by_id(request).await.unwrap().into_inner();
        assert_eq!(answer.region.as_ref(), Some(region));
    }
    for (start, end, limit, expected) in [
        ("", "", 2, &all[..2]),
        ("h", "", 0, &all[1..]),
        ("a", "g", 0, &all[..1]),
    ] {
        let request = ScanRegionsRequest {
            header: system.header(),
            start_key: if start.is_empty() {
                "".into()
            } else {
                encode(start.as_bytes())
            },
            end_key: if end.is_empty() {
                "".into()
            } else {
                encode(end.as_bytes())
            },
            limit,
        };
        let answer = pd.scan_regions(request).await.unwrap().into_inner();
        let regions: Vec<_> = answer
            .regions
            .iter()
            .map(|r| r.region.clone().unwrap())
            .collect();
        assert_eq!(regions, expected, "{start}..{end} {limit}");
        assert_eq!(answer.region_metas, expected);
        assert_eq!(answer.leaders.len(), expected.len());
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_regions_survive_a_restart() {
    let system = System::start(SELDOM).await;
    let id = async |system: &System| {
        let request = AllocIdRequest {
            header: system.header(),
            count: 1,
        };
        system
            .pd
            .clone()
            .alloc_id(request)
            .await
            .unwrap()
            .into_inner()
            .id
    };
    let before = id(&system).await;
    system.split(&[b"g"]).await;
    let regions = system.regions().await;
    let cluster_id = system.cluster_id;
    let system = system.restart(SELDOM).await;
    assert_eq!(system.cluster_id, cluster_id);
    assert_eq!(system.regions().await, regions);
    let after = id(&system).await;
    assert!(after > before);
    assert!(
        regions
            .iter()
            .all(|r| r.id != after && r.peers[0].id != after)
    );
    system.stop().await;
}
