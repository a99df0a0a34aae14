//! Pausing and resuming a task, by our verbs and by others' keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::tasks::keys;
use pitr_proto::backup::StreamBackupTaskInfo;
use prost::Message;
use tokio::runtime::Runtime;

use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::{assert_restores, run_gc};

/// PD's etcd of a cluster.
pub struct Keys {
    runtime: Runtime,
    etcd: Arc<EtcdClient>,
}

impl Keys {
    pub fn of(cluster: &Cluster) -> Self {
        let runtime = Runtime::new().unwrap();
        let etcd = runtime
            .block_on(async { EtcdClient::new(&cluster.pds()) })
            .unwrap();
        Keys { runtime, etcd }
    }

    pub fn put(&self, key: String, value: Vec<u8>) {
        self.runtime.block_on(self.etcd.put(key, value)).unwrap();
    }

    pub fn delete(&self, key: &str) {
        assert!(
            self.runtime
                .block_on(self.etcd.delete(key.as_bytes()))
                .unwrap()
        );
    }

    /// Every key with a prefix.
    pub fn list(&self, prefix: &str) -> Vec<String> {
        let listed = self.etcd.get_prefix(prefix.as_bytes());
        let (kvs, _) = self.runtime.block_on(listed).unwrap();
        let name = |kv: pitr_proto::mvccpb::KeyValue| String::from_utf8(kv.key.to_vec()).unwrap();
        kvs.into_iter().map(name).collect()
    }

    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let found = self
            .runtime
            .block_on(self.etcd.get(key.as_bytes()))
            .unwrap();
        found.map(|kv| kv.value.to_vec())
    }
}

fn pause(cluster: &Cluster) -> crate::command::Ran {
    cluster.run(&[
        "log",
        "pause",
        "--task-name",
        "t",
        "--message",
        "disk swap",
        "--json",
    ])
}

fn resume(cluster: &Cluster) -> crate::command::Ran {
    cluster.run(&["log", "resume", "--task-name", "t", "--json"])
}

#[test]
fn nothing_is_lost_when_a_task_is_paused_and_resumed_under_load() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    let sidecar = Sidecar::start(&source);
    client.write(&load(0));
    source.wait_checkpoint(client.now());
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let writer = Client::of(&source);
            let mut round = 1;
            while !done.load(Ordering::Relaxed) {
                writer.write(&load(round));
                round += 1;
            }
        });
        for _ in 0..2 {
            let paused = pause(&source).json();
            assert_eq!(paused["pause"]["message"], "disk swap");
            assert_eq!(paused["gc_held_seconds"], 86_400);
            sidecar.wait_status("\"state\":\"paused\"");
            let status = &source.log_status()["tasks"][0];
            assert_eq!(status["status"], "PAUSE");
            assert_eq!(status["extra_pause_information"]["severity"], "MANUAL");
            // What is written now is read after the pause only.
            std::thread::sleep(std::time::Duration::from_millis(500));
            let resumed = resume(&source).json();
            assert_eq!(resumed["pause"], paused["pause"]);
            sidecar.wait_status("\"state\":\"running\"");
        }
        done.store(true, Ordering::Relaxed);
    });
    source.wait_checkpoint(client.now());
    sidecar.stop();
    assert_restores(&source, &archive, &Cluster::start());
}

#[test]
fn what_cannot_be_paused_or_resumed_is_told_with_its_own_code() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    assert_eq!(pause(&cluster).error()["code"], "PITR1302");
    assert_eq!(resume(&cluster).error()["code"], "PITR1302");
    cluster.log_start(&archive.url()).json();
    let not_paused = resume(&cluster);
    not_paused.fails_with(11, &["not paused"]);
    assert_eq!(not_paused.error()["code"], "PITR1307");
    pause(&cluster).json();
    let again = pause(&cluster);
    assert_eq!(
        (again.code, &again.error()["code"]),
        (11, &"PITR1306".into())
    );
    assert!(again.error()["place"].to_string().contains("disk swap"));
    cluster
        .run(&["log", "pause", "--task-name", "a/b"])
        .fails_with(2, &["PITR1303"]);
    resume(&cluster).json();
}

#[test]
fn a_pause_key_that_cannot_be_read_pauses_is_shown_and_can_be_ended() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let keys = Keys::of(&cluster);
    let sidecar = Sidecar::start(&cluster);
    let client = Client::of(&cluster);
    cluster.wait_checkpoint(client.now());
    for value in [&b"{\"severity\":"[..], b"\xFF\xFE", b"", b"[1,2]"] {
        keys.put(keys::pause("t"), value.to_vec());
        sidecar.wait_status("\"state\":\"paused\"");
        let status = &cluster.log_status()["tasks"][0];
        assert_eq!(status["status"], "PAUSE", "{status}");
        assert_eq!(pause(&cluster).code, 11);
        resume(&cluster).json();
        assert_eq!(keys.get(&keys::pause("t")), None);
        sidecar.wait_status("\"state\":\"running\"");
    }
    cluster.wait_checkpoint(client.now());
    sidecar.stop();
}

#[test]
fn a_task_whose_history_went_while_it_was_paused_is_not_resumed() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    pause(&cluster).json();
    client.write(&load(1));
    run_gc(&cluster, client.now());
    let refused = resume(&cluster);
    assert_eq!(
        (refused.code, &refused.error()["code"]),
        (22, &"PITR1310".into())
    );
    assert!(
        Keys::of(&cluster).get(&keys::pause("t")).is_some(),
        "it stays paused"
    );
}

#[test]
fn a_sidecar_that_starts_beside_a_paused_task_waits_and_one_that_was_killed_goes_on() {
    let (source, archive) = (Cluster::start(), Storage::new());
    source.log_start(&archive.url()).json();
    let client = Client::of(&source);
    let sidecar = Sidecar::start(&source);
    client.write(&load(1));
    source.wait_checkpoint(client.now());
    pause(&source).json();
    sidecar.signal("-KILL");
    sidecar.wait();
    client.write(&load(2));
    let sidecar = Sidecar::start(&source);
    sidecar.wait_status("\"state\":\"paused\"");
    assert!(
        sidecar.page("/healthz").starts_with("HTTP/1.1 200"),
        "a pause is wanted"
    );
    resume(&source).json();
    source.wait_checkpoint(client.now());
    sidecar.stop();
    assert_restores(&source, &archive, &Cluster::start());
}

#[test]
fn two_tasks_and_damaged_ones_are_listed_each_by_itself() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let list = || cluster.run(&["log", "list", "--json"]).json();
    assert_eq!(list()["tasks"].as_array().unwrap().len(), 0);
    cluster.log_start(&archive.url()).json();
    let keys = Keys::of(&cluster);
    // As another tool may register one; ours allows one at a time.
    let other = StreamBackupTaskInfo {
        name: "u".to_owned(),
        start_ts: 7,
        ..StreamBackupTaskInfo::default()
    };
    keys.put(keys::info("u"), other.encode_to_vec());
    keys.put(keys::info("x"), vec![0xFF; 9]);
    let listed = list();
    let names: Vec<_> = listed["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(names, ["t", "u"]);
    assert_eq!(listed["tasks"][1]["storage"], "none");
    pause(&cluster).json();
    wait_until("only one is paused", || {
        list()["tasks"][0]["status"] == "PAUSE"
    });
    assert_eq!(list()["tasks"][1]["status"], "NORMAL");
    keys.put(keys::storage_checkpoint("u", 1), b"short".to_vec());
    let damaged = cluster.run(&["log", "list", "--json"]);
    assert_eq!(
        (damaged.code, &damaged.error()["code"]),
        (20, &"PITR1304".into())
    );
}
