//! Regions that merge: what change data, commands and PD say of source and target, before, during and
//! after (spec: cdc-and-pd 1.10 and 2.3, and TiKV's rules of epochs).

use pitr_proto::metapb::Region;

use super::cluster::{Stores, http};
use super::feed::{Feed, MULTIPLEXED, register};
use super::system::encode;

fn epoch(region: &Region) -> (u64, u64) {
    let epoch = region.region_epoch.unwrap();
    (epoch.conf_ver, epoch.version)
}

/// Three regions with data on both sides of each bound; the region of `f` is led by another store than
/// that of `a`.
async fn three() -> (Stores, Region, Region) {
    let stores = Stores::start().await;
    let whole = stores.region_of(b"a").await.0.id;
    for key in ["66", "6d"] {
        let regions = stores.admin("GET", "/regions").await;
        let last = regions.as_array().unwrap().last().unwrap()["id"].clone();
        assert_eq!(last, whole, "the last part keeps the id");
        let parts = stores
            .admin("POST", &format!("/regions/{whole}/split?key={key}"))
            .await;
        assert_eq!(parts.as_array().unwrap().len(), 2);
    }
    for key in ["a", "e", "f", "l", "m", "z"] {
        stores.put(key.as_bytes(), key.as_bytes()).await;
    }
    let (left, leader) = stores.region_of(b"a").await;
    let other = left.peers.iter().map(|p| p.store_id);
    let other = other.into_iter().find(|s| *s != leader.unwrap().store_id);
    let (middle, _) = stores.region_of(b"f").await;
    stores
        .playground
        .transfer_leader(middle.id, other.unwrap())
        .unwrap();
    (stores, left, middle)
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_of_both_regions_learn_of_a_merge_and_the_target_goes_on_with_all_rows() {
    let (stores, source, target) = three().await;
    let cluster_id = stores.playground.cluster_id();
    let mut feeds = Vec::new();
    for (request, region, key) in [(1, &source, b"a"), (2, &target, b"f")] {
        let leader = stores.region_of(key).await.1.unwrap().store_id;
        let first = vec![register(cluster_id, region, request, 1)];
        let feed = Feed::open(&stores.channels[&leader], MULTIPLEXED, first).await;
        feeds.push((leader, feed.unwrap()));
        let (_, feed) = feeds.last_mut().unwrap();
        feed.wait_initialized(request).await;
    }
    let path = format!("/regions/{}/merge/{}", source.id, target.id);
    let told = stores.admin("POST", &path).await;
    let version = (epoch(&source).1 + 1).max(epoch(&target).1) + 1;
    assert_eq!(told["version"], version);
    for ((_, feed), region) in feeds.iter_mut().zip([&source, &target]) {
        let (_, id, error) = feed.next_error().await;
        assert_eq!(id, region.id);
        let regions = error
            .epoch_not_match
            .expect("both epochs rose")
            .current_regions;
        assert!(
            regions.is_empty(),
            "only a split says what came of a region"
        );
    }
    let (_, feed) = &mut feeds[0];
    feed.send(register(cluster_id, &source, 3, 1));
    let (_, id, error) = feed.next_error().await;
    assert_eq!(error.region_not_found.unwrap().region_id, id);

    let (leader, feed) = &mut feeds[1];
    feed.send(register(cluster_id, &target, 4, 1));
    let (.., error) = feed.next_error().await;
    let current = error.epoch_not_match.unwrap().current_regions;
    assert_eq!(current.len(), 1);
    let (merged, now_led) = stores.region_of(b"a").await;
    assert_eq!(
        (current[0].clone(), now_led.unwrap().store_id),
        (merged.clone(), *leader)
    );
    feed.send(register(cluster_id, &merged, 5, 1));
    let mut keys = std::collections::BTreeSet::new();
    while keys.len() < 4 {
        if let super::feed::Item::Rows { rows, .. } = feed.next().await {
            keys.extend(
                rows.into_iter()
                    .map(|row| row.key)
                    .filter(|key| !key.is_empty()),
            );
        }
    }
    assert_eq!(keys, ["a", "e", "f", "l"].map(bytes::Bytes::from).into());
    feed.wait_resolved(5).await;
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_to_the_old_shapes_fail_and_pd_names_the_grown_region_at_once() {
    let (stores, source, target) = three().await;
    let places = (
        stores.region_of(b"a").await.1.unwrap().store_id,
        stores.region_of(b"f").await.1.unwrap().store_id,
    );
    let merged = {
        let (source, target) = (source.id, target.id);
        stores
            .command(move |p| p.merge_regions(source, target))
            .await
            .unwrap()
    };
    assert_eq!(
        (merged.start_key.clone(), &merged.end_key),
        (source.start_key.clone(), &target.end_key)
    );
    assert_eq!(merged.peers, target.peers);
    assert_eq!(
        epoch(&merged).0,
        epoch(&target).0,
        "no peer of the target changed"
    );
    let regions = stores.regions().await;
    let (known, leader) = &regions[0];
    assert_eq!((regions.len(), known), (2, &merged));
    assert_eq!(leader.unwrap().store_id, places.1);

    let error = stores.get_in(&source, places.0, b"a").await.unwrap_err();
    assert_eq!(error.region_not_found.unwrap().region_id, source.id);
    let error = stores.get_in(&target, places.1, b"f").await.unwrap_err();
    let current = error.epoch_not_match.unwrap().current_regions;
    assert_eq!(current, [merged]);
    let written = stores.put_in(&target, places.1, b"f", b"lost").await;
    let error = written.unwrap().unwrap_err();
    assert!(error.epoch_not_match.is_some());
    for key in ["a", "e", "f", "l", "m", "z"] {
        let (region, leader) = stores.region_of(key.as_bytes()).await;
        let leader = leader.unwrap().store_id;
        assert!(region.start_key <= encode(key.as_bytes()));
        assert_eq!(stores.get_at(leader, key.as_bytes()).await.unwrap(), key);
    }
    stores.put(b"a", b"after").await;
    stores.assert_equal();
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_down_comes_back_to_the_regions_of_the_others() {
    let (stores, source, target) = three().await;
    let away = *stores.channels.keys().last().unwrap();
    stores.command(move |p| p.crash_store(away)).await.unwrap();
    let path = format!("/regions/{}/merge/{}", source.id, target.id);
    stores.admin("POST", &path).await;
    stores.put(b"b", b"new").await;
    stores.command(move |p| p.start_store(away)).await.unwrap();
    stores.assert_equal();
    let stores = stores.restart().await;
    let regions = stores.regions().await;
    assert_eq!((regions.len(), regions[0].0.id), (2, target.id));
    let (_, leader) = stores.region_of(b"b").await;
    assert_eq!(
        stores.get_at(leader.unwrap().store_id, b"b").await.unwrap(),
        "new"
    );
    stores.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_admin_page_cannot_do_is_refused_with_its_reason() {
    let (stores, source, _) = three().await;
    let last = stores.region_of(b"z").await.0;
    let admin = stores.playground.admin_addr().unwrap();
    let id = source.id;
    for (path, code, reason) in [
        (
            format!("/regions/{id}/merge/{}", last.id),
            409,
            "no neighbours",
        ),
        (format!("/regions/{id}/merge/999"), 409, "does not exist"),
        (
            format!("/regions/{id}/split?key=7a"),
            409,
            "is not in region",
        ),
        (
            "/regions/999/split?key=61".to_owned(),
            409,
            "999 is missing",
        ),
        (
            format!("/regions/{id}/split?key=xyz"),
            400,
            "user key in hex",
        ),
        (format!("/regions/{id}/split"), 400, "user key in hex"),
    ] {
        let said = http(admin, "POST", &path).await;
        assert!(
            said.starts_with(&format!("HTTP/1.1 {code}")) && said.contains(reason),
            "{path}: {said}"
        );
    }
    assert_eq!(stores.regions().await.len(), 3);
    stores.stop().await;
}
