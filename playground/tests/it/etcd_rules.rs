//! etcd on PD's port: list, watch from a revision, transactions, leases.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pitr_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pitr_proto::etcdserverpb::kv_client::KvClient;
use pitr_proto::etcdserverpb::lease_client::LeaseClient;
use pitr_proto::etcdserverpb::request_op::Request as Op;
use pitr_proto::etcdserverpb::watch_client::WatchClient;
use pitr_proto::etcdserverpb::watch_request::RequestUnion;
use pitr_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use pitr_proto::mvccpb::Event;
use pitr_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::system::{SELDOM, System};

/// A watch of a range.
pub struct Watching {
    _requests: mpsc::UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watching {
    pub async fn start(
        channel: &Channel,
        prefix: &'static str,
        end: &'static str,
        from: i64,
    ) -> Watching {
        let (requests, receiver) = mpsc::unbounded_channel();
        let create = WatchCreateRequest {
            key: prefix.into(),
            range_end: end.into(),
            start_revision: from,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(create).unwrap();
        let mut client = WatchClient::new(channel.clone());
        let answers = client
            .watch(UnboundedReceiverStream::new(receiver))
            .await
            .unwrap();
        let mut watching = Watching {
            _requests: requests,
            answers: answers.into_inner(),
        };
        assert!(watching.next().await.created);
        watching
    }

    async fn next(&mut self) -> WatchResponse {
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, self.answers.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(self.next().await.events);
        }
        events
    }
}

fn short(event: &Event) -> (i32, &[u8], &[u8], i64) {
    let kv = event.kv.as_ref().unwrap();
    (event.r#type, &kv.key, &kv.value, kv.mod_revision)
}

async fn put(kv: &mut KvClient<Channel>, key: &'static str, value: &'static str) -> i64 {
    let request = PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    };
    kv.put(request)
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
        .revision
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_the_revision_after_a_list_misses_and_repeats_nothing() {
    let system = System::start(SELDOM).await;
    let mut kv = KvClient::new(system.pd_channel.clone());
    let first = put(&mut kv, "/t/a", "1").await;
    put(&mut kv, "/u/other", "x").await;
    let last = put(&mut kv, "/t/a", "2").await;
    let list = RangeRequest {
        key: "/t/".into(),
        range_end: "/t0".into(),
        ..RangeRequest::default()
    };
    let list = kv.range(list).await.unwrap().into_inner();
    assert_eq!(list.count, 1);
    let entry = &list.kvs[0];
    assert_eq!(
        (entry.create_revision, entry.mod_revision, entry.version),
        (first, last, 2)
    );
    let revision = list.header.unwrap().revision;
    assert_eq!(revision, last);
    // Written between the list and the watch.
    let missed = put(&mut kv, "/t/b", "3").await;
    let mut watching = Watching::start(&system.pd_channel, "/t/", "/t0", revision + 1).await;
    put(&mut kv, "/u/other", "y").await;
    let delete = DeleteRangeRequest {
        key: "/t/".into(),
        range_end: "/t0".into(),
        ..DeleteRangeRequest::default()
    };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 2);
    let end = deleted.header.unwrap().revision;
    let events = watching.events(3).await;
    let (put, delete) = (i32::from(EventType::Put), i32::from(EventType::Delete));
    let seen: Vec<_> = events.iter().map(short).collect();
    assert_eq!(
        seen,
        [
            (put, &b"/t/b"[..], &b"3"[..], missed),
            (delete, b"/t/a", b"", end),
            (delete, b"/t/b", b"", end),
        ]
    );
    assert_eq!(events[1].prev_kv.as_ref().unwrap().value, "2");
    // The whole history is there from any revision that was not compacted.
    let mut again = Watching::start(&system.pd_channel, "/t/", "/t0", first).await;
    assert_eq!(again.events(5).await.len(), 5);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_all_or_its_other_branch_at_one_revision() {
    let system = System::start(SELDOM).await;
    let mut kv = KvClient::new(system.pd_channel.clone());
    let put_op = |key: &'static str, value: &'static str| RequestOp {
        request: Some(Op::RequestPut(PutRequest {
            key: key.into(),
            value: value.into(),
            ..PutRequest::default()
        })),
    };
    let absent = |key: &'static str| Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.into(),
        target_union: Some(TargetUnion::CreateRevision(0)),
        range_end: Vec::new().into(),
    };
    let txn = || TxnRequest {
        compare: vec![absent("/x/a"), absent("/x/b")],
        success: vec![put_op("/x/a", "1"), put_op("/x/b", "2")],
        failure: vec![put_op("/x/lost", "1")],
    };
    let first = kv.txn(txn()).await.unwrap().into_inner();
    assert!(first.succeeded);
    assert_eq!(first.responses.len(), 2);
    let second = kv.txn(txn()).await.unwrap().into_inner();
    assert!(!second.succeeded);
    let all = RangeRequest {
        key: "/x/".into(),
        range_end: "/x0".into(),
        ..RangeRequest::default()
    };
    let all = kv.range(all).await.unwrap().into_inner();
    let seen: Vec<_> = all
        .kvs
        .iter()
        .map(|k| (k.key.clone(), k.mod_revision))
        .collect();
    let (one, two) = (
        first.header.unwrap().revision,
        second.header.unwrap().revision,
    );
    assert_eq!(two, one + 1);
    let expected: Vec<(Bytes, i64)> = vec![
        ("/x/a".into(), one),
        ("/x/b".into(), one),
        ("/x/lost".into(), two),
    ];
    assert_eq!(seen, expected);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_ends_with_its_lease_and_the_watch_sees_it() {
    let system = System::start(SELDOM).await;
    let mut kv = KvClient::new(system.pd_channel.clone());
    let mut leases = LeaseClient::new(system.pd_channel.clone());
    let lease = leases
        .lease_grant(LeaseGrantRequest { ttl: 1, id: 0 })
        .await
        .unwrap()
        .into_inner();
    assert!(lease.id != 0 && lease.ttl >= 1);
    let request = PutRequest {
        key: "/l/a".into(),
        value: "v".into(),
        lease: lease.id,
        prev_kv: false,
    };
    let revision = kv
        .put(request)
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
        .revision;
    let mut watching = Watching::start(&system.pd_channel, "/l/", "/l0", revision).await;
    let events = watching.events(2).await;
    assert_eq!(events[0].kv.as_ref().unwrap().lease, lease.id);
    assert_eq!(events[1].r#type(), EventType::Delete);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_revisions_survive_a_restart() {
    let system = System::start(SELDOM).await;
    let mut kv = KvClient::new(system.pd_channel.clone());
    let first = put(&mut kv, "/r/a", "1").await;
    let system = system.restart(SELDOM).await;
    let mut kv = KvClient::new(system.pd_channel.clone());
    let read = RangeRequest {
        key: "/r/a".into(),
        ..RangeRequest::default()
    };
    let read = kv.range(read).await.unwrap().into_inner();
    assert_eq!(
        (read.kvs[0].mod_revision, read.kvs[0].value.as_ref()),
        (first, &b"1"[..])
    );
    assert!(put(&mut kv, "/r/b", "2").await > first);
    // History may be gone after a restart, but then the watcher is told and lists again.
    let mut watching = Watching::start(&system.pd_channel, "/r/", "/r0", first).await;
    let answer = watching.next().await;
    if answer.canceled {
        assert!(answer.compact_revision > first, "{answer:?}");
        let from = answer.compact_revision;
        let mut again = Watching::start(&system.pd_channel, "/r/", "/r0", from).await;
        assert_eq!(again.events(1).await[0].kv.as_ref().unwrap().key, "/r/b");
    } else {
        assert_eq!(answer.events[0].kv.as_ref().unwrap().mod_revision, first);
    }
    system.stop().await;
}
