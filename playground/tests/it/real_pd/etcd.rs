//! The calls of etcd that clients of the task registry make, good ones and bad ones.

use bytes::Bytes;
use futures::stream;
use pitr_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pitr_proto::etcdserverpb::request_op::Request as Op;
use pitr_proto::etcdserverpb::watch_request::RequestUnion;
use pitr_proto::etcdserverpb::*;
use serde_json::{Value, json};

use super::answer::Asked;

const PREFIX: &str = "/tidb/br-stream/info/";

fn key(name: &str) -> Bytes {
    Bytes::from(format!("{PREFIX}{name}"))
}

fn put(name: &str, value: &'static str) -> PutRequest {
    PutRequest {
        key: key(name),
        value: value.into(),
        ..Default::default()
    }
}

/// Asks everything.
pub async fn ask(asked: &mut Asked) {
    let base = writes(asked).await;
    reads(asked, base).await;
    transactions(asked).await;
    watches(asked, base).await;
}

/// Returns the revision before the first write.
async fn writes(asked: &mut Asked) -> i64 {
    let mut kv = asked.kv.clone();
    let first = kv.put(put("a", "1")).await.unwrap().into_inner();
    let base = first.header.unwrap().revision - 1;
    let lease = PutRequest {
        lease: 4711,
        ..put("a", "2")
    };
    let answer = kv.put(lease).await;
    asked.plain("Put with an unknown lease", answer, |_| Value::Null);
    let empty = PutRequest {
        key: Bytes::new(),
        ..put("", "2")
    };
    let answer = kv.put(empty).await;
    asked.plain("Put without a key", answer, |_| Value::Null);
    kv.put(put("a", "2")).await.unwrap();
    kv.put(put("b", "3")).await.unwrap();
    base
}

async fn reads(asked: &mut Asked, base: i64) {
    let mut kv = asked.kv.clone();
    let all = RangeRequest {
        key: PREFIX.into(),
        range_end: "/tidb/br-stream/info0".into(),
        ..Default::default()
    };
    let future = RangeRequest {
        revision: base + 1_000_000,
        ..all.clone()
    };
    let past = RangeRequest {
        revision: base + 1,
        ..all.clone()
    };
    for (what, request) in [
        ("now", all),
        ("in the past", past),
        ("in the future", future),
    ] {
        let answer = kv.range(request).await;
        asked.plain(&format!("Range {what}"), answer, |a| {
            let kvs = a.get_ref().kvs.iter();
            kvs.map(|kv| {
                json!([
                    String::from_utf8_lossy(&kv.key),
                    String::from_utf8_lossy(&kv.value),
                    kv.create_revision - base,
                    kv.mod_revision - base,
                    kv.version,
                    kv.lease,
                ])
            })
            .collect()
        });
    }
    let delete = DeleteRangeRequest {
        key: key("nothing"),
        ..Default::default()
    };
    let answer = kv.delete_range(delete).await;
    asked.plain("DeleteRange of nothing", answer, |a| {
        json!(a.get_ref().deleted)
    });
}

async fn transactions(asked: &mut Asked) {
    let mut kv = asked.kv.clone();
    let op = |put: PutRequest| RequestOp {
        request: Some(Op::RequestPut(put)),
    };
    let absent = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key("a"),
        target_union: Some(TargetUnion::CreateRevision(0)),
        range_end: Vec::new().into(),
    };
    for (what, compare, success) in [
        (
            "the same key twice",
            vec![],
            vec![op(put("c", "1")), op(put("c", "2"))],
        ),
        ("a failed comparison", vec![absent], vec![op(put("c", "1"))]),
        ("nothing to do", vec![], vec![]),
    ] {
        let request = TxnRequest {
            compare,
            success,
            failure: Vec::new(),
        };
        let answer = kv.txn(request).await;
        asked.plain(&format!("Txn, {what}"), answer, |a| {
            json!({"succeeded": a.get_ref().succeeded, "responses": a.get_ref().responses.len()})
        });
    }
}

async fn watches(asked: &mut Asked, base: i64) {
    for (what, start_revision, answers) in [("from now", 0, 1), ("from the past", base + 1, 2)] {
        let create = WatchCreateRequest {
            key: PREFIX.into(),
            range_end: "/tidb/br-stream/info0".into(),
            start_revision,
            ..Default::default()
        };
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        let requests = stream::StreamExt::chain(stream::iter([create]), stream::pending());
        let mut stream = asked
            .watch
            .clone()
            .watch(requests)
            .await
            .unwrap()
            .into_inner();
        for n in 1..=answers {
            let answer = stream.message().await.map(|a| a.unwrap());
            asked.plain(&format!("Watch {what}, answer {n}"), answer, |a| {
                let events = a.events.iter();
                let events = events.map(|e| {
                    let kv = e.kv.clone().unwrap_or_default();
                    json!([
                        e.r#type,
                        String::from_utf8_lossy(&kv.value),
                        kv.mod_revision - base
                    ])
                });
                json!({
                    "created": a.created,
                    "canceled": a.canceled,
                    "compact_revision": a.compact_revision,
                    "events": events.collect::<Vec<_>>(),
                })
            });
        }
    }
}
