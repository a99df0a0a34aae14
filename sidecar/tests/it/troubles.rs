//! A sidecar whose world does not behave: storage that fails, pauses, splits, GC that ran ahead.

use std::sync::Arc;

use pitr_cluster::tasks::keys;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::pdpb::pd_client::PdClient as PdStub;
use pitr_proto::pdpb::{RequestHeader, SplitRegionsRequest, UpdateGcSafePointRequest};
use pitr_sidecar::config::Config;
use pitr_sidecar::{serve, storage};
use pitr_storage::fault::{FaultPlan, FaultyStorage, When};
use tokio::runtime::Runtime;

use crate::command::tikv_pitr;
use crate::pauses::Keys;
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};

/// Restores the whole archive into a new cluster and compares it with the source.
pub fn assert_restores(source: &Cluster, archive: &Storage, target: &Cluster) {
    let restored = target
        .run(&["restore", "point", "-s", &archive.url(), "--json"])
        .json();
    assert_eq!(restored["verified"], true, "{restored}");
    let at = Ts::new(restored["restored"]["tso"].as_u64().unwrap());
    assert_eq!(source.scan_digest(at), target.scan_digest(at));
}

#[test]
fn nothing_is_lost_when_every_third_write_of_the_storage_fails() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    let config = Config::parse(&format!(
        "pd-endpoints = [\"{}\"]\nstore-id = 1\nstatus-addr = \"127.0.0.1:0\"\n\
         [log-backup]\nmax-flush-interval = \"1s\"\n",
        source.pd(),
    ))
    .unwrap();
    let open: serve::OpenStorage = Arc::new(|info| {
        let plan = FaultPlan::every_nth_write(3, When::Alternate);
        Ok(FaultyStorage::new(storage::open_task(info)?, plan))
    });
    let runtime = Runtime::new().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let serving = runtime.spawn(serve::serve_with(config, stopped, open));
    for round in 0..4 {
        client.write(&load(round));
        std::thread::sleep(std::time::Duration::from_millis(400));
    }
    source.wait_checkpoint(client.now());
    stop.send(true).unwrap();
    runtime.block_on(serving).unwrap().unwrap();
    assert_restores(&source, &archive, &Cluster::start());
    let verified = tikv_pitr(&["verify", "data", "-s", &archive.url(), "--json"]).json();
    assert_eq!(
        verified["unreferenced"].as_array().unwrap().len(),
        0,
        "{verified}"
    );
}

#[test]
fn regions_that_split_on_either_side_lose_nothing() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    let sidecar = Sidecar::start(&source);
    client.write(&load(1));
    split(&source, &["demo/020", "demo/040"]);
    client.write(&load(2));
    split(&source, &["demo/030"]);
    client.write(&load(3));
    source.wait_checkpoint(client.now());
    sidecar.stop();
    let target = Cluster::start();
    split(&target, &["demo/010", "demo/035", "z"]);
    assert_restores(&source, &archive, &target);
}

#[test]
fn history_that_gc_removed_is_a_gap_that_everybody_sees() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    let sidecar = Sidecar::start(&source);
    source.wait_checkpoint(client.now());
    sidecar.stop();
    client.write(&load(1));
    let passed = client.now();
    run_gc(&source, passed);

    let sidecar = Sidecar::start(&source);
    sidecar.wait_status("\"gap\":true");
    assert!(sidecar.page("/healthz").starts_with("HTTP/1.1 503"));
    wait_until("the gap is noted in PD", || {
        source.run(&["log", "status", "--json"]).code == 22
    });
    let bound = tikv_pitr(&["log", "metadata", "-s", &archive.url(), "--json"]).json();
    assert!(
        bound["max"]["tso"].as_u64().unwrap() < passed.get(),
        "{bound}"
    );
    sidecar.stop();
}

#[test]
fn a_pd_whose_clock_fell_behind_the_checkpoint_is_told_and_nothing_is_published() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    let began = client.now();
    // As after a restore of PD from a backup of its data: ts that were given are given again.
    let ahead = Ts::compose(began.physical_ms() + 600_000, 0);
    let key = keys::global_checkpoint("t");
    Keys::of(&source).put(key, ahead.get().to_be_bytes().to_vec());
    let sidecar = Sidecar::start(&source);
    sidecar.wait_status("PD's clock is behind the checkpoint");
    client.write(&load(1));
    std::thread::sleep(std::time::Duration::from_secs(2));
    let listed = tikv_pitr(&["archive", "ls", "-s", &archive.url()]);
    // What `log start` wrote is there, and nothing else.
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    assert!(listed.stdout.contains("backupmeta"), "{}", listed.stdout);
    let published = [".ts", ".meta", ".log"].map(|end| listed.stdout.contains(end));
    assert_eq!(published, [false; 3], "{}", listed.stdout);
    sidecar.stop();
}

fn header(cluster: &Cluster) -> Option<RequestHeader> {
    Some(RequestHeader {
        cluster_id: cluster.playground.cluster_id(),
        ..RequestHeader::default()
    })
}

/// Splits regions in front of keys.
pub fn split(cluster: &Cluster, at: &[&str]) {
    let encoded = |key: &&str| EncodedKey::encode(key.as_bytes()).into_bytes();
    let request = SplitRegionsRequest {
        header: header(cluster),
        split_keys: at.iter().map(encoded).collect(),
        ..SplitRegionsRequest::default()
    };
    Runtime::new().unwrap().block_on(async {
        let mut stub = PdStub::connect(format!("http://{}", cluster.pd()))
            .await
            .unwrap();
        let answer = stub.split_regions(request).await.unwrap().into_inner();
        assert_eq!(answer.regions_id.len(), at.len());
    });
}

/// As some clients do: past every service safepoint.
pub fn run_gc(cluster: &Cluster, safe_point: Ts) {
    let request = UpdateGcSafePointRequest {
        header: header(cluster),
        safe_point: safe_point.get(),
    };
    Runtime::new().unwrap().block_on(async {
        let mut stub = PdStub::connect(format!("http://{}", cluster.pd()))
            .await
            .unwrap();
        let answer = stub
            .update_gc_safe_point(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.new_safe_point, safe_point.get());
    });
}
