//! PD and the store go away under load and come back: with the playground both at once, killed
//! and started again on the same data and addresses.

use std::time::Duration;

use pitr_cluster::etcd::EtcdClient;

use super::archive::Archive;
use super::compare::restored_equals_source;
use super::kill::log_status;
use super::load::Load;
use super::sidecar::Sidecar;
use super::source::Source;
use super::watch::Watch;
use super::{seed, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn soak_the_sidecar_survives_the_absence_of_pd_and_store() {
    let seed = seed("outages");
    let mut source = Source::start();
    let archive = Archive::start(&source);
    let load = Load::start(&source, seed).await;
    let watch = Watch::start(&source, &archive);
    let sidecar = Sidecar::start(&source);
    // A restart in passing, then an absence of some seconds.
    for away in [Duration::ZERO, Duration::from_secs(6)] {
        let steps = watch.steps();
        wait_until("the checkpoint moves", async || watch.steps() > steps + 2).await;
        source.kill();
        tokio::time::sleep(away).await;
        source.restart();
    }
    let steps = watch.steps();
    wait_until("the checkpoint moves again", async || {
        watch.steps() > steps + 2
    })
    .await;
    let (confirmed, end) = load.stop().await;
    wait_until("the checkpoint passes the load", async || {
        log_status(&source) >= end.get()
    })
    .await;
    // The same process all the time: `stop` fails if it had ended.
    sidecar.stop();
    watch.stop().await;
    assert!(restored_equals_source(&archive, &source, &confirmed).await >= end.get());
    assert_eq!(archive.sound(), Vec::<String>::new());
    archive.passes_the_independent_checker(0);
}

/// The leased key of the source's store.
const KEY: &str = "/tikv-pitr/v1/store/1";

/// Longer than any lease of a sidecar.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(16);

async fn daemon(etcd: &EtcdClient) -> Option<String> {
    let held = etcd.get(KEY.as_bytes()).await.ok()??;
    let member: serde_json::Value = serde_json::from_slice(&held.value).unwrap();
    Some(member["daemon"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pd_that_is_away_longer_than_the_lease_ends_no_sidecar_and_finds_it_again_as_itself() {
    let mut source = Source::start();
    let archive = Archive::start(&source);
    let watch = Watch::start(&source, &archive);
    let sidecar = Sidecar::start(&source);
    let steps = watch.steps();
    wait_until("the checkpoint moves", async || watch.steps() > steps).await;
    let etcd = EtcdClient::new(&[source.pd()]).unwrap();
    let before = daemon(&etcd).await.unwrap();
    source.kill();
    tokio::time::sleep(LONGER_THAN_A_LEASE).await;
    source.restart();
    let steps = watch.steps();
    wait_until("the checkpoint moves again", async || watch.steps() > steps).await;
    assert_eq!(daemon(&etcd).await.unwrap(), before);
    // The same process all the time: `stop` fails if it had ended.
    sidecar.stop();
    assert_eq!(daemon(&etcd).await, None);
    watch.stop().await;
}
