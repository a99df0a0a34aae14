//! What must not happen, and the code that says so.

use pitr_format::{Ts, checkpoint_ts, object_name};

use crate::archives::GoldenArchive;
use crate::command::tikv_pitr;
use crate::pauses::Keys;
use crate::system::{Client, Cluster, Sidecar, Storage};

#[test]
fn a_second_task_and_another_clusters_archive_are_refused() {
    let (one, other, archive) = (Cluster::start(), Cluster::start(), Storage::new());
    one.log_start(&archive.url()).json();
    one.log_start(&Storage::new().url())
        .fails_with(11, &["is already registered", "PITR1301"]);
    other
        .log_start(&archive.url())
        .fails_with(11, &["belongs to cluster", "nothing was written"]);
    one.run(&["log", "stop", "--task-name", "u"])
        .fails_with(10, &["\"u\""]);
}

#[test]
fn no_log_is_started_while_an_import_or_a_restore_has_registered_itself() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let keys = Keys::of(&cluster);
    let import = "/tidb/brie/import/restore/br-1";
    keys.put(import.to_owned(), Vec::new());
    cluster
        .log_start(&archive.url())
        .fails_with(11, &["PITR1308", import, "would not be in the log"]);
    assert!(keys.list("/tidb/br-stream/info").is_empty());
    keys.delete(import);
    cluster.log_start(&archive.url()).json();
}

#[test]
fn a_restore_into_the_source_is_refused() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&source);
    let client = Client::of(&source);
    source.wait_checkpoint(client.now());
    sidecar.stop();
    source
        .run(&["restore", "point", "-s", &archive.url()])
        .fails_with(11, &["the cluster that the archive was taken from"]);
}

#[test]
fn a_target_whose_clock_is_behind_the_restored_time_is_refused() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let target = Cluster::start();
    let ahead = Ts::compose(Client::of(&target).now().physical_ms() + 3_600_000, 0);
    archive.write(
        &object_name::checkpoint_path(1),
        &checkpoint_ts::encode(ahead),
    );
    target
        .run(&["restore", "point", "-s", &archive.url()])
        .fails_with(11, &["clock is behind", "nothing was written"]);
}

#[test]
fn a_damaged_slice_stops_the_restore_before_it_writes() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let object = archive.objects(".log").remove(0);
    let mut bytes = std::fs::read(archive.file(&object)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    archive.write(&object, &bytes);
    let target = Cluster::start();
    target
        .run(&["restore", "point", "-s", &archive.url()])
        .fails_with(20, &[&object, "nothing was written"]);
    let client = Client::of(&target);
    assert_eq!(target.scan_digest(client.now()).1, 0);
}

#[test]
fn a_sidecar_does_not_write_into_another_clusters_archive() {
    let (one, other, archive) = (Cluster::start(), Cluster::start(), Storage::new());
    one.log_start(&archive.url()).json();
    let elsewhere = Storage::new();
    other.log_start(&elsewhere.url()).json();
    // As if the wrong storage had been mounted there.
    std::fs::copy(
        archive.dir().join(object_name::BACKUP_META),
        elsewhere.dir().join(object_name::BACKUP_META),
    )
    .unwrap();
    let (code, said) = Sidecar::start(&other).wait();
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("belongs to cluster"), "{said}");
}

#[test]
fn a_storage_without_permission_ends_with_12() {
    // Not even root may make directories there.
    let cluster = Cluster::start();
    cluster
        .log_start("local:///sys/tikv-pitr")
        .fails_with(12, &["/sys/tikv-pitr"]);
}

#[test]
fn a_stopped_task_leaves_pd_clean_and_its_archive_can_be_continued() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&cluster);
    let client = Client::of(&cluster);
    cluster.wait_checkpoint(client.now());
    assert_eq!(cluster.run(&["log", "stop", "--task-name", "t"]).code, 0);
    assert_eq!(cluster.log_status()["tasks"].as_array().unwrap().len(), 0);
    crate::system::wait_until("the task is unloaded", || {
        sidecar.page("/status.json").contains("\"tasks\":[]")
    });
    let metadata = tikv_pitr(&["log", "metadata", "-s", &archive.url(), "--json"]).json();
    let again = cluster.log_start(&archive.url()).json();
    assert_eq!(again["restarted"], true);
    assert_eq!(again["start"]["tso"], metadata["max"]["tso"]);
    cluster.wait_checkpoint(client.now());
    sidecar.stop();
}
