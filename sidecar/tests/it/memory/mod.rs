//! How much memory the real process takes: its peak, as the system counts it, stays within the
//! budget and 64 MiB, whatever the store and the storage do.
//!
//! `PITR_MEMORY=full` runs the sizes that are promised (60 s without storage, 1 GiB in one
//! transaction, 20 times the budget in a scan); without it the same tests are smaller.

mod costs;
mod daemon;
mod stall;
mod writer;

use std::time::{Duration, Instant};

use pitr_format::{EncodedKey, Ts};

use crate::system::{Cluster, Storage};
use daemon::Daemon;
use writer::Writer;

/// What the process may take besides its budget.
const SLACK: u64 = 64 << 20;
const MIB: usize = 1 << 20;

fn full() -> bool {
    std::env::var_os("PITR_MEMORY").is_some_and(|size| size == "full")
}

/// A cluster with a task, and no sidecar yet.
fn with_task() -> (Cluster, Storage) {
    with_task_at(Cluster::start())
}

fn with_task_at(cluster: Cluster) -> (Cluster, Storage) {
    let archive = Storage::new();
    cluster.log_start(&archive.url()).json();
    (cluster, archive)
}

/// Tells the figures, and fails above the bound.
#[track_caller]
fn within_the_budget(name: &str, daemon: &Daemon, budget: usize) {
    let peak = daemon.peak();
    let bound = budget as u64 + SLACK;
    println!(
        "{name}: peak {} MiB, budget {} MiB, bound {} MiB",
        peak >> 20,
        budget / MIB,
        bound >> 20
    );
    assert!(peak <= bound, "{name}: {}", daemon.status());
}

/// The archive restores into another store to what the source shows at `at`.
#[track_caller]
fn restores_equal(source: &Cluster, archive: &Storage, at: Ts) {
    let target = Cluster::start();
    let ts = at.to_string();
    let url = archive.url();
    let args = [
        "restore",
        "point",
        "-s",
        &url,
        "--restored-ts",
        &ts,
        "--json",
    ];
    let restored = target.run(&args).json();
    assert_eq!(restored["verified"], true, "{restored}");
    let (digest, keys) = source.scan_digest(at);
    assert_eq!(restored["scan_digest"], digest);
    assert!(keys > 0);
}

#[test]
fn uploads_that_stall_do_not_grow_the_process() {
    let stall = Duration::from_secs(if full() { 60 } else { 12 });
    let budget = 64 * MIB;
    let (cluster, archive) = with_task();
    let daemon = Daemon::stalling(&cluster, budget, stall);
    let writer = Writer::of(&cluster);
    let warm = writer.put(0..64, 16 << 10);
    daemon.wait_checkpoint(&cluster, warm);

    daemon.stall();
    let began = Instant::now();
    let (mut written, mut last, mut n) = (0, warm, 64);
    while began.elapsed() < stall {
        // 30 MB in each second.
        let due = began.elapsed().as_secs_f64() * 30e6;
        if written as f64 > due {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        last = writer.put(n..n + 64, 16 << 10);
        n += 64;
        written += MIB;
    }
    let rate = written as f64 / began.elapsed().as_secs_f64() / 1e6;
    println!("{written} bytes were written at {rate:.1} MB/s while the storage stood still");
    assert!(
        rate > 15.0,
        "the machine is too slow for this test: {rate} MB/s"
    );
    daemon.go_on();
    daemon.wait_checkpoint(&cluster, last);
    within_the_budget("stalled uploads", &daemon, budget);
    daemon.stop();
    restores_equal(&cluster, &archive, last);
}

#[test]
fn ten_thousand_regions_fit() {
    const REGIONS: usize = 10_000;
    let budget = 64 * MIB;
    let (cluster, _archive) = with_task();
    let store = cluster.playground.store();
    let regions = store.regions();
    let first = regions.find(b"").map(|region| regions.context(region));
    let cuts = (1..REGIONS).map(|n| EncodedKey::encode(&writer::key(n)).into_bytes());
    assert_eq!(store.split(first.as_ref(), cuts).unwrap().len(), REGIONS);
    let daemon = Daemon::start(&cluster, budget);
    let writer = Writer::of(&cluster);
    let mut last = Ts::ZERO;
    for _ in 0..if full() { 4 } else { 1 } {
        last = writer.put_scattered(0..REGIONS, 800);
        daemon.wait_checkpoint(&cluster, last);
    }
    within_the_budget("10,000 regions", &daemon, budget);
    assert!(!last.is_zero());
    daemon.stop();
}

#[test]
fn one_large_transaction_spills_instead_of_growing_the_process() {
    let bytes = if full() { 1024 * MIB } else { 192 * MIB };
    let budget = 64 * MIB;
    let (cluster, archive) = with_task();
    let daemon = Daemon::start(&cluster, budget);
    let writer = Writer::of(&cluster);
    let before = writer.put(0..10, 100);
    daemon.wait_checkpoint(&cluster, before);
    let committed = writer.one_transaction(bytes, 4 << 10);
    daemon.wait_checkpoint(&cluster, committed);
    within_the_budget("one large transaction", &daemon, budget);
    let status = daemon.status();
    println!("{status}");
    daemon.stop();
    restores_equal(&cluster, &archive, committed);
}

#[test]
fn an_initial_scan_of_many_times_the_budget_fits() {
    let budget = 32 * MIB;
    let times = if full() { 20 } else { 8 };
    let (cluster, archive) = with_task();
    let writer = Writer::of(&cluster);
    let mut last = Ts::ZERO;
    for part in 0..times * 32 {
        last = writer.put(part * 64..(part + 1) * 64, 16 << 10);
    }
    let daemon = Daemon::start(&cluster, budget);
    daemon.wait_checkpoint(&cluster, last);
    within_the_budget("initial scan", &daemon, budget);
    daemon.stop();
    restores_equal(&cluster, &archive, last);
}
