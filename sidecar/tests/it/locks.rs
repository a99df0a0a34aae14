//! Locks in a range: what becomes of those whose clients died, hang, or committed in part.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::kv::{KvClient, LockMode, LockReport, resolve_locks};
use pitr_cluster::pd::{PdClient, Region};
use pitr_cluster::stores::StoreChannels;
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::kvrpcpb::{CommitRequest, Context, Mutation, Op, PrewriteRequest};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use tonic::transport::Channel;

use crate::system::Cluster;
use crate::troubles::split;

const LONG: Duration = Duration::from_secs(3600);
/// It has expired when it is looked at.
const SHORT: Duration = Duration::from_millis(1);

/// Keys of a transaction, in order.
fn keys(count: usize) -> Vec<Bytes> {
    (0..count)
        .map(|i| Bytes::from(format!("k{i:05}")))
        .collect()
}

struct World {
    cluster: Cluster,
    pd: Arc<PdClient>,
    stores: Arc<StoreChannels>,
}

impl World {
    async fn start() -> World {
        let cluster = tokio::task::block_in_place(Cluster::start);
        let pd = PdClient::connect(&cluster.pds()).await.unwrap();
        World {
            stores: StoreChannels::new(pd.clone()),
            cluster,
            pd,
        }
    }

    async fn region(&self, key: &[u8]) -> (Region, TikvClient<Channel>, Context) {
        let key = EncodedKey::encode(key);
        let region = self.pd.region_of(key.as_bytes()).await.unwrap();
        let channel = self.stores.of(region.leader_store()).await.unwrap();
        let context = Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: region.leader,
            ..Context::default()
        };
        (region, TikvClient::new(channel), context)
    }

    /// Locks keys of one transaction, the first of which is its primary; its start ts.
    async fn prewrite(&self, keys: &[Bytes], ttl: Duration, async_commit: bool) -> Ts {
        let start = self.pd.tso().await.unwrap();
        let mut left = keys;
        while let Some(first) = left.first() {
            let (region, mut stub, context) = self.region(first).await;
            let range = region.range();
            let inside = |key: &&Bytes| range.contains(EncodedKey::encode(key).as_bytes());
            let count = left.iter().take_while(inside).count();
            let (now, later) = left.split_at(count);
            let put = |key: &Bytes| Mutation {
                op: Op::Put as i32,
                key: key.clone(),
                value: Bytes::from_static(b"v"),
                ..Mutation::default()
            };
            let secondaries = match async_commit && now.first() == keys.first() {
                true => keys[1..].to_vec(),
                false => Vec::new(),
            };
            let request = PrewriteRequest {
                context: Some(context),
                mutations: now.iter().map(put).collect(),
                primary_lock: keys[0].clone(),
                start_version: start.get(),
                lock_ttl: ttl.as_millis() as u64,
                use_async_commit: async_commit,
                secondaries,
                ..PrewriteRequest::default()
            };
            let answer = stub.kv_prewrite(request).await.unwrap().into_inner();
            assert_eq!((answer.region_error, answer.errors.len()), (None, 0));
            left = later;
        }
        start
    }

    /// Whether the commit of one key is taken.
    async fn commit(&self, key: &Bytes, start: Ts) -> bool {
        let (_, mut stub, context) = self.region(key).await;
        let request = CommitRequest {
            context: Some(context),
            keys: vec![key.clone()],
            start_version: start.get(),
            commit_version: self.pd.tso().await.unwrap().get(),
            ..CommitRequest::default()
        };
        let answer = stub.kv_commit(request).await.unwrap().into_inner();
        assert_eq!(answer.region_error, None);
        answer.error.is_none()
    }

    async fn resolve(&self, max: Ts, mode: LockMode) -> LockReport {
        let range = EncodedRange::ALL;
        resolve_locks(&self.stores, range, max, mode).await.unwrap()
    }

    async fn now(&self) -> Ts {
        self.pd.tso().await.unwrap()
    }

    /// Number of keys that a reader sees.
    async fn visible(&self) -> usize {
        let client = KvClient::with_stores(self.stores.clone());
        let mut scan = client.scan(Bytes::new(), Bytes::new(), self.now().await);
        let mut seen = 0;
        while let Some(page) = scan.next_page().await.unwrap() {
            seen += page.len();
        }
        seen
    }
}

fn counts(report: &LockReport) -> (u64, u64, u64) {
    (report.found, report.resolved, report.alive)
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_a_dead_client_go_in_every_region_however_many_they_are() {
    let world = World::start().await;
    tokio::task::block_in_place(|| split(&world.cluster, &["k00100", "k01500"]));
    let keys = keys(2_600);
    world.prewrite(&keys, SHORT, false).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let part = EncodedRange::new(
        EncodedKey::encode(b"k00050").into_bytes(),
        EncodedKey::encode(b"k00150").into_bytes(),
    );
    let now = world.now().await;
    let some = resolve_locks(&world.stores, part, now, LockMode::LeaveAlive).await;
    assert_eq!(
        counts(&some.unwrap()),
        (100, 100, 0),
        "nothing outside of the range"
    );
    let rest = world.resolve(world.now().await, LockMode::LeaveAlive).await;
    // The primary went when it was asked what became of the transaction.
    assert_eq!(counts(&rest), (2_499, 2_499, 0));
    let none = world.resolve(world.now().await, LockMode::LeaveAlive).await;
    assert_eq!(none, LockReport::default());
    assert_eq!(world.visible().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_client_has_committed_in_part_is_committed_whole() {
    let world = World::start().await;
    tokio::task::block_in_place(|| split(&world.cluster, &["k00005"]));
    let keys = keys(10);
    let start = world.prewrite(&keys, SHORT, false).await;
    assert!(world.commit(&keys[0], start).await);
    let report = world.resolve(world.now().await, LockMode::LeaveAlive).await;
    assert_eq!(counts(&report), (9, 9, 0));
    assert_eq!(world.visible().await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_async_commit_whose_locks_are_all_there_is_committed() {
    let world = World::start().await;
    tokio::task::block_in_place(|| split(&world.cluster, &["k00005"]));
    let all = keys(10);
    world.prewrite(&all, SHORT, true).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let report = world.resolve(world.now().await, LockMode::LeaveAlive).await;
    assert_eq!(counts(&report), (10, 10, 0));
    assert_eq!(world.visible().await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_transaction_is_left_and_told_and_gc_rolls_it_back() {
    let world = World::start().await;
    let keys = keys(2);
    let old = world.prewrite(&keys[..1], LONG, false).await;
    let new = world.prewrite(&keys[1..], LONG, false).await;
    let only_old = world.resolve(old, LockMode::LeaveAlive).await;
    assert_eq!(
        counts(&only_old),
        (1, 0, 1),
        "what began later is not looked at"
    );
    let both = world.resolve(world.now().await, LockMode::LeaveAlive).await;
    assert_eq!(counts(&both), (2, 0, 2));
    let oldest = both.oldest.unwrap();
    assert_eq!(
        (&oldest.key, &oldest.primary, oldest.start_ts),
        (&keys[0], &keys[0], old)
    );
    assert!(oldest.age < Duration::from_secs(60));

    let gc = world.resolve(old, LockMode::GcRollback).await;
    assert_eq!((counts(&gc), gc.oldest), ((1, 1, 0), None));
    assert!(!world.commit(&keys[0], old).await, "it was rolled back");
    assert!(world.commit(&keys[1], new).await, "it was not touched");
}
