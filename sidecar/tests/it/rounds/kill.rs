//! SIGKILL of the sidecar, at random moments and at the worst ones, between the steps of a flush:
//! when a log object has just appeared, or a meta, or the beginning of any object.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::archive::Archive;
use super::compare::restored_equals_source;
use super::load::Load;
use super::sidecar::Sidecar;
use super::source::Source;
use super::watch::Watch;
use super::{PATIENCE, TASK, rounds, seed, wait_until};
use crate::command::tikv_pitr;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn soak_a_killed_sidecar_loses_nothing_that_was_reported() {
    let seed = seed("kill rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let source = Source::start();
    let archive = Archive::start(&source);
    let load = Load::start(&source, seed).await;
    let watch = Watch::start(&source, &archive);
    let mut unreferenced = 0;
    for round in 0..rounds() {
        let sidecar = Sidecar::start(&source);
        // The archive must move on after each kill, or the rounds prove nothing.
        let steps = watch.steps();
        wait_until("the checkpoint moves", async || watch.steps() > steps).await;
        // At any moment, before the meta, before the publication, inside of a write.
        let moment = [None, Some(".log"), Some(".meta"), Some(".tmp")][round as usize % 4];
        match moment {
            Some(part) => tokio::task::block_in_place(|| await_new(&archive, part)),
            None => tokio::time::sleep(Duration::from_millis(rng.random_range(0..3000))).await,
        }
        let reported = watch.reported();
        sidecar.kill();
        assert!(archive.latest().unwrap() >= reported, "round {round}");
        let left = archive.sound().len();
        println!(
            "kill {round}: {} unreferenced objects more",
            left - unreferenced
        );
        assert!(left - unreferenced <= archive.largest_generation());
        unreferenced = left;
        archive.passes_the_independent_checker(unreferenced);
        assert!(restored_equals_source(&archive, &source, &[]).await >= reported);
    }
    let (confirmed, end) = load.stop().await;
    assert!(confirmed.len() > 500, "{}", confirmed.len());
    let sidecar = Sidecar::start(&source);
    wait_until("the checkpoint passes the load", async || {
        log_status(&source) >= end.get()
    })
    .await;
    sidecar.stop();
    watch.stop().await;
    assert!(restored_equals_source(&archive, &source, &confirmed).await >= end.get());
    assert_eq!(archive.sound().len(), unreferenced);
    archive.passes_the_independent_checker(unreferenced);
}

/// Waits until there is a new object with this in its name; looks all the time.
fn await_new(archive: &Archive, part: &str) {
    let matching = || -> BTreeSet<String> {
        let names = archive.names().into_iter();
        names.filter(|name| name.contains(part)).collect()
    };
    let old = matching();
    let began = Instant::now();
    while matching() == old {
        assert!(began.elapsed() < PATIENCE, "no flush");
    }
}

/// The checkpoint that `log status` reports.
pub fn log_status(source: &Source) -> u64 {
    let pd = source.pd();
    let args = ["log", "status", "--task-name", TASK, "-u", &pd, "--json"];
    let report = tokio::task::block_in_place(|| tikv_pitr(&args)).json();
    report["tasks"][0]["checkpoint"].as_u64().unwrap()
}
