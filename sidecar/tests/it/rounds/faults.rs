//! A storage that fails every third write: before the effect, after it, or in turn.

use std::sync::Arc;
use std::time::Duration;

use pitr_proto::backup::StreamBackupTaskInfo;
use pitr_sidecar::config::Config;
use pitr_sidecar::serve;
use pitr_storage::fault::{FaultPlan, FaultyStorage, When};
use tokio::sync::watch;

use super::archive::Archive;
use super::compare::restored_equals_source;
use super::kill::log_status;
use super::load::Load;
use super::source::Source;
use super::watch::Watch;
use super::{rounds, seed, sidecar, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn soak_a_storage_that_fails_every_third_write_loses_nothing() {
    let seed = seed("faulty storage");
    for round in 0..rounds() {
        let when = [When::Before, When::After, When::Alternate][round as usize % 3];
        faulty_round(seed.wrapping_add(round), when).await;
    }
}

async fn faulty_round(seed: u64, when: When) {
    let source = Source::start();
    let archive = Archive::start(&source);
    let sound = pitr_storage::open_url(&archive.url()).unwrap();
    let faulty = FaultyStorage::new(sound, FaultPlan::every_nth_write(3, when));
    let config = Config::parse(&sidecar::config(&source)).unwrap();
    let (stop, stopped) = watch::channel(false);
    let storage = faulty.clone();
    let open: serve::OpenStorage = Arc::new(move |_: &StreamBackupTaskInfo| Ok(storage.clone()));
    let serving = tokio::spawn(serve::serve_with(config, stopped, open));

    let load = Load::start(&source, seed).await;
    let watch = Watch::start(&source, &archive);
    for step in [2, 4] {
        wait_until("the checkpoint moves", async || watch.steps() >= step).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (confirmed, end) = load.stop().await;
    wait_until("the checkpoint passes the load", async || {
        log_status(&source) >= end.get()
    })
    .await;
    stop.send(true).unwrap();
    serving.await.unwrap().unwrap();
    watch.stop().await;
    let counters = faulty.counters();
    println!("{when:?}: {counters:?}");
    assert!(
        counters.errors_before + counters.errors_after >= 4,
        "{counters:?}"
    );
    assert!(restored_equals_source(&archive, &source, &confirmed).await >= end.get());
    assert_eq!(archive.sound(), Vec::<String>::new());
    archive.passes_the_independent_checker(0);
}
