//! From a store to an archive and back into another store.

use std::time::Duration;

use crate::archives::GoldenArchive;
use crate::command::tikv_pitr;
use crate::system::{Client, Cluster, Sidecar, Storage, load};

#[test]
fn what_was_visible_at_a_ts_is_visible_again_in_another_cluster() {
    let (source, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&source);
    let started = source.log_start(&archive.url()).json();
    assert_eq!(started["ranges_were_empty"], true);
    let sidecar = Sidecar::start(&source);
    client.write(&load(1));
    client.write(&load(2));
    let t = client.now();
    client.write(&load(3));
    source.wait_checkpoint(client.now());
    sidecar.wait_status("\"state\":\"running\"");
    let metrics = sidecar.page("/metrics");
    assert!(
        metrics.contains("tikv_log_backup_store_checkpoint_ts{task=\"t\"}"),
        "{metrics}"
    );
    let before = source.scan_digest(t);
    sidecar.stop();
    drop(client);

    let target = Cluster::start();
    let at = t.to_string();
    let restored = target
        .run(&[
            "restore",
            "point",
            "-s",
            &archive.url(),
            "--restored-ts",
            &at,
            "--json",
        ])
        .json();
    assert_eq!(restored["verified"], true, "{restored}");
    let store = target.playground.store();
    assert_eq!(store.import_mode_switches(), 2, "on before, off after");
    assert_eq!(restored["scan_digest"], before.0);
    assert_eq!(target.scan_digest(t), before);
    let verified = tikv_pitr(&["verify", "data", "-s", &archive.url(), "--json"]).json();
    assert_eq!(
        verified["unreferenced"].as_array().unwrap().len(),
        0,
        "{verified}"
    );
}

#[test]
fn a_sidecar_that_was_killed_goes_on_where_it_was() {
    let (source, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&source);
    source.log_start(&archive.url()).json();
    for round in 0..3 {
        let sidecar = Sidecar::start(&source);
        client.write(&load(round));
        std::thread::sleep(Duration::from_millis(700 * round as u64));
        client.write(&load(round + 10));
        sidecar.signal("-KILL");
        sidecar.wait();
    }
    let sidecar = Sidecar::start(&source);
    source.wait_checkpoint(client.now());
    sidecar.stop();

    let target = Cluster::start();
    let restored = target
        .run(&["restore", "point", "-s", &archive.url(), "--json"])
        .json();
    let latest = restored["restored"]["tso"].as_u64().unwrap().into();
    assert_eq!(source.scan_digest(latest), target.scan_digest(latest));
    assert_eq!(restored["verified"], true, "{restored}");
}

#[test]
fn the_last_flush_at_sigterm_publishes_what_was_read() {
    let (source, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&source);
    source.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&source);
    client.write(&load(1));
    source.wait_checkpoint(client.now());
    let before = source.log_status()["tasks"][0]["checkpoint"]
        .as_u64()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    sidecar.stop();
    let after = source.log_status()["tasks"][0]["checkpoint"]
        .as_u64()
        .unwrap();
    assert!(after >= before);
    let restart = Sidecar::start(&source);
    source.wait_checkpoint(client.now());
    restart.stop();
}

#[test]
fn an_archive_that_a_real_tikv_wrote_is_restored_to_its_scan() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let target = Cluster::start();
    let restored = target
        .run(&["restore", "point", "-s", &archive.url(), "--json"])
        .json();
    let (digest, keys) = archive.scan_digest("scan-end.tsv.gz");
    assert_eq!(restored["keys"], keys, "{restored}");
    assert_eq!(restored["scan_digest"], digest);
    let in_ = restored["records_read"].as_u64().unwrap();
    let left_out =
        restored["filtered"]["total"].as_u64().unwrap() + restored["duplicates"].as_u64().unwrap();
    assert_eq!(restored["records_written"], in_ - left_out);
    target
        .run(&["restore", "point", "-s", &archive.url()])
        .fails_with(11, &["not empty", "nothing was written"]);
}

#[test]
fn a_target_whose_former_life_hides_what_was_restored_is_not_called_verified() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let target = Cluster::start();
    // Nothing is visible, yet the delete is newer than everything in the archive.
    let key = "upd/001".to_owned();
    Client::of(&target).write(&[(key.clone(), Some(b"old".to_vec())), (key, None)]);
    target
        .run(&["restore", "point", "-s", &archive.url()])
        .fails_with(20, &["held newer records", "do not use the target"]);
}
