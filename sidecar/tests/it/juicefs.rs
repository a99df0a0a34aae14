//! JuiceFS, whose clients move GC past what holds it where PD has no GC states: what `log start` says
//! and what a sidecar refuses.

use std::time::{Duration, Instant};

use pitr_cluster::kv::KvClient;
use pitr_cluster::pd::PdClient;
use pitr_format::Ts;
use serde_json::Value;

use crate::system::{Client, Cluster, Sidecar, Storage, load};
use crate::troubles::run_gc;

const SETTING: &[u8] = b"jfs-1\xFDsetting";

fn put_volume(client: &Client) {
    client.put(SETTING, b"{\"Name\": \"jfs-1\"}");
    client.put(b"jfs-1\xFDA\0\0\0\0\0\0\0\x01I", b"attributes");
}

/// Keys that are no volume's.
fn others() -> Vec<(String, Option<Vec<u8>>)> {
    let mut writes = load(0);
    writes.retain(|(key, _)| key.starts_with("demo/"));
    writes
}

fn notes(started: &Value) -> Vec<&str> {
    let notes = started["notes"].as_array().unwrap().iter();
    notes.map(|note| note.as_str().unwrap()).collect()
}

/// PD's time less some.
fn ago(client: &Client, passed: Duration) -> Ts {
    let now = client.now().physical_ms();
    Ts::compose(now - passed.as_millis() as u64, 0)
}

#[test]
fn the_start_of_a_log_of_a_volume_names_the_setting_that_keeps_its_history() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    put_volume(&Client::of(&cluster));
    let started = cluster.log_start(&archive.url());
    let report = started.json();
    let found = notes(&report);
    let note = found
        .iter()
        .find(|note| note.contains("\"jfs-1\""))
        .unwrap();
    for part in [
        "`gc-interval` of every mount",
        "2 x",
        "24h",
        "gc-driver` on",
    ] {
        assert!(note.contains(part), "{part}: {note}");
    }
    let said = format!("note: {note}");
    assert!(started.stderr.contains(&said), "{}", started.stderr);
}

#[test]
fn a_volume_behind_many_other_keys_is_found_by_the_bound_of_a_region() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&cluster);
    client.write(&others());
    put_volume(&client);
    let store = cluster.playground.store();
    store.split_at_user_keys(&[&b"jfs-1\xFDA"[..]]).unwrap();
    let report = cluster.log_start(&archive.url()).json();
    let found = notes(&report);
    assert!(
        found.iter().any(|note| note.contains("gc-interval")),
        "{found:?}"
    );
}

#[test]
fn a_log_without_a_volume_in_its_ranges_is_started_without_the_note() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&cluster);
    put_volume(&client);
    client.write(&others());
    client.put(b"t\x80\0\0\0\0\0\0\x2D_r\xFD", b"a row of TiDB");
    let url = archive.url();
    let start = ["log", "start", "--task-name", "t", "-s", &url, "--json"];
    let ranges = ["--prefix", "demo/", "--prefix", "t"];
    let report = cluster.run(&[&start[..], &ranges].concat()).json();
    let found = notes(&report);
    // The one on keys that were there before.
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("base snapshot"));
}

#[test]
fn where_pd_has_gc_states_a_volume_needs_no_note() {
    let cluster = Cluster::start_with(|config| config.gc_states = true);
    put_volume(&Client::of(&cluster));
    let report = cluster.log_start(&Storage::new().url()).json();
    let found = notes(&report);
    assert!(
        !found.iter().any(|note| note.contains("JuiceFS")),
        "{found:?}"
    );
}

#[test]
fn a_task_that_flushes_too_rarely_for_a_volume_fails_until_gc_leaves_more() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&cluster);
    put_volume(&client);
    run_gc(&cluster, ago(&client, Duration::from_secs(1)));
    let unused = Instant::now();
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start_flushing_every(&cluster, "2s");
    sidecar.wait_status("PITR1316");
    let page = sidecar.page("/status.json");
    for part in [
        "`log-backup.max-flush-interval` is 2s",
        "of history",
        "jfs-1",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(page.contains("\"state\":\"failing\""), "{page}");
    assert!(sidecar.page("/healthz").starts_with("HTTP/1.1 503"));
    // GC rests, so that what it leaves grows, and the task is loaded by itself.
    sidecar.wait_status("\"state\":\"running\"");
    assert!(unused.elapsed() >= Duration::from_secs(4 * 2 - 1 - 1));
    cluster.wait_checkpoint(client.now());
    sidecar.stop();
}

#[test]
fn without_a_volume_rare_flushes_are_nobodys_trouble() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&cluster);
    client.write(&others());
    run_gc(&cluster, client.now());
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start_flushing_every(&cluster, "2s");
    cluster.wait_checkpoint(client.now());
    assert!(!sidecar.said().contains("PITR1316"));
    sidecar.stop();
}

#[test]
fn first_keys_are_few_and_wait_for_no_lock() {
    let cluster = Cluster::start();
    let client = Client::of(&cluster);
    client.write(&others());
    client.lock("demo/003");
    let now = client.now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let asked = Instant::now();
    let keys = runtime.block_on(async {
        let pd = PdClient::connect(&cluster.pds()).await.unwrap();
        let keys = KvClient::new(pd);
        keys.first_keys(&b"demo/"[..], &b"demo0"[..], now, 3).await
    });
    // The first one of all was deleted.
    assert_eq!(keys.unwrap(), ["demo/001", "demo/002", "demo/003"]);
    assert!(asked.elapsed() < Duration::from_secs(5));
}
