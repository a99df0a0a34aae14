//! Subscriptions over a real store, written through its write lock, with a clock of our own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pitr_format::write_cf::WriteRecord;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::cdcpb::event::{Event as Payload, LogType, Row};
use pitr_proto::{cdcpb, metapb};
use pitr_restore_worker::engine::EngineCf;
use pitr_restore_worker::engine::rocks::RocksEngine;

use super::host::Host;
use super::hub::Hub;
use super::queue::Queue;
use super::register::{Connection, next_id};
use super::ticker::tick;
use super::version::Features;
use crate::store::change::Modify;
use crate::store::lock::{LockKind, LockRecord};
use crate::store::{IdAllocator, RegionIds, Store, StoreOptions};

const CLUSTER: u64 = 77;

struct Counter(AtomicU64);

impl IdAllocator for Counter {
    fn alloc(&self, _: &metapb::Region, count: usize) -> Result<Vec<RegionIds>, String> {
        let one = |_| {
            let region = self.0.fetch_add(2, Ordering::Relaxed);
            RegionIds {
                region,
                peers: vec![region + 1],
            }
        };
        Ok((0..count).map(one).collect())
    }
}

struct TestHost {
    store: Arc<Store>,
    now: AtomicU64,
}

impl Host for TestHost {
    fn cluster_id(&self) -> u64 {
        CLUSTER
    }
    fn engine(&self) -> &RocksEngine {
        self.store.engine()
    }
    fn region(&self, id: u64) -> Option<metapb::Region> {
        self.store
            .regions()
            .get(id)
            .map(|r| metapb::Region::clone(r))
    }
    fn leads(&self, id: u64) -> Result<(), Option<metapb::Peer>> {
        self.store.leads(id)
    }
    fn timestamp(&self) -> Result<Ts, String> {
        Ok(Ts::new(self.now.load(Ordering::Relaxed)))
    }
    fn while_quiet(&self, floor: Ts, work: &mut dyn FnMut()) {
        let mut writes = self.store.lock_writes();
        writes.raise_max_ts(floor);
        work();
    }
}

struct Fixture {
    host: Arc<TestHost>,
    hub: Arc<Hub>,
    _dir: tempfile::TempDir,
}

fn put(cf: EngineCf, key: Bytes, value: Bytes) -> Modify {
    Modify::Put { cf, key, value }
}

fn encoded(key: &str) -> EncodedKey {
    EncodedKey::encode(key.as_bytes())
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            store_ids: vec![1],
            first_region: RegionIds {
                region: 2,
                peers: vec![3],
            },
            ids: Arc::new(Counter(AtomicU64::new(100))),
        };
        let store = Store::open(&[dir.path()], options).unwrap().remove(0);
        let hub = Arc::new(Hub::new(store.engine().clone()));
        store.observe(hub.clone());
        let host = Arc::new(TestHost {
            store,
            now: AtomicU64::new(0),
        });
        Fixture {
            host,
            hub,
            _dir: dir,
        }
    }

    fn connect(&self, queue_bytes: usize) -> (Connection, Arc<Queue>) {
        let queue = Arc::new(Queue::new(queue_bytes));
        let connection = Connection::new(
            self.host.clone(),
            self.hub.clone(),
            next_id(),
            Features::of("8.5.0", true),
            queue.clone(),
            10,
        );
        (connection, queue)
    }

    fn apply(&self, region: u64, mods: &[Modify], one_pc: bool) {
        let mut writes = self.host.store.lock_writes();
        writes.apply(region, mods, one_pc).unwrap();
    }

    fn prewrite(&self, key: &str, start_ts: u64) {
        let primary = Bytes::copy_from_slice(key.as_bytes());
        let mut lock = LockRecord::new(LockKind::Put, primary, Ts::new(start_ts), 0);
        lock.short_value = Some("v".into());
        let lock = put(EngineCf::Lock, encoded(key).into_bytes(), lock.to_bytes());
        self.apply(2, &[lock], false);
    }

    fn commit(&self, key: &str, start_ts: u64, commit_ts: u64, value: &'static str) {
        let write = WriteRecord::put(Ts::new(start_ts), Some(value.into())).to_bytes();
        let at = encoded(key).at(Ts::new(commit_ts)).into_bytes();
        let unlock = Modify::Delete {
            cf: EngineCf::Lock,
            key: encoded(key).into_bytes(),
        };
        self.apply(2, &[put(EngineCf::Write, at, write), unlock], false);
    }

    fn tick(&self, now: u64) {
        self.host.now.store(now, Ordering::Relaxed);
        tick(&*self.host, &self.hub);
    }
}

fn register(request_id: u64, version: u64) -> cdcpb::ChangeDataRequest {
    cdcpb::ChangeDataRequest {
        header: Some(cdcpb::Header {
            cluster_id: CLUSTER,
            ticdc_version: "8.5.0".to_owned(),
        }),
        region_id: 2,
        region_epoch: Some(metapb::RegionEpoch {
            conf_ver: 1,
            version,
        }),
        request_id,
        ..Default::default()
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Row(LogType, String, u64, u64),
    Resolved(u64, u64),
    Error(Box<cdcpb::Error>),
}

fn seen(row: &Row) -> Seen {
    let key = String::from_utf8_lossy(&row.key).into_owned();
    Seen::Row(row.r#type(), key, row.start_ts, row.commit_ts)
}

async fn next(queue: &Queue) -> Vec<Seen> {
    let message = tokio::time::timeout(Duration::from_secs(10), queue.next());
    let message = message.await.unwrap().unwrap().unwrap();
    let mut out = Vec::new();
    for event in message.events {
        match event.event.unwrap() {
            Payload::Entries(rows) => out.extend(rows.entries.iter().map(seen)),
            Payload::Error(error) => out.push(Seen::Error(Box::new(error))),
            other => panic!("{other:?}"),
        }
    }
    let resolved = message.resolved_ts;
    out.extend(resolved.map(|r| Seen::Resolved(r.ts, r.request_id)));
    out
}

fn initialized() -> Seen {
    Seen::Row(LogType::Initialized, String::new(), 0, 0)
}

#[tokio::test]
async fn a_scan_shows_the_lock_first_and_then_the_versions_above_the_checkpoint() {
    let store = Fixture::new();
    store.commit("a", 10, 11, "1");
    store.commit("a", 20, 21, "2");
    store.commit("a", 30, 31, "3");
    store.commit("b", 10, 12, "1");
    store.prewrite("a", 40);
    store.prewrite("c", 41);
    let (connection, queue) = store.connect(1 << 20);
    connection.register(cdcpb::ChangeDataRequest {
        checkpoint_ts: 12,
        ..register(1, 1)
    });
    let row = |kind, key: &str, start, commit| Seen::Row(kind, key.to_owned(), start, commit);
    let expected = [
        row(LogType::Prewrite, "a", 40, 0),
        row(LogType::Committed, "a", 30, 31),
        row(LogType::Committed, "a", 20, 21),
        row(LogType::Prewrite, "c", 41, 0),
        initialized(),
    ];
    assert_eq!(next(&queue).await, expected);
}

#[tokio::test]
async fn resolved_ts_follows_the_scan_stops_at_locks_and_never_goes_back() {
    let store = Fixture::new();
    let (connection, queue) = store.connect(1 << 20);
    connection.register(register(7, 1));
    store.tick(50);
    // Whether the tick came before the scan or after it: nothing comes before INITIALIZED.
    assert_eq!(next(&queue).await, [initialized()]);
    while store.hub.unfinished() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    store.tick(100);
    while next(&queue).await != [Seen::Resolved(100, 7)] {}
    store.prewrite("k", 120);
    store.tick(200);
    assert_eq!(next(&queue).await.len(), 1);
    assert_eq!(next(&queue).await, [Seen::Resolved(120, 7)]);
    assert_eq!(store.host.store.lock_writes().max_ts().get(), 200);
    // A transaction that began before 120 may still lock; it cannot commit below 200.
    store.commit("k", 120, 210, "v");
    store.prewrite("l", 90);
    store.tick(300);
    assert_eq!(next(&queue).await.len(), 2);
    assert_eq!(next(&queue).await, [Seen::Resolved(120, 7)]);
    store.commit("l", 90, 310, "v");
    store.tick(400);
    assert_eq!(next(&queue).await.len(), 1);
    assert_eq!(next(&queue).await, [Seen::Resolved(400, 7)]);
}

#[tokio::test]
async fn a_split_ends_every_subscription_with_the_regions_of_now() {
    let store = Fixture::new();
    let (connection, queue) = store.connect(1 << 20);
    connection.register(register(1, 1));
    assert_eq!(next(&queue).await, [initialized()]);
    store.host.store.split_at_user_keys(&[b"m"]).unwrap();
    let [Seen::Error(error)] = &next(&queue).await[..] else {
        panic!("no error");
    };
    let regions = &error.epoch_not_match.as_ref().unwrap().current_regions;
    assert_eq!(regions.len(), 2);
    // Live rows end with the error, and the old epoch cannot register again.
    store.commit("a", 10, 11, "1");
    connection.register(register(1, 1));
    let [Seen::Error(error)] = &next(&queue).await[..] else {
        panic!("no error");
    };
    assert!(error.epoch_not_match.is_some());
    connection.register(register(1, 2));
    while next(&queue).await.last() != Some(&initialized()) {}
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_subscription_and_nobody_else_does() {
    let store = Fixture::new();
    let (slow, slow_queue) = store.connect(1000);
    let (quick, quick_queue) = store.connect(1 << 20);
    slow.register(register(1, 1));
    quick.register(register(1, 1));
    assert_eq!(next(&slow_queue).await, [initialized()]);
    assert_eq!(next(&quick_queue).await, [initialized()]);
    for n in 0..100 {
        store.commit("k", 10 * n + 10, 10 * n + 11, "value");
    }
    let mut last = Vec::new();
    while !matches!(last.last(), Some(Seen::Error(_))) {
        last = next(&slow_queue).await;
        assert!(last.len() < 60);
    }
    let Some(Seen::Error(error)) = last.last() else {
        unreachable!();
    };
    assert_eq!(error.congested.as_ref().unwrap().region_id, 2);
    let mut rows = 0;
    while rows < 100 {
        rows += next(&quick_queue).await.len();
    }
}

#[tokio::test]
async fn a_subscription_is_known_by_request_id_and_region_until_it_is_deregistered() {
    let store = Fixture::new();
    let (connection, queue) = store.connect(1 << 20);
    connection.register(register(1, 1));
    assert_eq!(next(&queue).await, [initialized()]);
    connection.register(register(1, 1));
    let [Seen::Error(error)] = &next(&queue).await[..] else {
        panic!("no error");
    };
    assert_eq!(error.duplicate_request.as_ref().unwrap().region_id, 2);
    connection.register(register(2, 1));
    assert_eq!(next(&queue).await, [initialized()]);
    connection.deregister(&cdcpb::ChangeDataRequest {
        request_id: 1,
        ..Default::default()
    });
    let [Seen::Error(error)] = &next(&queue).await[..] else {
        panic!("no error");
    };
    assert_eq!(error.region_not_found.as_ref().unwrap().region_id, 2);
    store.commit("a", 10, 11, "1");
    assert_eq!(next(&queue).await.len(), 1);
    connection.register(register(1, 1));
    assert_eq!(next(&queue).await.last(), Some(&initialized()));
}
