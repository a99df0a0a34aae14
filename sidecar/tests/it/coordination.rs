//! The coordinator inside of the sidecars: who leads, what happens when that one dies or is a
//! stranger, and what the log backup service of a store tells.

use std::time::{Duration, Instant};

use pitr_format::EncodedRange;
use pitr_proto::errorpb::NotLeader;
use pitr_proto::logbackup::log_backup_client::LogBackupClient;
use pitr_proto::logbackup::{
    FlushNowRequest, FlushResult, GetLastFlushTsOfRegionRequest, RegionIdentity,
    SubscribeFlushEventRequest,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::pauses::Keys;
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::assert_restores;

/// How soon another candidate leads after the leader was killed.
const HAND_OVER: Duration = Duration::from_secs(15);

fn page(sidecar: &Sidecar) -> Value {
    let page = sidecar.page("/status.json");
    let body = page.split("\r\n\r\n").nth(1).unwrap_or_default();
    serde_json::from_str(body).unwrap_or_default()
}

fn leads(sidecar: &Sidecar) -> bool {
    page(sidecar)["coordinator"]["leads"] == json!(true)
}

/// Two stores, the second of which leads one of two regions.
fn two_stores() -> Cluster {
    let cluster = Cluster::start_with(|config| config.stores = 2);
    let client = Client::of(&cluster);
    let store = cluster.playground.store();
    store.split_at_user_keys(&[b"round/"]).unwrap();
    let right = client.region_of(b"round/");
    let second = cluster.playground.addresses()[1].id;
    cluster
        .playground
        .transfer_leader(right.meta.id, second)
        .unwrap();
    wait_until("a leader moved", || {
        client.region_of(b"round/").leader_store() == second
    });
    cluster
}

fn sidecar_of(cluster: &Cluster, store: usize) -> Sidecar {
    Sidecar::start_at(cluster, cluster.playground.addresses()[store].store)
}

#[test]
fn one_checkpoint_is_made_of_two_stores_and_survives_the_death_of_the_one_that_leads() {
    let (cluster, archive) = (two_stores(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    let first = sidecar_of(&cluster, 0);
    wait_until("the only candidate leads", || leads(&first));
    let other = cluster.playground.addresses()[1].id.to_string();
    wait_until(
        "it hears its own store, and the other one has no service",
        || {
            let stores = &page(&first)["coordinator"]["tasks"]["t"]["stores"];
            stores["1"]["flush_events"] == "subscribed"
                && stores[&other]["flush_events"] == "unsupported"
        },
    );

    let second = sidecar_of(&cluster, 1);
    client.write(&load(0));
    cluster.wait_checkpoint(client.now());
    assert!(leads(&first) && !leads(&second), "the first one goes on");
    assert_eq!(
        page(&second)["coordinator"]["leader"],
        page(&first)["daemon"]
    );
    assert_eq!(
        page(&first)["coordinator"]["tasks"]["t"]["stores"][&other]["flush_events"],
        "subscribed"
    );

    let killed = Instant::now();
    first.signal("-KILL");
    first.wait();
    wait_until("the other one leads", || leads(&second));
    assert!(killed.elapsed() < HAND_OVER, "{:?}", killed.elapsed());
    // It takes over the dead one's store, and its regions are read from the checkpoint on.
    let again = sidecar_of(&cluster, 0);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    again.stop();
    second.stop();
    assert_restores(&cluster, &archive, &Cluster::start());
}

#[test]
fn while_a_stranger_leads_nothing_is_raised_and_afterwards_everything_is() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let keys = Keys::of(&cluster);
    let theirs = "/tidb/br-stream/owner/6c07a200b62bdb8e";
    keys.put(theirs.to_owned(), b"64b8fa35-br-log-advancer".to_vec());
    let sidecar = Sidecar::start(&cluster);
    wait_until("the stranger is known", || {
        page(&sidecar)["coordinator"]["leader"] == "64b8fa35-br-log-advancer"
    });
    sidecar.wait_status("\"flushes\":3");
    assert!(!leads(&sidecar));
    let global = "/tidb/br-stream/checkpoint/t/central_global";
    assert_eq!(keys.get(global), None);
    // What the stranger raises is published, as far as it goes.
    let raised = Client::of(&cluster).now();
    keys.put(global.to_owned(), raised.get().to_be_bytes().to_vec());
    cluster.wait_checkpoint(raised);
    assert_eq!(cluster.log_status()["tasks"][0]["checkpoint"], raised.get());

    keys.delete(theirs);
    wait_until("ours leads", || leads(&sidecar));
    cluster.wait_checkpoint(Client::of(&cluster).now());
    sidecar.stop();
}

#[test]
fn a_sidecar_that_is_no_candidate_leaves_the_checkpoint_to_others() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    let follower = Sidecar::start_with(&cluster, "coordinator = false");
    follower.wait_status("\"flushes\":2");
    assert_eq!(page(&follower)["coordinator"], Value::Null);
    let owners = Keys::of(&cluster).list("/tidb/br-stream/owner/");
    assert_eq!(owners, Vec::<String>::new());
}

/// The log backup service of the sidecar of store 1, where its key says it is.
struct Service {
    runtime: Runtime,
    client: LogBackupClient<Channel>,
}

impl Service {
    fn of(cluster: &Cluster) -> Self {
        let keys = Keys::of(cluster);
        let mut address = String::new();
        wait_until("the key of the store names the service", || {
            let member = keys.get("/tikv-pitr/v1/store/1").unwrap_or_default();
            let member: Value = serde_json::from_slice(&member).unwrap_or_default();
            address = member["log_backup_address"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            !address.is_empty()
        });
        let runtime = Runtime::new().unwrap();
        let client = LogBackupClient::connect(format!("http://{address}"));
        let client = runtime.block_on(client).unwrap();
        Service { runtime, client }
    }

    fn flush_now(&mut self) -> Vec<FlushResult> {
        let answer = self.client.flush_now(FlushNowRequest {});
        self.runtime.block_on(answer).unwrap().into_inner().results
    }
}

#[test]
fn without_a_task_there_is_nothing_to_flush_and_no_region_is_known() {
    let cluster = Cluster::start();
    let sidecar = Sidecar::start(&cluster);
    let mut service = Service::of(&cluster);
    assert_eq!(service.flush_now(), []);
    let regions = vec![RegionIdentity {
        id: 4,
        epoch_version: 1,
    }];
    let asked = service
        .client
        .get_last_flush_ts_of_region(GetLastFlushTsOfRegionRequest { regions });
    let answer = service.runtime.block_on(asked).unwrap().into_inner();
    let refused = answer.checkpoints[0].err.clone().unwrap();
    let not_leader = NotLeader {
        region_id: 4,
        leader: None,
    };
    assert_eq!(refused.not_leader, Some(not_leader));
    sidecar.stop();
}

#[test]
fn a_flush_on_demand_is_durable_when_it_says_so_and_its_failure_is_told() {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    cluster.log_start(&archive.url()).json();
    // It would not flush by itself while this test runs.
    let sidecar = Sidecar::start_flushing_every(&cluster, "10m");
    sidecar.wait_status("\"state\":\"running\"");
    sidecar.wait_status("\"live\":1");
    let client = Client::of(&cluster);
    client.write(&load(0));
    let mut service = Service::of(&cluster);
    let subscribed = service
        .client
        .subscribe_flush_event(SubscribeFlushEventRequest::default());
    let mut events = service.runtime.block_on(subscribed).unwrap().into_inner();

    let written = client.now();
    wait_until("a flush covers what was written", || {
        let results = service.flush_now();
        assert_eq!(results.len(), 1);
        assert!(
            results[0].success && results[0].task_name == "t",
            "{results:?}"
        );
        let message = service.runtime.block_on(events.message()).unwrap().unwrap();
        let event = &message.events[0];
        let range = EncodedRange::new(event.start_key.clone(), event.end_key.clone());
        assert!(!range.is_empty());
        event.checkpoint >= written.get()
    });
    let asked = Instant::now();
    cluster.wait_checkpoint(written);
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "no flush is waited for"
    );

    std::fs::remove_dir_all(archive.dir()).unwrap();
    let failed = service.flush_now();
    assert!(!failed[0].success, "{failed:?}");
    assert!(failed[0].error_message.contains("PITR"), "{failed:?}");
    std::fs::create_dir(archive.dir()).unwrap();
}
