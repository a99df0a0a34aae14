//! Pauses that nobody asked for: what a failure paused is tried again as long as that can help, and
//! what lags too much holds GC no longer.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pitr_cluster::tasks::keys;
use pitr_format::Ts;
use pitr_proto::backup::StreamBackupError;
use pitr_proto::pdpb::pd_client::PdClient as PdStub;
use pitr_proto::pdpb::{RequestHeader, UpdateServiceGcSafePointRequest};
use prost::Message;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::pauses::Keys;
use crate::pd_servers::PdServers;
use crate::system::{Client, Cluster, Sidecar, Storage, wait_until};
use crate::troubles::run_gc;

/// When a failure that paused a task is tried again for the first time.
const FIRST_ATTEMPT: Duration = Duration::from_secs(60);

/// The value of a pause key as TiKV writes it when its storage fails.
fn pause_of_tikv() -> Vec<u8> {
    let error = StreamBackupError {
        error_code: "KV:LogBackup:Io".to_owned(),
        error_message: "[store = 1] failed to put object".to_owned(),
        store_id: 1,
        ..StreamBackupError::default()
    };
    let value = serde_json::json!({
        "severity": "ERROR",
        "operation_hostname": "tikv-0",
        "operation_pid": 7,
        "operation_time": "2026-11-22T01:10:30.123+08:00",
        "payload_type": "application/x-protobuf;messagetype=brpb.StreamBackupError",
        "payload": STANDARD.encode(error.encode_to_vec()),
    });
    value.to_string().into_bytes()
}

fn task(cluster: &Cluster, name: &str) -> Value {
    let status = cluster.log_status();
    let tasks = status["tasks"].as_array().unwrap();
    let task = tasks.iter().find(|task| task["name"] == name);
    task.unwrap().clone()
}

fn checkpoint(cluster: &Cluster, name: &str) -> Ts {
    Ts::new(task(cluster, name)["checkpoint"].as_u64().unwrap())
}

#[test]
fn a_failure_that_may_have_passed_is_tried_again_but_neither_without_history_nor_against_a_person()
{
    let cluster = Cluster::start();
    let archives = [Storage::new(), Storage::new(), Storage::new()];
    for (name, archive) in ["passed", "gone", "wanted"].into_iter().zip(&archives) {
        let (url, prefix) = (archive.url(), format!("{name}/"));
        let start = ["log", "start", "--task-name", name, "-s", &url, "--json"];
        cluster
            .run(&[&start[..], &["--prefix", &prefix]].concat())
            .json();
    }
    let (keys, client) = (Keys::of(&cluster), Client::of(&cluster));
    let sidecar = Sidecar::start(&cluster);
    let covers = |name: &str, ts: Ts| {
        wait_until(name, || checkpoint(&cluster, name) >= ts);
    };
    covers("gone", client.now());
    keys.put(keys::pause("gone"), pause_of_tikv());
    cluster
        .run(&["log", "pause", "--task-name", "wanted", "--json"])
        .json();
    wait_until("the task without history is unloaded", || {
        task(&cluster, "gone")["stores"][0]["state"] == "paused"
    });
    // GC passes it, and not the one that still runs.
    let passed = client.now();
    covers("passed", passed);
    run_gc(&cluster, passed);
    keys.put(keys::pause("passed"), pause_of_tikv());
    let paused = checkpoint(&cluster, "gone");
    assert!(paused < passed);

    client.write(&[("passed/key".to_owned(), Some(b"v".to_vec()))]);
    let written = client.now();
    std::thread::sleep(FIRST_ATTEMPT - Duration::from_secs(5));
    assert!(
        keys.get(&keys::pause("passed")).is_some(),
        "it is too early"
    );
    wait_until("the pause is ended", || {
        keys.get(&keys::pause("passed")).is_none()
    });
    covers("passed", written);
    // Theirs began earlier: both were due before.
    for (name, status, severity) in [("gone", "ERROR", "ERROR"), ("wanted", "PAUSE", "MANUAL")] {
        let task = task(&cluster, name);
        assert_eq!(task["status"], status, "{task}");
        assert_eq!(task["extra_pause_information"]["severity"], severity);
    }
    assert_eq!(checkpoint(&cluster, "gone"), paused);
    sidecar.stop();
}

/// What the coordinator holds of GC, as PD lists it.
fn held(pd: &PdServers) -> Option<u64> {
    let page = pd.page("/pd/api/v1/gc/safepoint");
    let services = page["service_gc_safe_points"].as_array()?;
    let ours = |service: &&Value| service["service_id"] == "log-backup-coordinator";
    services.iter().find(ours)?["safe_point"].as_u64()
}

/// As if the coordinator's safepoint had expired.
fn expire(cluster: &Cluster) {
    let request = UpdateServiceGcSafePointRequest {
        header: Some(RequestHeader {
            cluster_id: cluster.playground.cluster_id(),
            ..RequestHeader::default()
        }),
        service_id: "log-backup-coordinator".into(),
        ttl: 0,
        safe_point: 0,
    };
    Runtime::new().unwrap().block_on(async {
        let mut stub = PdStub::connect(cluster.pds().remove(0)).await.unwrap();
        stub.update_service_gc_safe_point(request).await.unwrap();
    });
}

fn leads(sidecar: &Sidecar) -> bool {
    let page = sidecar.page("/status.json");
    let page: Option<Value> = page
        .split("\r\n\r\n")
        .nth(1)
        .and_then(|body| serde_json::from_str(body).ok());
    page.is_some_and(|page| page["coordinator"]["tasks"]["t"].is_object())
}

#[test]
fn a_task_that_lags_too_much_is_paused_and_holds_gc_no_longer_until_it_is_resumed() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    let (cluster, archive) = (Cluster::at(pd.urls()), Storage::new());
    let client = Client::of(&cluster);
    client.write(&[("key".to_owned(), Some(b"v".to_vec()))]);
    let url = archive.url();
    let start = ["log", "start", "--task-name", "t", "-s", &url, "--json"];
    let started = cluster.run(&[&start[..], &["--start-ts", "-40s"]].concat());
    let start = started.json()["start"]["tso"].as_u64().unwrap();
    // The storage is away.
    let aside = archive.dir().with_extension("aside");
    std::fs::rename(archive.dir(), &aside).unwrap();
    std::fs::write(archive.dir(), "no directory").unwrap();
    let limit = "pause-lag-limit = \"1m\"";
    let sidecar = Sidecar::start_with(&cluster, limit);
    wait_until("GC is held for the task", || held(&pd) == Some(start - 1));
    let why = || task(&cluster, "t")["extra_pause_information"].clone();
    assert_eq!(why(), Value::Null, "it is not over the limit yet");
    wait_until("the task is paused", || why() != Value::Null);
    assert_eq!(task(&cluster, "t")["status"], "ERROR");
    let reason = why();
    assert_eq!(reason["severity"], "ERROR", "{reason}");
    let message = reason["message"].to_string();
    assert!(message.contains("lags by 6"), "{message}");
    let text = cluster.run(&["log", "status"]).stdout;
    assert!(text.contains("the limit is reached"), "{text}");
    // What is set already stays until it expires; nobody sets it again.
    assert_eq!(held(&pd), Some(start - 1));
    sidecar.stop();
    expire(&cluster);
    let sidecar = Sidecar::start_with(&cluster, limit);
    wait_until("there is a coordinator again", || leads(&sidecar));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(held(&pd), None);

    std::fs::remove_file(archive.dir()).unwrap();
    std::fs::rename(&aside, archive.dir()).unwrap();
    let resumed = client.now();
    // It lags by more than the limit still, and may catch up.
    cluster
        .run(&["log", "resume", "--task-name", "t", "--json"])
        .json();
    wait_until("the lag is gone", || checkpoint(&cluster, "t") >= resumed);
    assert_eq!(task(&cluster, "t")["status"], "NORMAL");
    assert_eq!(why(), Value::Null);
    wait_until("GC is held at the checkpoint", || {
        held(&pd).is_some_and(|held| held >= resumed.get() - 1)
    });
    sidecar.stop();
}
