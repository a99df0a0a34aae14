//! Order between readers and writers, made to happen one step after the other.

use bytes::Bytes;
use pitr_proto::kvrpcpb::write_conflict::Reason;
use pitr_proto::kvrpcpb::{
    Action, CheckTxnStatusRequest, CommitRequest, CommitResponse, GetRequest, GetResponse,
    Mutation, MvccGetByKeyRequest, PrewriteRequest, PrewriteResponse,
};
use pitr_proto::metapb::Region;

use super::system::{SELDOM, System, context};

struct Scene {
    system: System,
    region: Region,
}

impl Scene {
    async fn new() -> Scene {
        let system = System::start(SELDOM).await;
        let region = system.regions().await.remove(0);
        Scene { system, region }
    }

    /// One key with one value; a client that can be pushed says so by a smallest commit ts.
    fn write(&self, key: &'static str, start: u64) -> PrewriteRequest {
        PrewriteRequest {
            context: Some(context(&self.region)),
            mutations: vec![Mutation {
                key: key.into(),
                value: start.to_string().into(),
                ..Mutation::default()
            }],
            primary_lock: key.into(),
            start_version: start,
            min_commit_ts: start + 1,
            lock_ttl: 3000,
            txn_size: 1,
            ..PrewriteRequest::default()
        }
    }

    async fn prewrite(&self, request: PrewriteRequest) -> PrewriteResponse {
        let answer = self
            .system
            .kv
            .clone()
            .kv_prewrite(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.region_error, None);
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        answer
    }

    async fn commit(&self, key: &'static str, start: u64, ts: u64) -> CommitResponse {
        let request = CommitRequest {
            context: Some(context(&self.region)),
            start_version: start,
            keys: vec![key.into()],
            commit_version: ts,
            ..CommitRequest::default()
        };
        self.system
            .kv
            .clone()
            .kv_commit(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn get(&self, key: &'static str, version: u64) -> GetResponse {
        let request = GetRequest {
            context: Some(context(&self.region)),
            key: key.into(),
            version,
            ..GetRequest::default()
        };
        self.system
            .kv
            .clone()
            .kv_get(request)
            .await
            .unwrap()
            .into_inner()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_a_reader_pushed_commits_behind_it() {
    let scene = Scene::new().await;
    let start = scene.system.now().await;
    scene.prewrite(scene.write("k", start)).await;
    let early = scene.system.now().await;
    let reader = scene.system.now().await;
    let met = scene.get("k", reader).await.error.expect("locked");
    assert_eq!(met.locked.expect("a lock").lock_version, start);
    let request = CheckTxnStatusRequest {
        context: Some(context(&scene.region)),
        primary_key: "k".into(),
        lock_ts: start,
        caller_start_ts: reader,
        current_ts: reader,
        ..CheckTxnStatusRequest::default()
    };
    let status = scene
        .system
        .kv
        .clone()
        .kv_check_txn_status(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.action(), Action::MinCommitTsPushed);
    assert!(status.lock_ttl > 0);
    // The lock cannot commit at or below the reader any more and is no hindrance.
    assert!(scene.get("k", reader).await.not_found);
    let refused = scene
        .commit("k", start, early)
        .await
        .error
        .expect("below the reader");
    let expired = refused.commit_ts_expired.expect("commit ts expired");
    assert_eq!(
        (expired.start_ts, expired.attempted_commit_ts),
        (start, early)
    );
    assert_eq!(expired.key, "k");
    assert!(expired.min_commit_ts > reader);
    let late = scene.system.now().await;
    assert_eq!(scene.commit("k", start, late).await.error, None);
    assert!(scene.get("k", reader).await.not_found);
    assert_eq!(scene.get("k", late).await.value, start.to_string());
    scene.system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computed_commit_timestamp_lies_behind_every_reader() {
    let scene = Scene::new().await;
    for one_pc in [true, false] {
        let start = scene.system.now().await;
        let reader = scene.system.now().await;
        let before = scene.get("k", reader).await.value;
        let mut request = scene.write("k", start);
        request.use_async_commit = true;
        request.try_one_pc = one_pc;
        let answer = scene.prewrite(request).await;
        assert!(answer.min_commit_ts > reader);
        if one_pc {
            assert_eq!(answer.one_pc_commit_ts, answer.min_commit_ts);
        } else {
            assert_eq!(answer.one_pc_commit_ts, 0);
            scene.commit("k", start, answer.min_commit_ts).await;
        }
        assert_eq!(scene.get("k", reader).await.value, before);
        let after = scene.get("k", answer.min_commit_ts).await;
        assert_eq!(after.value, start.to_string());
    }
    // Not above the client's bound: it falls back to two phases.
    let start = scene.system.now().await;
    let reader = scene.system.now().await;
    scene.get("k", reader).await;
    let mut request = scene.write("k", start);
    request.use_async_commit = true;
    request.try_one_pc = true;
    request.max_commit_ts = reader;
    let answer = scene.prewrite(request).await;
    assert_eq!((answer.min_commit_ts, answer.one_pc_commit_ts), (0, 0));
    scene.system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_at_the_commit_timestamp_of_another_leaves_its_value() {
    let scene = Scene::new().await;
    let start = scene.system.now().await;
    let mut request = scene.write("k", start);
    request.use_async_commit = true;
    request.try_one_pc = true;
    let committed = scene.prewrite(request).await.one_pc_commit_ts;
    // A computed commit timestamp can be the start of somebody else.
    let request = CheckTxnStatusRequest {
        context: Some(context(&scene.region)),
        primary_key: "k".into(),
        lock_ts: committed,
        current_ts: scene.system.now().await,
        rollback_if_not_exist: true,
        ..CheckTxnStatusRequest::default()
    };
    let status = scene
        .system
        .kv
        .clone()
        .kv_check_txn_status(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.error, None);
    assert_eq!(status.action(), Action::LockNotExistRollback);
    let now = scene.system.now().await.max(committed);
    assert_eq!(scene.get("k", now).await.value, start.to_string());
    let request = MvccGetByKeyRequest {
        context: Some(context(&scene.region)),
        key: Bytes::from_static(b"k"),
    };
    let info = scene
        .system
        .kv
        .clone()
        .mvcc_get_by_key(request)
        .await
        .unwrap()
        .into_inner()
        .info;
    let writes = info.unwrap().writes;
    assert_eq!(writes.len(), 1, "{writes:?}");
    assert!(writes[0].has_overlapped_rollback, "{writes:?}");
    // Whoever was rolled back cannot come after all.
    let request = scene.write("k", committed);
    let late = scene
        .system
        .kv
        .clone()
        .kv_prewrite(request)
        .await
        .unwrap()
        .into_inner();
    let conflict = late.errors[0].conflict.as_ref().expect("conflict");
    assert_eq!(conflict.reason(), Reason::SelfRolledBack);
    scene.system.stop().await;
}
