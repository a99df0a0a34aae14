//! Fail-over, compaction and the task follower, against a small etcd: one list of keys, watches
//! that can be compacted or cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_cluster::etcd::{EtcdClient, EtcdError};
use pitr_cluster::tasks::{TaskEvent, TaskRegistry, keys};
use pitr_format::{Class, Ts};
use pitr_proto::etcdserverpb::kv_server::{Kv, KvServer};
use pitr_proto::etcdserverpb::watch_server::{Watch, WatchServer};
use pitr_proto::etcdserverpb::*;
use pitr_proto::mvccpb::{self, KeyValue};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{bind, serve};

struct State {
    kvs: Mutex<Vec<KeyValue>>,
    revision: AtomicI64,
    /// Watches that start before this revision are refused.
    compacted: AtomicI64,
    /// Changes: `true` rings every watch, `false` cuts it.
    bell: watch::Sender<bool>,
}

#[derive(Clone)]
struct Etcd(Arc<State>);

impl Etcd {
    fn new() -> Self {
        Etcd(Arc::new(State {
            kvs: Mutex::default(),
            revision: AtomicI64::new(10),
            compacted: AtomicI64::new(0),
            bell: watch::channel(true).0,
        }))
    }

    fn put(&self, key: String) {
        self.put_value(key, Bytes::new());
    }

    fn put_value(&self, key: String, value: Bytes) {
        self.0.kvs.lock().retain(|kv| kv.key != key.as_bytes());
        let mod_revision = self.0.revision.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.kvs.lock().push(KeyValue {
            key: key.into(),
            value,
            mod_revision,
            ..Default::default()
        });
    }

    /// Whether a comparison of the last change holds.
    fn holds(&self, compare: &Compare) -> bool {
        let kvs = self.0.kvs.lock();
        let found = kvs.iter().find(|kv| kv.key == compare.key);
        let found = found.map_or(0, |kv| kv.mod_revision);
        match compare.target_union {
            Some(compare::TargetUnion::ModRevision(wanted)) => found == wanted,
            _ => panic!("{compare:?}"),
        }
    }

    fn remove(&self, key: &str) {
        self.0.revision.fetch_add(1, Ordering::SeqCst);
        self.0.kvs.lock().retain(|kv| kv.key != key);
    }

    fn ring(&self, alive: bool) {
        self.0.bell.send_replace(alive);
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.0.revision.load(Ordering::SeqCst),
            ..Default::default()
        })
    }

    fn list(&self, range: &RangeRequest) -> RangeResponse {
        let inside = |kv: &&KeyValue| match range.range_end.is_empty() {
            true => kv.key == range.key,
            false => kv.key >= range.key && kv.key < range.range_end,
        };
        RangeResponse {
            header: self.header(),
            kvs: self.0.kvs.lock().iter().filter(inside).cloned().collect(),
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        assert_eq!(request.metadata().get("hasleader").unwrap(), "true");
        Ok(Response::new(self.list(request.get_ref())))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let answer = |op: &RequestOp| match &op.request {
            Some(request_op::Request::RequestRange(range)) => ResponseOp {
                response: Some(response_op::Response::ResponseRange(self.list(range))),
            },
            other => panic!("{other:?}"),
        };
        Ok(Response::new(TxnResponse {
            header: self.header(),
            succeeded: request.get_ref().compare.iter().all(|c| self.holds(c)),
            responses: request.get_ref().success.iter().map(answer).collect(),
        }))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Err(Status::invalid_argument("etcdserver: key is not provided"))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Watch for Etcd {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let etcd = self.clone();
        tokio::spawn(async move {
            let create = match requests.message().await.unwrap().unwrap().request_union {
                Some(watch_request::RequestUnion::CreateRequest(create)) => create,
                other => panic!("{other:?}"),
            };
            let mut answer = WatchResponse {
                header: etcd.header(),
                created: true,
                ..Default::default()
            };
            let compacted = etcd.0.compacted.load(Ordering::SeqCst);
            if create.start_revision < compacted {
                (answer.canceled, answer.compact_revision) = (true, compacted);
                let _ = sender.send(Ok(answer)).await;
                return;
            }
            let _ = sender.send(Ok(answer)).await;
            let mut bell = etcd.0.bell.subscribe();
            while bell.changed().await.is_ok() && *bell.borrow() {
                let event = mvccpb::Event {
                    kv: Some(KeyValue {
                        key: create.key.clone(),
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let answer = WatchResponse {
                    header: etcd.header(),
                    events: vec![event],
                    ..Default::default()
                };
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn start(etcd: &Etcd) -> String {
    let (listener, url) = bind().await;
    let server = Server::builder()
        .add_service(KvServer::new(etcd.clone()))
        .add_service(WatchServer::new(etcd.clone()));
    serve(listener, server);
    url
}

#[tokio::test]
async fn a_dead_end_point_is_left_for_the_next_one_and_a_refusal_is_final() {
    let etcd = Etcd::new();
    let dead = "http://127.0.0.1:9".to_owned();
    let client = EtcdClient::new(&[dead, start(&etcd).await]).unwrap();
    etcd.put("a/1".into());
    etcd.put("a/2".into());
    etcd.put("b".into());
    let (kvs, revision) = client.get_prefix(b"a/").await.unwrap();
    assert_eq!((kvs.len(), revision), (2, 13));
    let error = client.put(Bytes::new(), Bytes::new()).await.unwrap_err();
    assert_eq!(error.class(), Class::Permanent);
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_asks_for_a_new_list() {
    let etcd = Etcd::new();
    let client = EtcdClient::new(&[start(&etcd).await]).unwrap();
    etcd.0.compacted.store(9, Ordering::SeqCst);
    let mut watcher = client.watch_prefix(b"a/", 5).await.unwrap();
    let error = watcher.next().await.unwrap_err();
    assert!(
        matches!(error, EtcdError::Compacted { revision: 9 }),
        "{error}"
    );
    assert_eq!(error.class(), Class::Refresh);
}

async fn next(events: &mut tokio::sync::mpsc::Receiver<TaskEvent>) -> TaskEvent {
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv());
    event.await.unwrap().unwrap()
}

#[tokio::test]
async fn tasks_are_followed_through_the_watch_and_across_its_loss() {
    let etcd = Etcd::new();
    etcd.put(keys::info("a"));
    let client = EtcdClient::new(&[start(&etcd).await]).unwrap();
    let mut events = TaskRegistry::new(client).events();
    let added = |event: TaskEvent| match event {
        TaskEvent::Added(task) => (task.name, task.paused),
        other => panic!("{other:?}"),
    };
    assert_eq!(added(next(&mut events).await), ("a".to_owned(), false));
    // Give both watches the time to stand.
    tokio::time::sleep(Duration::from_millis(200)).await;

    etcd.put(keys::pause("a"));
    etcd.ring(true);
    assert_eq!(next(&mut events).await, TaskEvent::Paused("a".to_owned()));

    // The other watch rang as well: let its list pass.
    tokio::time::sleep(Duration::from_millis(200)).await;

    // What happens while nobody watches is found by the list.
    etcd.remove(&keys::pause("a"));
    etcd.put(keys::info("b"));
    etcd.ring(false);
    assert!(matches!(
        next(&mut events).await,
        TaskEvent::Disconnected(_)
    ));
    let (first, second) = (next(&mut events).await, next(&mut events).await);
    assert!(matches!(first, TaskEvent::Resumed(task) if task.name == "a"));
    assert_eq!(added(second), ("b".to_owned(), false));
}

#[tokio::test]
async fn a_checkpoint_is_followed_across_lost_and_compacted_watches_until_its_task_is_gone() {
    let etcd = Etcd::new();
    let global = keys::global_checkpoint("a");
    let raise = |ts: u64| etcd.put_value(global.clone(), ts.to_be_bytes().to_vec().into());
    etcd.put(keys::info("a"));
    let registered = etcd.0.revision.load(Ordering::SeqCst);
    let client = EtcdClient::new(&[start(&etcd).await]).unwrap();
    let mut followed = TaskRegistry::new(client).follow_global("a", registered);
    let mut reaches = async |ts: u64| {
        let found = followed.wait_for(|now| *now >= Some(Ts::new(ts)));
        let found = tokio::time::timeout(Duration::from_secs(10), found).await;
        found.unwrap().map(|now| now.unwrap().get()).ok()
    };
    raise(5);
    etcd.ring(true);
    assert_eq!(reaches(5).await, Some(5));
    // Raised while nobody watches, and the watch from before it is compacted.
    raise(6);
    etcd.0
        .compacted
        .store(etcd.0.revision.load(Ordering::SeqCst), Ordering::SeqCst);
    etcd.ring(false);
    assert_eq!(reaches(6).await, Some(6));
    // A value that falls is not told.
    raise(4);
    etcd.ring(true);
    tokio::time::sleep(Duration::from_millis(200)).await;
    raise(7);
    etcd.ring(true);
    assert_eq!(reaches(7).await, Some(7));
    // The next task of that name has a checkpoint of its own.
    etcd.put(keys::info("a"));
    raise(9);
    etcd.ring(true);
    assert_eq!(reaches(8).await, None, "the channel closes");
}
