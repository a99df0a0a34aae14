//! Publishing checkpoints in a registry that others change at the same time: a checkpoint never
//! falls, never passes what was asked for, and never reaches a task that is gone or was registered
//! anew. Against an etcd that does transactions, can lose answers and holds any bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::tasks::{Task, TaskError, TaskRegistry, keys};
use pitr_format::{Class, Ts};
use pitr_proto::backup::StreamBackupTaskInfo;
use pitr_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pitr_proto::etcdserverpb::kv_server::{Kv, KvServer};
use pitr_proto::etcdserverpb::*;
use pitr_proto::mvccpb::KeyValue;
use prost::Message as _;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::fake::{bind, serve};

#[derive(Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    /// Every value that ever stood under a key that ends so.
    globals: Vec<u64>,
}

#[derive(Clone, Default)]
struct Etcd {
    store: Arc<Mutex<Store>>,
    /// So many transactions are done without an answer.
    lost_answers: Arc<AtomicU32>,
    /// So many transactions find that somebody was faster.
    races: Arc<AtomicU32>,
}

impl Store {
    fn put(&mut self, key: &[u8], value: Bytes) {
        self.revision += 1;
        let created = self
            .keys
            .get(key)
            .map_or(self.revision, |kv| kv.create_revision);
        if key.ends_with(b"/central_global") {
            let number = value[..].try_into().map(u64::from_be_bytes);
            self.globals.extend(number);
        }
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            value,
            create_revision: created,
            mod_revision: self.revision,
            version: 1,
            ..Default::default()
        };
        self.keys.insert(key.to_vec(), kv);
    }

    fn range(&self, key: &[u8], end: &[u8]) -> Vec<KeyValue> {
        let inside = |k: &[u8]| {
            if end.is_empty() {
                k == key
            } else {
                k >= key && k < end
            }
        };
        let found = self.keys.iter().filter(|(k, _)| inside(k));
        found.map(|(_, kv)| kv.clone()).collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.range(&compare.key, &compare.range_end);
        let all = |found: &[KeyValue]| found.iter().all(|kv| Self::holds_of(Some(kv), compare));
        match &found[..] {
            [] => Self::holds_of(None, compare),
            found => all(found),
        }
    }

    fn holds_of(kv: Option<&KeyValue>, compare: &Compare) -> bool {
        let (found, wanted) = match &compare.target_union {
            Some(TargetUnion::CreateRevision(wanted)) => {
                (kv.map_or(0, |kv| kv.create_revision), *wanted)
            }
            Some(TargetUnion::ModRevision(wanted)) => (kv.map_or(0, |kv| kv.mod_revision), *wanted),
            Some(TargetUnion::Version(wanted)) => (kv.map_or(0, |kv| kv.version), *wanted),
            other => panic!("{other:?}"),
        };
        assert!(CompareTarget::try_from(compare.target).is_ok());
        match CompareResult::try_from(compare.result) {
            Ok(CompareResult::Equal) => found == wanted,
            Ok(CompareResult::Greater) => found > wanted,
            Ok(CompareResult::NotEqual) => found != wanted,
            Ok(CompareResult::Less) => found < wanted,
            Err(_) => panic!("{compare:?}"),
        }
    }

    fn apply(&mut self, op: &RequestOp) -> ResponseOp {
        let response = match op.request.as_ref().unwrap() {
            request_op::Request::RequestRange(range) => {
                let kvs = self.range(&range.key, &range.range_end);
                response_op::Response::ResponseRange(RangeResponse {
                    kvs,
                    ..Default::default()
                })
            }
            request_op::Request::RequestPut(put) => {
                self.put(&put.key, put.value.clone());
                response_op::Response::ResponsePut(PutResponse::default())
            }
            request_op::Request::RequestDeleteRange(delete) => {
                let gone = self.range(&delete.key, &delete.range_end);
                self.revision += 1;
                for kv in gone {
                    self.keys.remove(&kv.key[..]);
                }
                response_op::Response::ResponseDeleteRange(DeleteRangeResponse::default())
            }
            other => panic!("{other:?}"),
        };
        ResponseOp {
            response: Some(response),
        }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.revision,
            ..Default::default()
        })
    }
}

/// Whether one of `left` is used up.
fn one_of(left: &AtomicU32) -> bool {
    let less = |n: u32| n.checked_sub(1);
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let (request, store) = (request.into_inner(), self.store.lock());
        Ok(Response::new(RangeResponse {
            header: store.header(),
            kvs: store.range(&request.key, &request.range_end),
            ..Default::default()
        }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (request, mut store) = (request.into_inner(), self.store.lock());
        if one_of(&self.races) {
            let global = keys::global_checkpoint("t");
            let next = store.globals.last().copied().unwrap_or(0) + 1;
            store.put(global.as_bytes(), next.to_be_bytes().to_vec().into());
        }
        let succeeded = request.compare.iter().all(|compare| store.holds(compare));
        let operations = if succeeded {
            &request.success
        } else {
            &request.failure
        };
        let responses = operations.iter().map(|op| store.apply(op)).collect();
        if one_of(&self.lost_answers) {
            return Err(Status::unavailable("the answer is lost"));
        }
        Ok(Response::new(TxnResponse {
            header: store.header(),
            succeeded,
            responses,
        }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        self.store.lock().put(&request.key, request.value);
        Ok(Response::new(PutResponse::default()))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("by transaction only"))
    }
}

async fn registry(etcd: &Etcd) -> TaskRegistry {
    let (listener, url) = bind().await;
    let server = Server::builder().add_service(KvServer::new(etcd.clone()));
    serve(listener, server);
    TaskRegistry::new(EtcdClient::new(&[url]).unwrap())
}

fn task(name: &str, start_ts: u64) -> Task {
    Task {
        name: name.to_owned(),
        info: StreamBackupTaskInfo {
            name: name.to_owned(),
            start_ts,
            ..Default::default()
        },
        ranges: vec![(Bytes::from_static(b"a"), Bytes::from_static(b"z"))],
        paused: false,
    }
}

/// A registry with the task `t`, and the revision of its registration.
async fn started(etcd: &Etcd) -> (TaskRegistry, i64) {
    let registry = registry(etcd).await;
    registry.start(&task("t", 5)).await.unwrap();
    let (_, revision) = registry.registration("t").await.unwrap().unwrap();
    (registry, revision)
}

fn global_of(etcd: &Etcd, name: &str) -> Option<Bytes> {
    let key = keys::global_checkpoint(name);
    etcd.store
        .lock()
        .keys
        .get(key.as_bytes())
        .map(|kv| kv.value.clone())
}

#[tokio::test]
async fn publishers_at_the_same_time_leave_the_largest_checkpoint_and_none_ever_sees_it_fall() {
    let etcd = Etcd::default();
    let (registry, revision) = started(&etcd).await;
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..4u64 {
        let registry = registry.clone();
        publishers.spawn(async move {
            for step in 0..25u64 {
                // Not rising for each, and equal among some.
                let ts = Ts::new(100 + (step * 7 + publisher * 13) % 90);
                loop {
                    match registry.raise_global_checkpoint("t", revision, ts).await {
                        Ok(stands) => {
                            assert!(stands >= ts, "{stands} after {ts}");
                            break;
                        }
                        Err(error) => assert_eq!(error.class(), Class::Retry, "{error}"),
                    }
                }
            }
        });
    }
    while let Some(done) = publishers.join_next().await {
        done.unwrap();
    }
    let globals = etcd.store.lock().globals.clone();
    assert!(
        globals.windows(2).all(|pair| pair[0] < pair[1]),
        "{globals:?}"
    );
    let largest = (0..100u64).map(|n| 100 + (n % 25 * 7 + n / 25 * 13) % 90);
    assert_eq!(globals.last().copied(), largest.max());
}

#[tokio::test]
async fn a_smaller_checkpoint_writes_nothing_and_tells_what_stands_there() {
    let etcd = Etcd::default();
    let (registry, revision) = started(&etcd).await;
    let raise = |ts| registry.raise_global_checkpoint("t", revision, Ts::new(ts));
    assert_eq!(raise(900).await.unwrap(), Ts::new(900));
    let before = etcd.store.lock().revision;
    assert_eq!(raise(899).await.unwrap(), Ts::new(900));
    assert_eq!(raise(900).await.unwrap(), Ts::new(900));
    assert_eq!(etcd.store.lock().revision, before);
    let stands = registry.global_checkpoint("t").await.unwrap();
    assert_eq!(stands, Some(Ts::new(900)));
}

#[tokio::test]
async fn somebody_who_is_always_faster_is_told_as_such_after_a_few_attempts() {
    let etcd = Etcd::default();
    let (registry, revision) = started(&etcd).await;
    etcd.races.store(3, Ordering::SeqCst);
    let raised = registry
        .raise_global_checkpoint("t", revision, Ts::new(1_000))
        .await;
    assert_eq!(raised.unwrap(), Ts::new(1_000), "three lost races are none");
    etcd.races.store(1_000, Ordering::SeqCst);
    let error = registry
        .raise_global_checkpoint("t", revision, Ts::new(5_000))
        .await
        .unwrap_err();
    assert!(matches!(error, TaskError::Contended { .. }), "{error}");
    assert_eq!(error.class(), Class::Retry);
    let globals = etcd.store.lock().globals.clone();
    assert!(!globals.contains(&5_000));
}

#[tokio::test]
async fn a_checkpoint_whose_answer_was_lost_may_be_published_again() {
    let etcd = Etcd::default();
    let (registry, revision) = started(&etcd).await;
    etcd.lost_answers.store(1, Ordering::SeqCst);
    let mut raised = registry
        .raise_global_checkpoint("t", revision, Ts::new(700))
        .await;
    if let Err(error) = &raised {
        assert_eq!(error.class(), Class::Retry, "{error}");
        raised = registry
            .raise_global_checkpoint("t", revision, Ts::new(700))
            .await;
    }
    assert_eq!(raised.unwrap(), Ts::new(700));
    assert_eq!(etcd.store.lock().globals, [700], "written once");
}

#[tokio::test]
async fn nothing_is_published_for_a_task_that_was_stopped_or_registered_anew() {
    let etcd = Etcd::default();
    let (registry, old) = started(&etcd).await;
    let raise = |revision, ts| registry.raise_global_checkpoint("t", revision, Ts::new(ts));
    raise(old, 500).await.unwrap();
    registry.stop("t").await.unwrap();
    let is_gone = |error: TaskError| matches!(error, TaskError::NotFound { .. });
    assert!(is_gone(raise(old, 600).await.unwrap_err()));
    assert!(is_gone(
        registry
            .set_storage_checkpoint("t", old, 1, Ts::new(600))
            .await
            .unwrap_err()
    ));
    assert_eq!(global_of(&etcd, "t"), None, "stop removes the checkpoint");

    registry.start(&task("t", 9_000)).await.unwrap();
    let (_, new) = registry.registration("t").await.unwrap().unwrap();
    assert_ne!(old, new);
    assert!(is_gone(raise(old, 700).await.unwrap_err()));
    assert!(is_gone(
        registry
            .set_storage_checkpoint("t", old, 1, Ts::new(700))
            .await
            .unwrap_err()
    ));
    assert_eq!(global_of(&etcd, "t"), None, "the new task has none yet");
    assert!(registry.storage_checkpoints("t").await.unwrap().is_empty());
    raise(new, 800).await.unwrap();
    assert_eq!(global_of(&etcd, "t").unwrap(), &800u64.to_be_bytes()[..]);
}

#[tokio::test]
async fn each_store_has_its_own_storage_checkpoint_and_a_foreign_key_among_them_is_no_store() {
    let etcd = Etcd::default();
    let (registry, revision) = started(&etcd).await;
    for (store, ts) in [(1, 10), (7, 30), (1, 20)] {
        registry
            .set_storage_checkpoint("t", revision, store, Ts::new(ts))
            .await
            .unwrap();
    }
    let odd = format!("{}leader", keys::storage_checkpoints_of("t"));
    etcd.store
        .lock()
        .put(odd.as_bytes(), Bytes::from_static(b"x"));
    let found = registry.storage_checkpoints("t").await.unwrap();
    assert_eq!(found, [(1, Ts::new(20)), (7, Ts::new(30))]);
}

#[tokio::test]
async fn a_checkpoint_that_is_no_number_is_damage_and_is_not_overwritten() {
    for damage in [&b""[..], b"1234567", b"123456789", b"\xFF"] {
        let etcd = Etcd::default();
        let (registry, revision) = started(&etcd).await;
        let key = keys::global_checkpoint("t");
        let value = Bytes::from_static(damage);
        etcd.store.lock().put(key.as_bytes(), value.clone());
        let error = registry.global_checkpoint("t").await.unwrap_err();
        let named = matches!(&error, TaskError::Damaged { key: named, .. } if *named == key);
        assert!(named, "{error}");
        assert_eq!(error.class(), Class::Permanent);
        let raised = registry
            .raise_global_checkpoint("t", revision, Ts::new(9))
            .await;
        assert!(raised.is_err());
        assert_eq!(global_of(&etcd, "t"), Some(value));
    }
}

#[tokio::test]
async fn tasks_are_listed_although_values_beside_them_are_damaged_or_of_a_later_version() {
    let etcd = Etcd::default();
    let (registry, _) = started(&etcd).await;
    {
        let mut store = etcd.store.lock();
        let mut put =
            |key: String, value: &[u8]| store.put(key.as_bytes(), Bytes::copy_from_slice(value));
        put(keys::info("broken"), b"\xFF\xFF\xFF");
        put(keys::info("cut"), &task("cut", 3).info.encode_to_vec()[..3]);
        // A field that only a later version knows.
        let mut later = task("later", 77).info.encode_to_vec();
        later.extend([0xFA, 0x3E, 3, b'n', b'e', b'w']);
        put(keys::info("later"), &later);
        put(format!("{}x/y", keys::INFO), b"");
        put(keys::INFO.to_owned(), b"");
        put(
            keys::pause("later"),
            br#"{"severity":"ERROR","operation_hostname":"tidb-0"}"#,
        );
        put(keys::pause("nobody"), b"");
        put(keys::pause("cut"), b"");
    }
    {
        let mut store = etcd.store.lock();
        store.put(&keys::range("nobody", b"a"), Bytes::from_static(b"b"));
        store.put(&keys::range("later", b"x/\0"), Bytes::new());
        store.put(b"/tidb/br-stream/ranges/later", Bytes::new());
    }
    let (tasks, _) = registry.list().await.unwrap();
    let shown: Vec<_> = tasks
        .iter()
        .map(|task| {
            (
                &task.name[..],
                task.info.start_ts,
                task.paused,
                task.ranges.len(),
            )
        })
        .collect();
    assert_eq!(shown, [("later", 77, true, 1), ("t", 5, false, 1)]);
    let later = &tasks[0].ranges[0];
    assert_eq!((&later.0[..], &later.1[..]), (&b"x/\0"[..], &b""[..]));
    let damaged = registry.registration("broken").await.unwrap_err();
    assert!(matches!(damaged, TaskError::Damaged { .. }), "{damaged}");
}

#[tokio::test]
async fn a_pause_of_either_form_is_a_pause_and_its_value_is_handed_over_as_it_is() {
    let etcd = Etcd::default();
    let (registry, _) = started(&etcd).await;
    assert_eq!(registry.pause_value("t").await.unwrap(), None);
    // The first form has no value; the second one is a document.
    let second: &[u8] = br#"{"severity":"MANUAL","operator_pid":7,"operation_time":"2026-01-01"}"#;
    for value in [&b""[..], second, b"{not json", b"\xFF\x00"] {
        assert!(registry.pause("t", value.to_vec()).await.unwrap());
        let found = registry.pause_value("t").await.unwrap().unwrap();
        assert_eq!(&found[..], value);
        let again = registry.pause("t", b"other".to_vec()).await.unwrap();
        assert!(!again, "paused already");
        let kept = registry.pause_value("t").await.unwrap().unwrap();
        assert_eq!(&kept[..], value, "the first reason stays");
        assert!(registry.list().await.unwrap().0[0].paused);
        assert!(registry.resume("t").await.unwrap());
        assert!(!registry.resume("t").await.unwrap());
        assert!(!registry.list().await.unwrap().0[0].paused);
    }
    assert!(!registry.pause("gone", Vec::new()).await.unwrap());
    assert_eq!(registry.pause_value("gone").await.unwrap(), None);
}

#[tokio::test]
async fn ending_a_pause_forgets_the_errors_of_that_task_and_of_no_other() {
    let etcd = Etcd::default();
    let (registry, _) = started(&etcd).await;
    let errors = |name: &str| format!("{}4", keys::last_errors_of(name));
    for name in ["t", "t2"] {
        etcd.store.lock().put(errors(name).as_bytes(), Bytes::new());
    }
    etcd.store.lock().put(
        format!("{}x", keys::last_errors_of("t")).as_bytes(),
        Bytes::new(),
    );
    assert_eq!(registry.last_errors("t").await.unwrap().len(), 1);
    assert!(!registry.resume("t").await.unwrap(), "it is not paused");
    assert_eq!(registry.last_errors("t").await.unwrap().len(), 1);
    registry.pause("t", Vec::new()).await.unwrap();
    registry.resume("t").await.unwrap();
    assert!(registry.last_errors("t").await.unwrap().is_empty());
    assert_eq!(registry.last_errors("t2").await.unwrap().len(), 1);
    let damaged = errors("t2");
    etcd.store
        .lock()
        .put(damaged.as_bytes(), Bytes::from_static(b"\xFF"));
    let error = registry.last_errors("t2").await.unwrap_err();
    assert!(error.to_string().contains(&damaged), "{error}");
}

#[tokio::test]
async fn of_two_tasks_with_a_common_key_that_start_at_once_one_is_refused() {
    for _ in 0..16 {
        let etcd = Etcd::default();
        let (one, other) = (registry(&etcd).await, registry(&etcd).await);
        let (t, u) = (task("t", 5), task("u", 5));
        let started = tokio::join!(one.start(&t), other.start(&u));
        let refused = match started {
            (Ok(()), Err(error)) | (Err(error), Ok(())) => error,
            both => panic!("{both:?}"),
        };
        assert!(matches!(refused, TaskError::Exists { .. }), "{refused}");
        assert_eq!(one.list().await.unwrap().0.len(), 1);
    }
}

#[tokio::test]
async fn a_second_task_is_refused_and_the_same_one_again_is_what_a_lost_answer_looks_like() {
    let etcd = Etcd::default();
    let registry = registry(&etcd).await;
    etcd.lost_answers.store(1, Ordering::SeqCst);
    let first = registry.start(&task("t", 5)).await;
    if let Err(error) = first {
        assert_eq!(error.class(), Class::Retry, "{error}");
        registry.start(&task("t", 5)).await.unwrap();
    }
    let revision = etcd.store.lock().revision;
    registry.start(&task("t", 5)).await.unwrap();
    assert_eq!(
        etcd.store.lock().revision,
        revision,
        "nothing is written twice"
    );
    for other in [task("t", 6), task("u", 5)] {
        let error = registry.start(&other).await.unwrap_err();
        let named = matches!(&error, TaskError::Exists { existing } if existing == "t");
        assert!(named, "{error}");
    }
    for name in ["", "a/b", "a\0b"] {
        let error = registry.start(&task(name, 1)).await.unwrap_err();
        assert!(
            matches!(error, TaskError::BadName { .. }),
            "{name:?}: {error}"
        );
    }
    assert_eq!(etcd.store.lock().revision, revision);
}

#[tokio::test]
async fn stopping_a_task_leaves_the_keys_of_a_task_with_a_longer_name() {
    let etcd = Etcd::default();
    let (registry, revision) = started(&etcd).await;
    registry
        .raise_global_checkpoint("t", revision, Ts::new(5))
        .await
        .unwrap();
    let others: Vec<Vec<u8>> = vec![
        keys::info("t2").into(),
        keys::range("t2", b"a").to_vec(),
        keys::pause("t2").into(),
        keys::global_checkpoint("t2").into(),
        keys::storage_checkpoint("t2", 1).into(),
        format!("{}1", keys::last_errors_of("t2")).into(),
        b"/tidb/br-stream".to_vec(),
        b"/tidb/other".to_vec(),
    ];
    for key in &others {
        etcd.store
            .lock()
            .put(key, 1u64.to_be_bytes().to_vec().into());
    }
    registry.stop("t").await.unwrap();
    let mut expected = others;
    expected.sort();
    let left: Vec<_> = etcd.store.lock().keys.keys().cloned().collect();
    assert_eq!(left, expected);
    let error = registry.stop("t").await.unwrap_err();
    assert!(matches!(error, TaskError::NotFound { .. }), "{error}");
}
