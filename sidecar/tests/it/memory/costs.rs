//! What a sidecar costs beside its store: processor and memory of the real process under load and at
//! rest. Measurements without a bound of their own; `make bench` runs and prints them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pitr_format::EncodedKey;
use pitr_playground::PlaygroundConfig;
use pitr_playground::certificates::Authority;
use pitr_playground::store::Store;

use super::daemon::Daemon;
use super::writer::{self, Writer};
use super::{MIB, with_task_at};
use crate::system::{Cluster, Storage};
use crate::tls::Site;

/// Rows of a region that are written in one transaction.
const ROWS: usize = 64;
/// Clients that write at a time; one alone waits for its answers.
const CLIENTS: usize = 4;
/// What is asked for.
const RATE: f64 = 50e6;

/// Cuts the key space of the writer into regions of [`ROWS`] rows.
fn split(store: &Store, regions: usize) {
    let known = store.regions();
    let first = known.find(b"").map(|region| known.context(region));
    let cuts = (1..regions).map(|n| EncodedKey::encode(&writer::key(n * ROWS)).into_bytes());
    assert_eq!(store.split(first.as_ref(), cuts).unwrap().len(), regions);
}

fn start(regions: usize, site: Option<&Site>) -> (Cluster, Storage) {
    // Resolved timestamps as often as TiKV sends them.
    let as_tikv = |config: &mut PlaygroundConfig| {
        config.resolved_ts_interval = Duration::from_secs(1);
    };
    let cluster = match site {
        Some(site) => site.start_with(as_tikv),
        None => Cluster::start_with(as_tikv),
    };
    split(cluster.playground.store(), regions);
    with_task_at(cluster)
}

fn tell(name: &str, daemon: &Daemon, more: &str) {
    let (now, peak) = (daemon.memory("VmRSS:"), daemon.peak());
    println!(
        "bench {name} {more} rss-mib {} peak-mib {}",
        now >> 20,
        peak >> 20
    );
}

#[test]
#[ignore = "a measurement: make bench"]
fn bench_load_of_small_rows_over_10000_regions() {
    load("sidecar-load", 800, None);
}

#[test]
#[ignore = "a measurement: make bench"]
fn bench_load_of_large_rows_over_10000_regions() {
    load("sidecar-load", 4000, None);
}

#[test]
#[ignore = "a measurement: make bench"]
fn bench_load_of_large_rows_over_10000_regions_by_tls() {
    let site = Site::new(&Authority::new().unwrap());
    load("sidecar-load-tls", 4000, Some(&site));
}

/// Rows with values of this length, at [`RATE`] if the machine can.
fn load(name: &str, len: usize, site: Option<&Site>) {
    const REGIONS: usize = 10_000;
    let (cluster, _archive) = start(REGIONS, site);
    let daemon = Daemon::start(&cluster, 512 * MIB);
    let writer = Writer::of(&cluster);
    daemon.wait_checkpoint(&cluster, writer.put(0..ROWS, len));
    let (cpu, began) = (daemon.cpu(), Instant::now());
    let turns = AtomicUsize::new(0);
    let one_client = || {
        let writer = Writer::of(&cluster);
        while began.elapsed() < Duration::from_secs(30) {
            let n = turns.fetch_add(1, Ordering::Relaxed);
            let due = (n * ROWS * len) as f64 / RATE;
            let early = due - began.elapsed().as_secs_f64();
            std::thread::sleep(Duration::from_secs_f64(early.max(0.0)));
            // Far apart, so that every flush has slices of very many regions.
            let region = n * 7919 % REGIONS;
            writer.put(region * ROWS..(region + 1) * ROWS, len);
        }
    };
    std::thread::scope(|scope| (0..CLIENTS).for_each(|_| drop(scope.spawn(one_client))));
    let written = (turns.load(Ordering::Relaxed) * ROWS * len) as f64;
    let rate = written / began.elapsed().as_secs_f64() / 1e6;
    daemon.wait_checkpoint(&cluster, cluster.playground.timestamp().unwrap());
    let cpu = (daemon.cpu() - cpu).as_secs_f64() / (written / 1e9);
    let more = format!("regions {REGIONS} value-bytes {len} mb-s {rate:.1} cpu-s-per-gb {cpu:.2}");
    tell(name, &daemon, &more);
    daemon.stop();
}

#[test]
#[ignore = "a measurement: make bench"]
fn bench_rest_with_100000_regions() {
    const REGIONS: usize = 100_000;
    let (cluster, _archive) = start(REGIONS, None);
    let daemon = Daemon::start(&cluster, 512 * MIB);
    let began = Instant::now();
    daemon.wait_checkpoint(&cluster, cluster.playground.timestamp().unwrap());
    let ready = began.elapsed().as_secs_f64();
    let (cpu, began) = (daemon.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let share = (daemon.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let more = format!(
        "regions {REGIONS} cpu-percent {:.1} ready-s {ready:.1}",
        share * 100.0
    );
    tell("sidecar-rest", &daemon, &more);
    daemon.stop();
}
