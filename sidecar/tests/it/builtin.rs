//! `source = "builtin"`: a daemon without a store, which coordinates TiKV's own log backup. Against
//! a service that answers as a real TiKV did when it was recorded, with other timestamps.

use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::Ts;
use pitr_proto::kvrpcpb::ScanLockRequest;
use pitr_proto::logbackup::log_backup_server::{LogBackup, LogBackupServer};
use pitr_proto::logbackup::*;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::command::Ran;
use crate::pauses::Keys;
use crate::stores::always_answering;
use crate::system::{Client, Cluster, Sidecar, Storage, wait_until};
use crate::troubles::run_gc;

const TRANSCRIPT: &str = include_str!("../../../tests/golden/log-backup-transcript.json");
const GLOBAL: &str = "/tidb/br-stream/checkpoint/t/central_global";

/// The events that a real TiKV sent first: regions that cover everything.
fn recorded_events() -> Vec<FlushEvent> {
    let steps: serde_json::Value = serde_json::from_str(TRANSCRIPT).unwrap();
    let steps = steps.as_array().unwrap();
    let stream = steps
        .iter()
        .find(|s| s["step"] == "SubscribeFlushEvent stream");
    let text = stream.unwrap()["answers"][0].as_str().unwrap();
    let pool = DescriptorPool::decode(pitr_proto::FILE_DESCRIPTOR_SET).unwrap();
    let message = "logbackup.SubscribeFlushEventResponse";
    let descriptor = pool.get_message_by_name(message).unwrap();
    let parsed = DynamicMessage::parse_text_format(descriptor, text).unwrap();
    parsed
        .transcode_to::<SubscribeFlushEventResponse>()
        .unwrap()
        .events
}

#[derive(Default)]
struct State {
    subscribers: Vec<mpsc::Sender<Result<SubscribeFlushEventResponse, Status>>>,
    /// What regions are answered with when they are asked for.
    last_flush: u64,
    asked: usize,
}

/// The service of a store whose own log backup runs.
#[derive(Clone, Default)]
struct StockTikv(Arc<Mutex<State>>);

impl StockTikv {
    /// A flush: every region, all but the first up to `ts`, that one up to `slowest`.
    fn flush(&self, ts: Ts, slowest: Ts) {
        let mut events = recorded_events();
        for event in &mut events {
            event.checkpoint = ts.get();
        }
        events[0].checkpoint = slowest.get();
        let mut state = self.0.lock();
        state.subscribers.retain(|subscriber| {
            let events = events.clone();
            let told = Ok(SubscribeFlushEventResponse { events });
            subscriber.try_send(told).is_ok()
        });
    }

    fn listeners(&self) -> usize {
        self.0.lock().subscribers.len()
    }
}

#[tonic::async_trait]
impl LogBackup for StockTikv {
    async fn get_last_flush_ts_of_region(
        &self,
        request: Request<GetLastFlushTsOfRegionRequest>,
    ) -> Result<Response<GetLastFlushTsOfRegionResponse>, Status> {
        let mut state = self.0.lock();
        state.asked += 1;
        let checkpoint = state.last_flush;
        let answer = |region: RegionIdentity| RegionCheckpoint {
            err: None,
            region: Some(region),
            checkpoint,
        };
        let checkpoints = request.into_inner().regions.into_iter().map(answer);
        Ok(Response::new(GetLastFlushTsOfRegionResponse {
            checkpoints: checkpoints.collect(),
        }))
    }

    type SubscribeFlushEventStream =
        Pin<Box<dyn Stream<Item = Result<SubscribeFlushEventResponse, Status>> + Send>>;

    async fn subscribe_flush_event(
        &self,
        _request: Request<SubscribeFlushEventRequest>,
    ) -> Result<Response<Self::SubscribeFlushEventStream>, Status> {
        let (told, stream) = mpsc::channel(64);
        self.0.lock().subscribers.push(told);
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn flush_now(
        &self,
        _request: Request<FlushNowRequest>,
    ) -> Result<Response<FlushNowResponse>, Status> {
        Ok(Response::new(FlushNowResponse::default()))
    }
}

/// The configuration of a store whose own log backup is on.
const BACKS_UP: &str = r#"{"log-backup":{"enable":true,"max-flush-interval":"3m"}}"#;

fn start(cluster: &Cluster, archive: &Storage) -> Ran {
    let url = archive.url();
    let args = ["log", "start", "--source", "builtin", "--task-name", "t"];
    cluster.run(&[&args[..], &["-s", &url, "--json"]].concat())
}

/// A cluster whose store has a log backup of its own, a task, and the daemon.
struct World {
    tikv: StockTikv,
    cluster: Cluster,
    keys: Keys,
    client: Client,
    daemon: Sidecar,
    _archive: Storage,
    _runtime: Runtime,
}

impl World {
    fn start(more: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let tikv = StockTikv::default();
        let server = Server::builder().add_service(LogBackupServer::new(tikv.clone()));
        runtime.spawn(server.serve(address));
        let status = always_answering(BACKS_UP);
        let cluster = Cluster::start_with(|config| {
            config.advertise_peer_addrs = vec![address.to_string()];
            config.advertise_status_addrs = vec![status.to_string()];
        });
        let archive = Storage::new();
        assert_eq!(start(&cluster, &archive).json()["notes"], json!([]));
        let daemon = Sidecar::start_builtin(&cluster, more);
        let world = World {
            keys: Keys::of(&cluster),
            client: Client::of(&cluster),
            tikv,
            cluster,
            daemon,
            _archive: archive,
            _runtime: runtime,
        };
        wait_until("the daemon listens", || world.tikv.listeners() > 0);
        world
    }

    fn global(&self) -> Option<u64> {
        let value = self.keys.get(GLOBAL)?;
        Some(u64::from_be_bytes(value.try_into().unwrap()))
    }
}

#[test]
fn a_store_that_a_sidecar_must_not_tail_is_taken_if_its_own_log_backup_is_on() {
    let status = always_answering(BACKS_UP);
    for (version, told) in [
        ("6.5.3", None),
        ("8.5.1", None),
        ("6.4.0", Some("PITR1110")),
    ] {
        let cluster = Cluster::start_with(|config| {
            config.store_version = version.to_owned();
            config.advertise_status_addrs = vec![status.to_string()];
        });
        // What a change stream loses is in TiKV's own log.
        Client::of(&cluster).write(&[("raft".to_owned(), Some(b"v".to_vec()))]);
        let archive = Storage::new();
        let started = start(&cluster, &archive);
        match told {
            None => drop(started.json()),
            Some(code) => {
                assert_eq!((started.code, &started.error()["code"]), (11, &json!(code)));
            }
        }
    }
}

#[test]
fn a_store_whose_own_log_backup_is_off_is_refused_and_one_that_does_not_tell_is_noted() {
    let off = always_answering(r#"{"log-backup":{"enable":false}}"#);
    for (status, code) in [(off.to_string(), 11), ("127.0.0.1:1".to_owned(), 0)] {
        let cluster = Cluster::start_with(|config| {
            config.advertise_status_addrs = vec![status];
        });
        let archive = Storage::new();
        let started = start(&cluster, &archive);
        assert_eq!(started.code, code, "{}{}", started.stdout, started.stderr);
        match code {
            0 => {
                let note = started.json()["notes"][0].to_string();
                assert!(note.contains("could not be read"), "{note}");
            }
            _ => {
                assert_eq!(started.error()["code"], "PITR1112");
                assert_eq!(cluster.log_status()["tasks"], json!([]));
                assert!(archive.dir().read_dir().unwrap().next().is_none());
            }
        }
    }
}

#[test]
fn a_second_task_is_refused_since_tikvs_own_log_backup_knows_one_at_a_time() {
    let status = always_answering(BACKS_UP);
    let cluster = Cluster::start_with(|config| {
        config.advertise_status_addrs = vec![status.to_string()];
    });
    let start = |name: &str| {
        let url = Storage::new().url();
        let args = ["log", "start", "--source", "builtin", "--task-name", name];
        cluster.run(&[&args[..], &["--prefix", name, "-s", &url, "--json"]].concat())
    };
    start("first").json();
    let second = start("second");
    assert_eq!(second.error()["code"], "PITR1301", "{}", second.stderr);
    assert_eq!(cluster.log_status()["tasks"].as_array().unwrap().len(), 1);
}

#[test]
fn flushes_of_tikvs_own_that_are_too_rare_for_a_volume_of_juicefs_are_refused() {
    for (key, code) in [(&b"jfs-1\xFDsetting"[..], 11), (b"no volume", 0)] {
        let status = always_answering(BACKS_UP);
        let cluster = Cluster::start_with(|config| {
            config.advertise_status_addrs = vec![status.to_string()];
        });
        let client = Client::of(&cluster);
        client.put(key, b"{}");
        run_gc(&cluster, client.now());
        let started = start(&cluster, &Storage::new());
        assert_eq!(started.code, code, "{}{}", started.stdout, started.stderr);
        if code != 0 {
            assert_eq!(started.error()["code"], "PITR1316");
            let told = started.error()["message"].to_string();
            assert!(
                told.contains("`log-backup.max-flush-interval` is 3m"),
                "{told}"
            );
        }
    }
}

#[test]
fn the_checkpoint_of_tikvs_own_log_backup_is_the_slowest_region_of_its_flushes() {
    let world = World::start("");
    let (slow, fast) = (world.client.now(), world.client.now());
    world.tikv.flush(fast, slow);
    wait_until("the checkpoint is raised", || {
        world.global() == Some(slow.get())
    });
    // An older flush that comes late changes nothing, a newer one moves it at once.
    world.tikv.flush(slow, slow);
    let newer = world.client.now();
    world.tikv.flush(newer, newer);
    wait_until("it goes on", || world.global() == Some(newer.get()));
    world.daemon.wait_status("\"state\":\"running\"");
    world.daemon.stop();
}

#[test]
fn a_checkpoint_of_the_future_is_not_believed() {
    let world = World::start("");
    let now = world.client.now();
    world.tikv.flush(now, now);
    wait_until("the first one is raised", || {
        world.global() == Some(now.get())
    });
    let future = Ts::compose(now.physical_ms() + 3_600_000, 0);
    world.tikv.flush(future, future);
    world.daemon.wait_status("clock has not reached");
    assert_eq!(world.global(), Some(now.get()));
}

#[test]
fn a_store_that_tells_nothing_is_asked() {
    let world = World::start("");
    let flushed = world.client.now();
    world.tikv.0.lock().last_flush = flushed.get();
    wait_until("polling brings it", || {
        world.global() == Some(flushed.get())
    });
    assert!(world.tikv.0.lock().asked > 0);
}

#[test]
fn locks_of_dead_transactions_are_resolved_when_the_checkpoint_stands() {
    let world = World::start("lock-standstill = \"1s\"");
    world.client.lock_for("dead", Duration::from_millis(10));
    world.client.lock("alive");
    let stands = world.client.now();
    world.tikv.flush(stands, stands);
    wait_until("the checkpoint stands", || {
        world.global() == Some(stands.get())
    });
    wait_until("the dead one's lock is gone", || {
        locked(&world) == [Bytes::from_static(b"alive")]
    });
    // A live transaction is never touched.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(locked(&world), [Bytes::from_static(b"alive")]);
}

fn locked(world: &World) -> Vec<Bytes> {
    let max_version = world.client.now().get();
    let request = ScanLockRequest {
        max_version,
        limit: 10,
        ..ScanLockRequest::default()
    };
    let locks = world.client.scan_locks(request);
    locks.into_iter().map(|lock| lock.key).collect()
}

#[test]
fn gc_that_passes_the_checkpoint_breaks_the_task_and_everybody_is_told() {
    let world = World::start("");
    let reached = world.client.now();
    world.tikv.flush(reached, reached);
    wait_until("a checkpoint", || world.global() == Some(reached.get()));
    crate::troubles::run_gc(&world.cluster, world.client.now());
    world.daemon.wait_status("broken at");
    // What TiKV flushes from now on may have a hole before it: the archive ends at the checkpoint.
    let later = world.client.now();
    world.tikv.flush(later, later);
    world.daemon.wait_status("history after it may be missing");
    assert_eq!(world.global(), Some(reached.get()));
    world.daemon.wait_status("\"gap\":true");
    wait_until("PD knows it", || {
        let errors = world.keys.get("/tidb/br-stream/last-error/t/0");
        errors.is_some_and(|value| String::from_utf8_lossy(&value).contains("PITR:Gap"))
    });
    let metrics = world.daemon.page("/metrics");
    let margin = metrics
        .lines()
        .find(|l| l.starts_with("tikv_pitr_gc_margin_seconds"));
    assert!(
        margin.is_some_and(|line| !line.ends_with(" 1")),
        "{margin:?}"
    );
}
