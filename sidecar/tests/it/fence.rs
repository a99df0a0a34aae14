//! Two sidecars with one store id: whoever holds the leased key of the store writes, the other one
//! ends; and what the keys tell of every store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use pitr_sidecar::config::Config;
use pitr_sidecar::{serve, storage};
use pitr_storage::fault::{Call, Fault, FaultPlan, FaultyStorage, Rule};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::pauses::Keys;
use crate::pd_servers::PdServers;
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::assert_restores;

/// The leased key of store 1.
const KEY: &str = "/tikv-pitr/v1/store/1";
/// A lease lives 5 s, and the loser of a fight waits for one of them.
const ONE_LEASE: Duration = Duration::from_secs(12);
/// How soon a sidecar that was replaced has to be gone once it runs again.
const AT_ONCE: Duration = Duration::from_secs(5);

fn member(keys: &Keys) -> Option<Value> {
    let value = keys.get(KEY)?;
    Some(serde_json::from_slice(&value).unwrap())
}

/// State of the task `t` as the key of the store has it.
fn state(keys: &Keys) -> String {
    let told = member(keys).map(|member| member["tasks"][0]["state"].clone());
    told.and_then(|state| state.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Every object that a reader looks for, with its bytes.
fn visible(archive: &Storage) -> BTreeMap<String, Vec<u8>> {
    fn walk(dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.to_str().unwrap().to_owned();
            if path.is_dir() {
                walk(&path, found);
            } else if name.ends_with(".meta") || name.ends_with(".ts") {
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(archive.dir(), &mut found);
    found
}

#[test]
fn the_key_of_a_store_says_who_serves_it_and_how_its_tasks_stand() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let keys = Keys::of(&cluster);
    let alone = cluster.log_status();
    let here = &alone["tasks"][0]["stores"][0];
    assert_eq!(
        (&here["store_id"], &here["state"]),
        (&json!(1), &json!("no_sidecar"))
    );
    let text = cluster.run(&["log", "status"]).stdout;
    let line = text.lines().find(|line| line.starts_with("1 ")).unwrap();
    assert!(
        line.contains("none"),
        "the store without a sidecar is named: {text}"
    );

    let sidecar = Sidecar::start(&cluster);
    wait_until("the key tells that the task runs", || {
        state(&keys) == "running"
    });
    let told = member(&keys).unwrap();
    assert_eq!(told["address"], sidecar.address());
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(told["tasks"][0]["name"], "t");
    assert!(
        told["started_at"].as_str().unwrap().ends_with('Z'),
        "{told}"
    );
    assert!(told["daemon"].as_str().unwrap().len() >= 32, "{told}");

    // Another sidecar, of a store that PD has forgotten, that is in trouble.
    let failing = json!({"name": "t", "state": "failing", "reason": "no such bucket",
        "since": "2026-01-01T00:00:00Z", "attempts": 7, "gap": false});
    let other = json!({"daemon": "x", "address": "other:1", "host": "h", "version": "9",
        "started_at": "2026-01-01T00:00:00Z", "tasks": [failing]});
    keys.put(
        "/tikv-pitr/v1/store/7".to_owned(),
        other.to_string().into_bytes(),
    );
    let stores = cluster.log_status()["tasks"][0]["stores"].clone();
    assert_eq!(
        (&stores[0]["state"], &stores[0]["sidecar"]),
        (&json!("running"), &told["address"])
    );
    assert_eq!(
        (&stores[1]["store_id"], &stores[1]["attempts"]),
        (&json!(7), &json!(7))
    );
    let text = cluster.run(&["log", "status"]).stdout;
    assert!(
        text.contains("running") && text.contains("no such bucket"),
        "{text}"
    );
    let page = cluster
        .run(&["status", "--sidecar", sidecar.address(), "--json"])
        .json();
    assert_eq!(page["stores"][1]["sidecar"]["address"], "other:1");
    wait_until("its own page has all stores", || {
        let page = sidecar.page("/status.json");
        page.contains("no such bucket") && page.contains(told["daemon"].as_str().unwrap())
    });

    sidecar.stop();
}

#[test]
fn the_key_of_a_store_follows_its_tasks_and_goes_with_its_sidecar() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let keys = Keys::of(&cluster);
    let sidecar = Sidecar::start(&cluster);
    wait_until("the key tells that the task runs", || {
        state(&keys) == "running"
    });
    cluster
        .run(&["log", "pause", "--task-name", "t", "--json"])
        .json();
    wait_until("the key tells of the pause", || state(&keys) == "paused");
    cluster
        .run(&["log", "stop", "--task-name", "t", "--json"])
        .json();
    wait_until("a task that is gone leaves the key", || {
        member(&keys).is_some_and(|member| member["tasks"] == json!([]))
    });
    sidecar.stop();
    assert_eq!(
        member(&keys),
        None,
        "one that left in order leaves no key behind"
    );
}

#[test]
fn a_second_sidecar_of_a_store_ends_with_11_and_names_the_first_which_goes_on() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let (keys, client) = (Keys::of(&cluster), Client::of(&cluster));
    let first = Sidecar::start(&cluster);
    wait_until("the first one runs", || state(&keys) == "running");
    let second = Sidecar::start(&cluster);
    let (code, said) = second.wait_at_most(ONE_LEASE);
    assert_eq!(code, 11, "{said}");
    let last = said.lines().rev().take(4).collect::<String>();
    assert!(
        last.contains("PITR1608") && last.contains(first.address()),
        "{said}"
    );
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    assert_eq!(member(&keys).unwrap()["address"], first.address());
    let page = crate::command::tikv_pitr(&["explain", "PITR1608"]);
    assert!(
        page.code == 0 && page.stdout.contains("store"),
        "{}",
        page.stdout
    );
    first.stop();
}

#[test]
fn a_sidecar_that_was_killed_is_replaced_at_once_on_its_machine_and_nothing_is_lost() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let (keys, client) = (Keys::of(&cluster), Client::of(&cluster));
    let first = Sidecar::start(&cluster);
    wait_until("the first one runs", || state(&keys) == "running");
    client.write(&load(1));
    first.signal("-KILL");
    let second = Sidecar::start(&cluster);
    let killed = std::time::Instant::now();
    client.write(&load(2));
    wait_until("the second one has the store", || {
        member(&keys).is_some_and(|member| member["address"] == second.address())
    });
    assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
    cluster.wait_checkpoint(client.now());
    second.stop();
    assert_restores(&cluster, &archive, &Cluster::start());
}

/// The first sidecar sleeps under load until the second one has its store; when it wakes it must
/// go without a trace.
fn a_sleeper_that_was_replaced_goes(cluster: &Cluster) {
    let archive = Storage::new();
    cluster.log_start(&archive.url()).json();
    let (keys, client) = (Keys::of(cluster), Client::of(cluster));
    // It sleeps between two flushes: nothing that was confirmed before is under way.
    let first = Sidecar::start_flushing_every(cluster, "5s");
    wait_until("the first one runs", || state(&keys) == "running");
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    // Something to flush when it wakes, at once.
    client.write(&load(2));
    first.signal("-STOP");
    let second = Sidecar::start(cluster);
    client.write(&load(3));
    cluster.wait_checkpoint(client.now());
    assert_eq!(member(&keys).unwrap()["address"], second.address());

    // Now whatever is written is written by the first one.
    second.signal("-STOP");
    sleep(Duration::from_millis(300));
    let archived = visible(&archive);
    let published = cluster.log_status()["tasks"][0]["central_global"].clone();
    first.signal("-CONT");
    let (second_addr, patience) = (second.address().to_owned(), AT_ONCE);
    let (code, said) = first.wait_at_most(patience);
    assert_eq!(code, 11, "{said}");
    assert!(
        said.contains("PITR1608") && said.contains(&second_addr),
        "{said}"
    );
    let written = visible(&archive);
    let names: Vec<_> = written
        .keys()
        .filter(|name| !archived.contains_key(*name))
        .collect();
    assert!(
        names.is_empty(),
        "it wrote after it had lost its store: {names:?}"
    );
    assert!(
        written == archived,
        "it replaced an object after it had lost its store"
    );
    assert_eq!(
        cluster.log_status()["tasks"][0]["central_global"],
        published
    );

    second.signal("-CONT");
    client.write(&load(4));
    cluster.wait_checkpoint(client.now());
    second.stop();
    assert_restores(cluster, &archive, &Cluster::start());
}

#[test]
fn a_sidecar_that_slept_until_it_was_replaced_writes_nothing_more_and_ends() {
    a_sleeper_that_was_replaced_goes(&Cluster::start());
}

#[test]
fn on_a_real_pd_a_sidecar_that_slept_until_it_was_replaced_writes_nothing_more_and_ends() {
    let Some(pd) = PdServers::start(1) else {
        return;
    };
    a_sleeper_that_was_replaced_goes(&Cluster::at(pd.urls()));
}

#[test]
fn a_sidecar_that_slept_past_its_lease_goes_on_as_itself_when_nobody_came() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let (keys, client) = (Keys::of(&cluster), Client::of(&cluster));
    let sidecar = Sidecar::start(&cluster);
    wait_until("it runs", || state(&keys) == "running");
    let daemon = member(&keys).unwrap()["daemon"].clone();
    sidecar.signal("-STOP");
    wait_until("its lease ends", || member(&keys).is_none());
    client.write(&load(1));
    sidecar.signal("-CONT");
    cluster.wait_checkpoint(client.now());
    assert_eq!(member(&keys).unwrap()["daemon"], daemon);
    sidecar.stop();
}

#[test]
fn a_sidecar_whose_successor_has_left_again_does_not_come_back() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let (keys, client) = (Keys::of(&cluster), Client::of(&cluster));
    let first = Sidecar::start_flushing_every(&cluster, "5s");
    wait_until("the first one runs", || state(&keys) == "running");
    cluster.wait_checkpoint(client.now());
    client.write(&load(1));
    first.signal("-STOP");
    let second = Sidecar::start(&cluster);
    cluster.wait_checkpoint(client.now());
    let address = second.address().to_owned();
    second.stop();
    let archived = visible(&archive);
    first.signal("-CONT");
    let (code, said) = first.wait_at_most(AT_ONCE);
    assert_eq!(code, 11, "{said}");
    assert!(said.contains(&address), "{said}");
    assert!(
        visible(&archive) == archived,
        "it wrote after it had lost its store"
    );
}

/// A process that is stopped between the confirmation and the write behind it, as a storage that
/// holds the write up for longer than the lease.
#[test]
fn a_write_that_was_held_up_for_longer_than_the_lease_that_permitted_it_leaves_nothing() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    let config = Config::parse(&format!(
        "pd-endpoints = [\"{}\"]\nstore-id = 1\nstatus-addr = \"127.0.0.1:0\"\n\
         [log-backup]\nmax-flush-interval = \"1s\"\n",
        cluster.pd(),
    ))
    .unwrap();
    let slow: Arc<OnceLock<Arc<FaultyStorage>>> = Arc::default();
    let handle = slow.clone();
    let open: serve::OpenStorage = Arc::new(move |info| {
        let held_up = Rule::always(Call::Write, Fault::Delay(Duration::from_secs(6)));
        let plan = FaultPlan::none().with(held_up.on_names(|name| name.ends_with(".meta")));
        let storage = FaultyStorage::new(storage::open_task(info)?, plan);
        Ok(handle.get_or_init(|| storage).clone())
    });
    let runtime = Runtime::new().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let serving = runtime.spawn(serve::serve_with(config, stopped, open));
    client.write(&load(1));
    wait_until("two writes were held up", || {
        slow.get().is_some_and(|slow| slow.counters().delays >= 2)
    });
    let metas = visible(&archive).into_keys();
    let metas: Vec<_> = metas.filter(|name| name.ends_with(".meta")).collect();
    assert!(metas.is_empty(), "its time was over: {metas:?}");
    slow.get().unwrap().set_plan(FaultPlan::none());
    cluster.wait_checkpoint(client.now());
    stop.send(true).unwrap();
    runtime.block_on(serving).unwrap().unwrap();
    assert_restores(&cluster, &archive, &Cluster::start());
}
