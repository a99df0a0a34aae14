//! Several stores and what can hold a checkpoint: locks of clients that died or hang, stores whose
//! sidecars are gone, keys that a change stream loses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::{assert_restores, split};

/// The task as the page of a sidecar has it.
fn page(sidecar: &Sidecar) -> Value {
    let answer = sidecar.page("/status.json");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    let page: Option<Value> = body.and_then(|body| serde_json::from_str(body).ok());
    page.map(|page| page["tasks"][0].clone())
        .unwrap_or_default()
}

#[test]
fn the_lock_of_a_dead_client_holds_the_checkpoint_no_longer_and_a_live_one_is_named() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    let sidecar = Sidecar::start(&cluster);
    client.write(&load(1));
    let dead = client.lock_for("dead", Duration::from_millis(500));
    client.write(&load(2));
    cluster.wait_checkpoint(client.now());
    let said = sidecar.said();
    assert!(
        said.contains("resolving locks that a client left behind")
            && said.contains(&dead.to_string()),
        "{said}"
    );

    let start_ts = client.lock("held");
    client.write(&load(3));
    let after = client.now();
    wait_until("the page names the lock", || {
        page(&sidecar)["held_by"]["lock"]["start_ts"] == json!(start_ts.get())
    });
    let held = page(&sidecar)["held_by"].clone();
    assert_eq!(held["lock"]["key"], "68656C64");
    assert_eq!(
        (&held["store_id"], held["region_id"].is_u64()),
        (&json!(1), true)
    );
    assert!(held["lock"]["age_seconds"].as_u64().unwrap() >= 4, "{held}");
    wait_until("log status names it too", || {
        let text = cluster.run(&["log", "status"]).stdout;
        text.contains("held by: store 1, region") && text.contains("68656C64")
    });
    let reached = cluster.log_status()["tasks"][0]["checkpoint"].clone();
    assert!(
        reached.as_u64().unwrap() < after.get(),
        "a live lock is left alone"
    );
    sidecar.stop();
}

#[test]
fn a_store_without_a_sidecar_is_tailed_by_another_one_until_its_own_is_back() {
    let cluster = Cluster::start_with(|config| config.stores = 3);
    let archive = Storage::new();
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    split(&cluster, &["demo/020", "demo/040"]);
    let stores: Vec<_> = cluster.playground.addresses();
    let (second, third) = (&stores[1], &stores[2]);
    let regions = client.regions();
    assert!(regions.len() >= 3);
    cluster
        .playground
        .transfer_leader(regions[0], second.id)
        .unwrap();
    cluster
        .playground
        .transfer_leader(regions[1], third.id)
        .unwrap();
    let sidecar = Sidecar::start(&cluster);
    client.write(&load(1));
    wait_until("all three stores are tailed from the first", || {
        let followed = page(&sidecar)["tracking"]["stores"].clone();
        followed == json!([1, second.id, third.id])
    });
    client.write(&load(2));
    cluster.wait_checkpoint(client.now());
    let metrics = sidecar.page("/metrics");
    let gone = format!(
        "tikv_pitr_store_state{{state=\"no_sidecar\",store=\"{}\",task=\"t\"}} 1",
        second.id
    );
    assert!(metrics.contains(&gone), "{metrics}");

    let other = Sidecar::start_at(&cluster, second.store);
    wait_until("the second store is given back", || {
        page(&sidecar)["tracking"]["stores"] == json!([1, third.id])
    });
    other.stop();
    wait_until("and adopted again", || {
        page(&sidecar)["tracking"]["stores"] == json!([1, second.id, third.id])
    });
    client.write(&load(3));
    cluster.wait_checkpoint(client.now());
    sidecar.stop();
    assert_restores(&cluster, &archive, &Cluster::start());
}

/// Tells a thread that it is over.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn leaders_that_move_twice_a_second_do_not_stop_the_checkpoint() {
    let cluster = Cluster::start_with(|config| config.stores = 3);
    let archive = Storage::new();
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    split(&cluster, &["demo/020", "demo/040"]);
    let regions = client.regions();
    let stores: Vec<u64> = cluster
        .playground
        .addresses()
        .iter()
        .map(|store| store.id)
        .collect();
    for (region, store) in regions.iter().zip(&stores[1..]) {
        cluster.playground.transfer_leader(*region, *store).unwrap();
    }
    let sidecar = Sidecar::start(&cluster);
    wait_until("all three stores are tailed from the first", || {
        page(&sidecar)["tracking"]["stores"] == json!(stores)
    });
    let over = AtomicBool::new(false);
    let began = client.now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (region, store) = (
                    regions[turn % regions.len()],
                    stores[turn / 2 % stores.len()],
                );
                // It may be there already.
                let _ = cluster.playground.transfer_leader(region, store);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        // Also when this panics.
        let _over = Over(&over);
        for round in 1..8 {
            client.write(&load(round));
            std::thread::sleep(Duration::from_secs(1));
        }
        cluster.wait_checkpoint(began);
    });
    let (now, since) = (client.now(), Instant::now());
    cluster.wait_checkpoint(now);
    // A flush interval, and what a change of leaders may cost.
    assert!(
        since.elapsed() < Duration::from_secs(11),
        "{:?}",
        since.elapsed()
    );
    sidecar.stop();
    assert_restores(&cluster, &archive, &Cluster::start());
}

/// Answers every request with a page, for as long as the process lives.
pub fn always_answering(page: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{page}");
        }
    });
    address
}

#[test]
fn a_store_whose_tikv_backs_up_by_itself_is_not_tailed() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let tikv = always_answering(r#"{"log-backup":{"enable":true}}"#);
    let sidecar = Sidecar::start_with(&cluster, &format!("store-status-addr = \"{tikv}\""));
    wait_until("the task fails", || page(&sidecar)["state"] == "failing");
    let reason = page(&sidecar)["reason"].to_string();
    assert!(reason.contains("log-backup.enable"), "{reason}");
    assert!(page(&sidecar)["tracking"].is_null());
    sidecar.stop();
}

#[test]
fn keys_that_a_change_stream_loses_are_refused_or_told() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&cluster);
    client.write(&[("raft".to_owned(), Some(b"v".to_vec()))]);
    let refused = cluster.log_start(&archive.url());
    assert_eq!(
        (refused.code, &refused.error()["code"]),
        (11, &json!("PITR1315"))
    );
    let place = refused.error()["place"].to_string();
    assert!(place.contains("[72, 73)"), "{place}");
    let url = archive.url();
    let start = ["log", "start", "--task-name", "t", "-s", &url, "--json"];
    cluster.run(&[&start[..], &["--allow-r"]].concat()).json();
    let status = cluster.log_status();
    assert_eq!(status["tasks"][0]["unproven_ranges"], json!(["[72, 73)"]));
    let text = cluster.run(&["log", "status"]).stdout;
    assert!(text.contains("not proven in [72, 73)"), "{text}");
    cluster
        .run(&["log", "stop", "--task-name", "t", "--json"])
        .json();

    let other = Storage::new();
    let url = other.url();
    let elsewhere = [
        "log",
        "start",
        "--task-name",
        "t",
        "-s",
        &url,
        "--prefix",
        "demo/",
        "--json",
    ];
    cluster.run(&elsewhere).json();
    assert_eq!(
        cluster.log_status()["tasks"][0]["unproven_ranges"],
        json!([])
    );
}
