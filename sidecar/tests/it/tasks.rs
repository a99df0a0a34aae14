//! The life of tasks besides their pauses: several at a time, and one with an end.

use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::tasks::{Task, TaskError, TaskRegistry};
use pitr_format::Ts;
use pitr_proto::backup::StreamBackupTaskInfo;

use crate::command::tikv_pitr;
use crate::pd_servers::PdServers;
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};

fn start(cluster: &Cluster, name: &str, archive: &Storage, more: &[&str]) {
    let url = archive.url();
    let mut args = vec!["log", "start", "--task-name", name, "-s", &url, "--json"];
    args.extend(more);
    cluster.run(&args).json();
}

/// The state of a task on the only store, and its checkpoint.
fn stands(cluster: &Cluster, name: &str) -> (String, u64) {
    let status = cluster.log_status();
    let tasks = status["tasks"].as_array().unwrap();
    let task = tasks.iter().find(|task| task["name"] == name).unwrap();
    let state = task["stores"][0]["state"].as_str().unwrap().to_owned();
    (state, task["checkpoint"].as_u64().unwrap())
}

#[test]
fn two_tasks_with_keys_of_their_own_run_at_once_and_each_restores_its_part() {
    let cluster = Cluster::start();
    let (demo, round) = (Storage::new(), Storage::new());
    start(&cluster, "one", &demo, &["--prefix", "demo/"]);
    start(&cluster, "two", &round, &["--prefix", "round/"]);
    let sidecar = Sidecar::start(&cluster);
    let client = Client::of(&cluster);
    for round in 0..3 {
        client.write(&load(round));
    }
    let written = client.now();
    for name in ["one", "two"] {
        wait_until(name, || stands(&cluster, name).1 >= written.get());
    }
    // The end of one leaves the other alone.
    cluster
        .run(&["log", "stop", "--task-name", "one", "--json"])
        .json();
    client.write(&[("round/after".to_owned(), Some(b"r".to_vec()))]);
    let after = client.now();
    wait_until("the other goes on", || {
        stands(&cluster, "two").1 >= after.get()
    });
    for (archive, at, range) in [
        (&demo, written, "64656d6f2f:64656d6f30"),
        (&round, after, "726f756e642f:726f756e6430"),
    ] {
        let target = Cluster::start();
        let ts = at.to_string();
        let url = archive.url();
        let restore = ["restore", "point", "-s", &url, "--restored-ts", &ts];
        assert_eq!(
            target.run(&[&restore[..], &["--json"]].concat()).json()["verified"],
            true
        );
        let scan = ["verify", "scan", "--at", &ts, "--range", range, "--json"];
        let (source, part) = (cluster.run(&scan).json(), target.run(&scan).json());
        assert_eq!(source["digest"], part["digest"]);
        assert!(part["keys"].as_u64().unwrap() > 2, "{part}");
        // Nothing of the other task is in the archive.
        assert_eq!(target.scan_digest(at).1, part["keys"].as_u64().unwrap());
    }
    sidecar.stop();
}

#[test]
fn a_task_with_an_end_is_finished_there_and_its_archive_promises_no_more() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    let client = Client::of(&cluster);
    let end = Ts::compose(client.now().physical_ms() + 4000, 0);
    start(&cluster, "t", &archive, &["--end-ts", &end.to_string()]);
    let sidecar = Sidecar::start(&cluster);
    client.write(&load(1));
    wait_until("the task is finished", || {
        stands(&cluster, "t").0 == "finished"
    });
    assert_eq!(stands(&cluster, "t").1, end.get());
    assert!(client.now() > end);
    client.write(&load(2));
    let url = archive.url();
    let metadata = tikv_pitr(&["log", "metadata", "-s", &url, "--json"]).json();
    assert_eq!(metadata["max"]["tso"].as_u64(), Some(end.get()));
    let target = Cluster::start();
    target
        .run(&["restore", "point", "-s", &url, "--json"])
        .json();
    assert_eq!(cluster.scan_digest(end), target.scan_digest(end));
    sidecar.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_tasks_with_a_common_key_that_start_at_once_at_a_real_pd_one_is_refused() {
    let Some(pd) = tokio::task::block_in_place(|| PdServers::start(1)) else {
        return;
    };
    let registry = || TaskRegistry::new(EtcdClient::new(&pd.urls()).unwrap());
    let (one, other) = (registry(), registry());
    let task = |name: &str| Task {
        name: name.to_owned(),
        info: StreamBackupTaskInfo {
            name: name.to_owned(),
            start_ts: 5,
            ..StreamBackupTaskInfo::default()
        },
        ranges: vec![("a".into(), "b".into())],
        paused: false,
    };
    for round in 0..8 {
        let (t, u) = (task(&format!("t{round}")), task(&format!("u{round}")));
        let started = tokio::join!(one.start(&t), other.start(&u));
        let (winner, refused) = match started {
            (Ok(()), Err(error)) => (t, error),
            (Err(error), Ok(())) => (u, error),
            both => panic!("{both:?}"),
        };
        assert!(matches!(refused, TaskError::Exists { .. }), "{refused}");
        one.stop(&winner.name).await.unwrap();
    }
    tokio::task::block_in_place(|| drop(pd));
}
