//! GC: who holds it, and the coordinator that moves it where nobody else does.

use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::pd::PdError;
use pitr_format::Ts;
use pitr_playground::PlaygroundConfig;
use pitr_proto::kvrpcpb::ScanLockRequest;

use crate::pauses::Keys;
use crate::pd_servers::PdServers;
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::assert_restores;

const MINUTE: u64 = 60_000;
const HOUR: Duration = Duration::from_secs(3600);
const DRIVER: &str = "[gc-driver]\nenable = true\nlife-time = \"10m\"\nrun-interval = \"1s\"\n";

fn minutes_before(now: Ts, minutes: u64) -> Ts {
    Ts::compose(now.physical_ms() - minutes * MINUTE, 0)
}

fn safe_point(client: &Client) -> Ts {
    client.ask(|pd| async move { pd.gc_safe_point().await.unwrap() })
}

/// Keys whose transactions began at or before a ts and are not over.
fn locked(client: &Client, max: Ts) -> Vec<Bytes> {
    let request = ScanLockRequest {
        max_version: max.get(),
        limit: 10,
        ..ScanLockRequest::default()
    };
    let locks = client.scan_locks(request);
    locks.into_iter().map(|lock| lock.key).collect()
}

/// A round of GC stops at what anybody holds, rolls back what is locked below its end, and never
/// gets nearer to now than the life time.
fn drives(pd: impl FnOnce(&mut PlaygroundConfig)) {
    let cluster = Cluster::start_with(pd);
    let client = Client::of(&cluster);
    let began = client.now();
    let held = minutes_before(began, 30);
    let asked = client.ask(|pd| async move { pd.hold_gc("somebody", HOUR, held).await });
    assert!(asked.unwrap() <= held);
    // Both live for an hour by their own time; GC does not wait for the older one.
    client.lock_at("older", minutes_before(began, 40), 2 * HOUR);
    client.lock_at("between", minutes_before(began, 20), 2 * HOUR);
    let sidecar = Sidecar::start_with(&cluster, DRIVER);
    wait_until("GC stops where it is held", || safe_point(&client) == held);
    assert_eq!(locked(&client, began), [Bytes::from_static(b"between")]);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(safe_point(&client), held);

    client.ask(|pd| async move { pd.release_gc("somebody").await.unwrap() });
    wait_until("GC goes on", || {
        safe_point(&client) > minutes_before(began, 11)
    });
    assert!(safe_point(&client) <= minutes_before(client.now(), 10));
    assert!(locked(&client, began).is_empty());

    // A TiDB that comes drives GC itself.
    let keys = Keys::of(&cluster);
    keys.put(
        "/topology/tidb/10.0.0.1:4000/info".to_owned(),
        b"{}".to_vec(),
    );
    sidecar.wait_status("a TiDB server is registered (/topology/tidb/10.0.0.1:4000/info)");
    let stands = safe_point(&client);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(safe_point(&client), stands);
    assert!(
        sidecar
            .page("/metrics")
            .contains("\ntikv_pitr_gc_driver_stuck 1\n")
    );
    sidecar.stop();
}

#[test]
fn a_driven_gc_stops_at_what_holds_it_and_rolls_back_older_locks() {
    drives(|_| {});
}

#[test]
fn gc_is_driven_at_a_pd_with_gc_states() {
    drives(|config| config.gc_states = true);
}

#[test]
fn where_pd_has_gc_states_nobody_moves_gc_past_a_checkpoint() {
    let cluster = Cluster::start_with(|config| config.gc_states = true);
    let archive = Storage::new();
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&cluster);
    let client = Client::of(&cluster);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    let now = client.now();
    let floor = client.ask(|pd| async move { pd.raise_txn_safe_point(now).await.unwrap() });
    let checkpoint = cluster.log_status()["tasks"][0]["checkpoint"].as_u64();
    assert!(floor.get() < checkpoint.unwrap(), "{floor} {checkpoint:?}");
    // A client that asks nobody is refused.
    let passed = client.ask(|pd| async move { pd.raise_gc_safe_point(now).await });
    assert!(
        matches!(passed, Err(PdError::Rejected { .. })),
        "{passed:?}"
    );
    // What is asked for too late is told with the value that holds.
    let late = client.ask(|pd| async move { pd.hold_gc("late", HOUR, Ts::new(1)).await });
    assert_eq!(late.unwrap(), floor);
    sidecar.stop();
}

#[test]
fn a_pd_that_is_upgraded_and_rolled_back_under_a_sidecar_holds_gc_all_the_time() {
    let (mut cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&cluster);
    for (round, has_gc_states) in [false, true, false].into_iter().enumerate() {
        if round > 0 {
            cluster = cluster.again_with(|config| config.gc_states = has_gc_states);
        }
        let client = Client::of(&cluster);
        client.write(&load(round));
        cluster.wait_checkpoint(client.now());
        // Whoever drives GC asks PD how far it may go: by the txn safe point, or by the smallest service
        // safepoint.
        let now = client.now();
        let floor = client.ask(|pd| async move { pd.raise_txn_safe_point(now).await.unwrap() });
        let checkpoint = cluster.log_status()["tasks"][0]["checkpoint"].as_u64();
        assert!(floor.get() < checkpoint.unwrap(), "{floor} {checkpoint:?}");
        let kind = client.ask(|pd| async move { pd.gc_state().await });
        assert_eq!(kind.unwrap().is_some(), has_gc_states);
    }
    let said = sidecar.page("/status.json");
    assert!(!said.contains("\"gap\":true"), "{said}");
    sidecar.stop();
    let (last, target) = (Client::of(&cluster).now(), Cluster::start());
    // A PD that starts again is ahead of the time by what it had reserved.
    wait_until("the target's clock is not behind", || {
        Client::of(&target).now() > last
    });
    assert_restores(&cluster, &archive, &target);
}

#[test]
fn gc_is_driven_at_a_real_pd() {
    if let Some(pd) = PdServers::start(1) {
        drives(|config| config.real_pd = pd.urls());
    }
}

#[test]
fn nobody_moves_gc_unless_asked_to() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&cluster);
    let client = Client::of(&cluster);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    assert_eq!(safe_point(&client), Ts::ZERO);
    assert!(!sidecar.page("/status.json").contains("\"gc\""));
    sidecar.stop();
}
