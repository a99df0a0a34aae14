//! The whole way on a real PD: the store registers there, the sidecar takes tasks, timestamps, regions
//! and safepoints from it, and PD stops, dies or changes its leader under load.
//!
//! Without a built pd-server these tests say so and are left out; in CI that is a failure.

mod certificates;
mod load;
mod published;

use std::time::{Duration, Instant};

use pitr_cluster::etcd::{EtcdClient, EtcdError};
use pitr_format::Ts;
use tokio::runtime::Runtime;

use crate::command::tikv_pitr;
use crate::pd_servers::PdServers;
use crate::system::{Client, Cluster, Sidecar, Storage};
use load::Load;
use published::Published;

/// How soon the checkpoint has to go on after the leader was killed.
const RESUME: Duration = Duration::from_secs(30);

#[test]
fn a_pd_that_stops_or_is_killed_under_load_is_survived_and_the_archive_restores() {
    let Some(mut pd) = PdServers::start(1) else {
        return;
    };
    let (source, archive) = (Cluster::at(pd.urls()), Storage::new());
    let started = source.log_start(&archive.url()).json();
    assert_eq!(started["ranges_were_empty"], true);
    let sidecar = Sidecar::start(&source);
    let client = Client::of(&source);
    let published = Published::of(&source);
    let load = Load::start(&source);
    published.wait_beyond(client.now());
    source
        .playground
        .store()
        .split_at_user_keys(&[b"load/0100", b"load/0200"])
        .unwrap();
    for signal in ["-TERM", "-KILL"] {
        pd.end(0, signal);
        std::thread::sleep(Duration::from_secs(1));
        pd.restart(0);
        published.wait_beyond(client.now());
    }
    assert!(load.stop() > 20, "the load came to a stop");
    let regions = pd.page("/pd/api/v1/regions");
    let split = source.playground.store().regions().iter().count();
    assert!(split >= 3);
    assert_eq!(regions["count"], split, "PD knows every split: {regions}");
    assert_holds_gc_back(&pd, &published);
    assert_archive_equals(&source, &client, &published, &archive, sidecar);
}

#[test]
fn the_checkpoint_goes_on_within_30_s_after_the_leader_of_three_pds_is_killed_under_load() {
    let Some(mut pd) = PdServers::start(3) else {
        return;
    };
    let (source, archive) = (Cluster::at(pd.urls()), Storage::new());
    source.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&source);
    let client = Client::of(&source);
    let published = Published::of(&source);
    let load = Load::start(&source);
    published.wait_beyond(client.now());

    let leader = pd.leader();
    let last = client.now();
    let killed = Instant::now();
    pd.end(leader, "-KILL");
    let first = client.now();
    let elected = killed.elapsed();
    assert!(first > last, "timestamps never go back over an election");
    published.wait_beyond(last);
    let resumed = killed.elapsed();
    println!(
        "PD leader killed: timestamps again after {:.1} s, checkpoint beyond the kill after {:.1} s",
        elected.as_secs_f64(),
        resumed.as_secs_f64()
    );
    assert!(resumed < RESUME, "resumed only after {resumed:?}");

    // The watch of the tasks lives on as well.
    published.pause();
    sidecar.wait_status("\"state\":\"paused\"");
    published.resume();
    sidecar.wait_status("\"state\":\"running\"");
    pd.restart(leader);
    published.wait_beyond(client.now());
    assert!(load.stop() > 20, "the load came to a stop");
    assert_archive_equals(&source, &client, &published, &archive, sidecar);
}

#[test]
fn a_watch_from_a_revision_that_pd_has_compacted_asks_for_a_new_list() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    Runtime::new().unwrap().block_on(async {
        let etcd = EtcdClient::new(&pd.urls()).unwrap();
        let first = etcd.put("/t/a", "1").await.unwrap();
        let last = etcd.put("/t/a", "2").await.unwrap();
        pd.compact(last);
        let mut old = etcd.watch_prefix(b"/t/", first).await.unwrap();
        let error = old.next().await.unwrap_err();
        assert!(
            matches!(error, EtcdError::Compacted { revision } if revision >= last),
            "{error}"
        );
        let mut new = etcd.watch_prefix(b"/t/", last + 1).await.unwrap();
        etcd.put("/t/b", "3").await.unwrap();
        assert_eq!(new.next().await.unwrap().events.len(), 1);
    });
}

/// The task's service safepoint stands in PD's list and is not above the checkpoint.
fn assert_holds_gc_back(pd: &PdServers, published: &Published) {
    let listed = pd.page("/pd/api/v1/gc/safepoint");
    let held = listed["service_gc_safe_points"].as_array().unwrap();
    let ours = held.iter().find(|s| {
        let id = s["service_id"].as_str().unwrap_or_default();
        id != "gc_worker"
    });
    let at = ours
        .and_then(|s| s["safe_point"].as_u64())
        .unwrap_or(u64::MAX);
    assert!(at <= published.checkpoint().get(), "{listed}");
}

/// Ends the sidecar and restores everything into a cluster at another real PD.
fn assert_archive_equals(
    source: &Cluster,
    client: &Client,
    published: &Published,
    archive: &Storage,
    sidecar: Sidecar,
) {
    published.wait_beyond(client.now());
    sidecar.stop();
    let other = PdServers::start(1).unwrap();
    let target = Cluster::at(other.urls());
    let restored = target
        .run(&["restore", "point", "-s", &archive.url(), "--json"])
        .json();
    assert_eq!(restored["verified"], true, "{restored}");
    let at = Ts::new(restored["restored"]["tso"].as_u64().unwrap());
    assert_eq!(source.scan_digest(at), target.scan_digest(at));
    let verified = tikv_pitr(&["verify", "data", "-s", &archive.url(), "--json"]).json();
    let unreferenced = verified["unreferenced"].as_array().unwrap();
    assert!(unreferenced.is_empty(), "{verified}");
}
