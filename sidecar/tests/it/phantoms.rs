//! Phantom locks: a store's change stream waits for a lock that the store has no more, since no
//! record told it of the end. The sidecar finds out and registers the region anew.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::pd::PdClient;
use pitr_cluster::stores::StoreChannels;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::cdcpb::change_data_client::ChangeDataClient;
use pitr_proto::cdcpb::{ChangeDataEvent, ChangeDataRequest, Header};
use pitr_proto::kvrpcpb::{
    BatchRollbackRequest, CommitRequest, Context, DeleteRangeRequest, Mutation, Op, PrewriteRequest,
};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::{assert_restores, split};

/// What the log says when a region is registered anew for such a lock.
const FOUND: &str = "the store waits for a lock that does not exist, registering the region anew";

/// A key where it is led.
struct Place {
    key: Bytes,
    pd: Arc<PdClient>,
    channel: Channel,
    context: Context,
}

impl Place {
    async fn of(pd: Arc<PdClient>, key: &'static str) -> Place {
        let encoded = EncodedKey::encode(key.as_bytes());
        let region = pd.region_of(encoded.as_bytes()).await.unwrap();
        let stores = StoreChannels::new(pd.clone());
        Place {
            key: Bytes::from_static(key.as_bytes()),
            channel: stores.of(region.leader_store()).await.unwrap(),
            pd,
            context: Context {
                region_id: region.meta.id,
                region_epoch: region.meta.region_epoch,
                peer: region.leader,
                ..Context::default()
            },
        }
    }

    fn kv(&self) -> TikvClient<Channel> {
        TikvClient::new(self.channel.clone())
    }

    async fn now(&self) -> Ts {
        self.pd.tso().await.unwrap()
    }

    /// Locks the key.
    async fn prewrite(&self, primary: &Bytes, start: Ts) {
        let request = PrewriteRequest {
            context: Some(self.context.clone()),
            mutations: vec![Mutation {
                op: Op::Put.into(),
                key: self.key.clone(),
                value: Bytes::from_static(b"v"),
                ..Mutation::default()
            }],
            primary_lock: primary.clone(),
            start_version: start.get(),
            lock_ttl: 3_600_000,
            ..PrewriteRequest::default()
        };
        let answer = self.kv().kv_prewrite(request).await.unwrap().into_inner();
        assert_eq!((answer.region_error, answer.errors), (None, vec![]));
    }

    /// Leaves a lock that goes with a range that is deleted.
    async fn erase(self) {
        self.prewrite(&self.key, self.now().await).await;
        let request = DeleteRangeRequest {
            end_key: [&self.key[..], b"\0"].concat().into(),
            start_key: self.key.clone(),
            context: Some(self.context.clone()),
            ..DeleteRangeRequest::default()
        };
        let answer = self.kv().kv_delete_range(request).await;
        let answer = answer.unwrap().into_inner();
        assert_eq!((answer.region_error, &answer.error[..]), (None, ""));
    }

    /// Commits the key, and leaves the lock of a second transaction that began at that very ts
    /// and is rolled back: its record would have the place of the commit, and is not written.
    async fn overlap(self) {
        let start = self.now().await;
        self.prewrite(&self.key, start).await;
        let commit = self.now().await;
        let request = CommitRequest {
            context: Some(self.context.clone()),
            keys: vec![self.key.clone()],
            start_version: start.get(),
            commit_version: commit.get(),
            ..CommitRequest::default()
        };
        let answer = self.kv().kv_commit(request).await.unwrap().into_inner();
        assert_eq!((answer.region_error, answer.error), (None, None));
        self.prewrite(&Bytes::from_static(b"elsewhere"), commit)
            .await;
        let request = BatchRollbackRequest {
            context: Some(self.context.clone()),
            keys: vec![self.key.clone()],
            start_version: commit.get(),
            ..BatchRollbackRequest::default()
        };
        let answer = self.kv().kv_batch_rollback(request).await;
        let answer = answer.unwrap().into_inner();
        assert_eq!((answer.region_error, answer.error), (None, None));
    }

    /// Another change stream of the region, which stays as long as the answer does.
    async fn follow(self, cluster_id: u64) -> Streaming<ChangeDataEvent> {
        let register = ChangeDataRequest {
            header: Some(Header {
                cluster_id,
                ticdc_version: "8.5.0".to_owned(),
            }),
            region_id: self.context.region_id,
            region_epoch: self.context.region_epoch,
            checkpoint_ts: self.now().await.get(),
            request_id: 1,
            ..ChangeDataRequest::default()
        };
        // It says nothing more, and does not end.
        let requests = futures::stream::iter([register]);
        let requests = futures::StreamExt::chain(requests, futures::stream::pending());
        let mut call = Request::new(requests);
        let features = "stream-multiplexing".parse().unwrap();
        call.metadata_mut().insert("features", features);
        let mut client = ChangeDataClient::new(self.channel.clone());
        let mut events = client.event_feed_v2(call).await.unwrap().into_inner();
        events.message().await.unwrap().expect("it is registered");
        events
    }
}

/// Where the keys of the tests are split into so many regions that the store, which tells several
/// together how far the slowest of them is, tells of some that they move.
const MANY: [&str; 12] = [
    "demo/005",
    "demo/010",
    "demo/015",
    "demo/020",
    "demo/025",
    "demo/030",
    "demo/035",
    "demo/040",
    "demo/045",
    "erased",
    "overlapped",
    "round",
];
/// As few as a small cluster has.
const FEW: [&str; 3] = ["erased", "overlapped", "round"];

/// A task, its sidecar and a client; the checkpoint goes on.
fn start(splits: &[&str]) -> (Cluster, Storage, Client, Sidecar) {
    let (cluster, archive) = (Cluster::start(), Storage::new());
    if !splits.is_empty() {
        split(&cluster, splits);
    }
    cluster.log_start(&archive.url()).json();
    let client = Client::of(&cluster);
    let sidecar = Sidecar::start(&cluster);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    (cluster, archive, client, sidecar)
}

fn checkpoint(cluster: &Cluster) -> u64 {
    let status = cluster.log_status();
    status["tasks"][0]["checkpoint"].as_u64().unwrap()
}

/// How often the sidecar has registered the region of a key anew for a phantom lock.
fn repairs(sidecar: &Sidecar, client: &Client, key: &str) -> usize {
    let region = format!("region={} ", client.region_of(key.as_bytes()).meta.id);
    let found = |line: &&str| line.contains(FOUND) && line.contains(&region);
    sidecar.said().lines().filter(found).count()
}

/// Leaves two phantoms while other regions are written to and nobody touches these keys again.
fn assert_survives(splits: &[&str]) {
    let (cluster, archive, client, sidecar) = start(splits);
    let keys = ["erased/lock", "overlapped/commit"];
    client.ask(async |pd| Place::of(pd, keys[0]).await.erase().await);
    client.ask(async |pd| Place::of(pd, keys[1]).await.overlap().await);
    let after = client.now().get();
    let mut round = 1;
    wait_until("the checkpoint passes both", || {
        round += 1;
        client.write(&load(round));
        checkpoint(&cluster) >= after
    });
    let repaired = keys.map(|key| repairs(&sidecar, &client, key));
    assert_eq!(repaired, [1, 1], "{}", sidecar.said());
    sidecar.stop();
    assert_restores(&cluster, &archive, &Cluster::start());
}

#[test]
fn locks_that_only_the_change_stream_believes_in_hold_the_checkpoint_no_longer() {
    assert_survives(&MANY);
}

#[test]
fn a_store_of_few_regions_gets_rid_of_phantom_locks_too() {
    assert_survives(&FEW);
}

#[test]
fn the_lock_of_a_live_client_is_named_with_its_region_and_no_region_is_registered_anew() {
    for splits in [&FEW[..], &MANY[..]] {
        let (cluster, _archive, client, sidecar) = start(splits);
        let key = "round/held";
        client.lock(key);
        let region = client.region_of(key.as_bytes()).meta.id;
        let held = || {
            client.write(&others(2));
            let page = cluster.log_status();
            let held = page["tasks"][0]["stores"][0]["held_by"].clone();
            (held["region_id"].as_u64(), held["lock"]["key"].clone())
        };
        let named = (Some(region), serde_json::json!(hex::encode_upper(key)));
        wait_until("the lock is named with its region", || held() == named);
        // Long enough for the next look at all, and to take one of them for a phantom.
        std::thread::sleep(Duration::from_secs(10));
        assert!(!sidecar.said().contains(FOUND), "{}", sidecar.said());
        assert_eq!(held(), named);
        sidecar.stop();
    }
}

/// A load without the keys of the region that is locked.
fn others(round: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let mut writes = load(round);
    writes.retain(|(key, _)| !key.starts_with("round/"));
    writes
}

#[test]
fn a_phantom_lock_that_another_change_stream_keeps_is_named_until_the_region_splits() {
    let (cluster, archive, client, sidecar) = start(&[]);
    let (key, id) = ("overlapped/commit", cluster.playground.cluster_id());
    let follower = client.ask(async |pd| Place::of(pd, key).await.follow(id).await);
    client.ask(async |pd| Place::of(pd, key).await.overlap().await);
    client.write(&load(2));
    let after = client.now();
    // Registering anew did not help, and is not tried again.
    sidecar.wait_status("phantom lock");
    let told =
        "the checkpoint waits: the store waits for a lock that does not exist (phantom lock)";
    assert!(sidecar.said().contains(told), "{}", sidecar.said());
    assert_eq!(repairs(&sidecar, &client, key), 1, "{}", sidecar.said());
    assert!(checkpoint(&cluster) < after.get());
    split(&cluster, &["overlapped"]);
    cluster.wait_checkpoint(after);
    drop(follower);
    sidecar.stop();
    assert_restores(&cluster, &archive, &Cluster::start());
}
