//! Executes KV requests on a [`Model`]. Pure: no lock, no disk, no clock.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;
use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pitr_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pitr_proto::etcdserverpb::request_op::Request;
use pitr_proto::etcdserverpb::response_op::Response;
use pitr_proto::mvccpb::KeyValue;

use super::error::EtcdError;
use super::model::{KeySpan, Model};

/// `Range`.
pub fn range(model: &Model, request: &pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
    let span = KeySpan::new(&request.key, &request.range_end)?;
    let mut kvs = model.range(&span, request.revision)?;
    let count = kvs.len() as i64;
    if request.count_only {
        return Ok(pb::RangeResponse {
            count,
            ..Default::default()
        });
    }
    sort(&mut kvs, request.sort_order(), request.sort_target());
    let mut more = false;
    if let Ok(limit @ 1..) = usize::try_from(request.limit) {
        more = kvs.len() > limit;
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(pb::RangeResponse {
        header: None,
        kvs,
        more,
        count,
    })
}

fn sort(kvs: &mut [KeyValue], order: SortOrder, target: SortTarget) {
    match target {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
        SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
        SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
        SortTarget::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if order == SortOrder::Descend {
        kvs.reverse();
    }
}

/// `Put`. Whether the lease exists is the caller's to check.
pub fn put(model: &mut Model, request: &pb::PutRequest) -> Result<pb::PutResponse, EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    let before = model.put(request.key.clone(), request.value.clone(), request.lease);
    Ok(pb::PutResponse {
        header: None,
        prev_kv: before.filter(|_| request.prev_kv),
    })
}

/// `DeleteRange`.
pub fn delete_range(
    model: &mut Model,
    request: &pb::DeleteRangeRequest,
) -> Result<pb::DeleteRangeResponse, EtcdError> {
    let span = KeySpan::new(&request.key, &request.range_end)?;
    let mut prev_kvs = Vec::new();
    for kv in model.range(&span, 0)? {
        prev_kvs.extend(model.delete(&kv.key));
    }
    let deleted = prev_kvs.len() as i64;
    if !request.prev_kv {
        prev_kvs.clear();
    }
    Ok(pb::DeleteRangeResponse {
        header: None,
        deleted,
        prev_kvs,
    })
}

/// `Txn`: all compares on the state before, then one of the two lists; later operations see
/// earlier ones.
pub fn txn(model: &mut Model, request: &pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
    for branch in [&request.success, &request.failure] {
        refuse_duplicate_puts(branch, &mut BTreeSet::new())?;
    }
    execute_txn(model, request)
}

fn execute_txn(model: &mut Model, request: &pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
    let mut succeeded = true;
    for compare in &request.compare {
        succeeded = succeeded && holds(model, compare)?;
    }
    let branch = match succeeded {
        true => &request.success,
        false => &request.failure,
    };
    let mut responses = Vec::with_capacity(branch.len());
    for op in branch {
        let response = match &op.request {
            Some(Request::RequestRange(r)) => Some(Response::ResponseRange(range(model, r)?)),
            Some(Request::RequestPut(r)) => Some(Response::ResponsePut(put(model, r)?)),
            Some(Request::RequestDeleteRange(r)) => {
                Some(Response::ResponseDeleteRange(delete_range(model, r)?))
            }
            Some(Request::RequestTxn(r)) => Some(Response::ResponseTxn(execute_txn(model, r)?)),
            None => None,
        };
        responses.push(pb::ResponseOp { response });
    }
    Ok(pb::TxnResponse {
        header: None,
        succeeded,
        responses,
    })
}

fn refuse_duplicate_puts<'a>(
    ops: &'a [pb::RequestOp],
    seen: &mut BTreeSet<&'a Bytes>,
) -> Result<(), EtcdError> {
    for op in ops {
        match &op.request {
            Some(Request::RequestPut(put)) if !seen.insert(&put.key) => {
                return Err(EtcdError::DuplicateKey);
            }
            Some(Request::RequestTxn(inner)) => {
                // Only one branch of the inner transaction runs: each is compared by itself.
                let mut success = seen.clone();
                refuse_duplicate_puts(&inner.success, &mut success)?;
                refuse_duplicate_puts(&inner.failure, seen)?;
                seen.extend(success);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a comparison holds of every key that it names, or of a missing one if there is none.
fn holds(model: &Model, compare: &pb::Compare) -> Result<bool, EtcdError> {
    let span = KeySpan::new(&compare.key, &compare.range_end)?;
    let found = model.range(&span, 0)?;
    Ok(match &found[..] {
        [] => holds_of(None, compare),
        found => found.iter().all(|kv| holds_of(Some(kv), compare)),
    })
}

fn holds_of(found: Option<&KeyValue>, compare: &pb::Compare) -> bool {
    let missing = KeyValue::default();
    let kv = found.unwrap_or(&missing);
    let ordering = match (compare.target(), &compare.target_union) {
        (CompareTarget::Version, union) => kv.version.cmp(&version(union)),
        (CompareTarget::Create, union) => kv.create_revision.cmp(&version(union)),
        (CompareTarget::Mod, union) => kv.mod_revision.cmp(&version(union)),
        (CompareTarget::Lease, union) => kv.lease.cmp(&version(union)),
        (CompareTarget::Value, union) => {
            // A missing key has no value, not an empty one: nothing holds of it.
            let Some(kv) = found else { return false };
            match union {
                Some(TargetUnion::Value(value)) => kv.value.cmp(value),
                _ => kv.value.cmp(&Bytes::new()),
            }
        }
    };
    match compare.result() {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::NotEqual => ordering != Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
    }
}

/// The number a compare names; an absent one is 0, as in proto3.
fn version(union: &Option<TargetUnion>) -> i64 {
    match union {
        Some(
            TargetUnion::Version(n)
            | TargetUnion::CreateRevision(n)
            | TargetUnion::ModRevision(n)
            | TargetUnion::Lease(n),
        ) => *n,
        Some(TargetUnion::Value(_)) | None => 0,
    }
}

/// The leases that a transaction's puts name, in either branch.
pub fn leases_of(ops: &[pb::RequestOp], leases: &mut Vec<i64>) {
    for op in ops {
        match &op.request {
            Some(Request::RequestPut(put)) if put.lease != 0 => leases.push(put.lease),
            Some(Request::RequestTxn(inner)) => {
                leases_of(&inner.success, leases);
                leases_of(&inner.failure, leases);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &'static str, value: &'static str) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest {
                key: key.into(),
                value: value.into(),
                ..Default::default()
            })),
        }
    }

    fn range_op(key: &'static str) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(Request::RequestRange(pb::RangeRequest {
                key: key.into(),
                ..Default::default()
            })),
        }
    }

    fn compare(key: &'static str, result: CompareResult, union: TargetUnion) -> pb::Compare {
        let target = match union {
            TargetUnion::Version(_) => CompareTarget::Version,
            TargetUnion::CreateRevision(_) => CompareTarget::Create,
            TargetUnion::ModRevision(_) => CompareTarget::Mod,
            TargetUnion::Value(_) => CompareTarget::Value,
            TargetUnion::Lease(_) => CompareTarget::Lease,
        };
        pb::Compare {
            result: result.into(),
            target: target.into(),
            key: key.into(),
            target_union: Some(union),
            range_end: Bytes::new(),
        }
    }

    #[test]
    fn a_transaction_is_one_revision_and_sees_its_own_puts() {
        let mut model = Model::new(10);
        let request = pb::TxnRequest {
            compare: vec![compare(
                "a",
                CompareResult::Equal,
                TargetUnion::CreateRevision(0),
            )],
            success: vec![put_op("a", "1"), put_op("b", "2"), range_op("a")],
            failure: vec![],
        };
        let answer = txn(&mut model, &request).unwrap();
        model.commit();
        assert!(answer.succeeded);
        assert_eq!(model.revision(), 2);
        let Some(Response::ResponseRange(found)) = &answer.responses[2].response else {
            panic!("no range in {answer:?}");
        };
        assert_eq!(found.kvs[0].value, "1");
        let again = txn(&mut model, &request).unwrap();
        model.commit();
        assert!(!again.succeeded);
        assert_eq!(model.revision(), 2);
    }

    #[test]
    fn compares_look_at_version_revision_and_value() {
        let mut model = Model::new(10);
        model.put("k".into(), "v5".into(), 9);
        model.commit();
        use CompareResult::{Equal, Greater, Less, NotEqual};
        use TargetUnion::{CreateRevision, Lease, ModRevision, Value, Version};
        for (key, result, union, expected) in [
            ("k", Equal, Version(1), true),
            ("k", Greater, Version(1), false),
            ("k", Less, ModRevision(3), true),
            ("k", NotEqual, CreateRevision(2), false),
            ("k", Equal, Lease(9), true),
            ("k", Equal, Value("v5".into()), true),
            ("k", Greater, Value("v4".into()), true),
            ("none", Equal, Version(0), true),
            ("none", NotEqual, Value("x".into()), false),
            ("none", Equal, Value("".into()), false),
        ] {
            let c = compare(key, result, union);
            assert_eq!(holds(&model, &c).unwrap(), expected, "{c:?}");
        }
    }

    #[test]
    fn a_compared_range_holds_of_each_of_its_keys_or_of_a_missing_one() {
        let mut model = Model::new(10);
        for (key, value) in [("p/a", "1"), ("p/b", "2")] {
            model.put(key.into(), value.into(), 0);
            model.commit();
        }
        use CompareResult::{Equal, Less};
        use TargetUnion::{ModRevision, Value};
        for (key, end, result, union, expected) in [
            ("p/", "p0", Less, ModRevision(4), true),
            ("p/", "p0", Less, ModRevision(3), false),
            ("p/", "p0", Equal, Value("1".into()), false),
            ("p/", "p/b", Equal, Value("1".into()), true),
            ("q", "r", Less, ModRevision(1), true),
            ("q", "r", Equal, Value("".into()), false),
        ] {
            let c = pb::Compare {
                range_end: end.into(),
                ..compare(key, result, union)
            };
            assert_eq!(holds(&model, &c).unwrap(), expected, "{c:?}");
        }
    }

    #[test]
    fn two_puts_of_one_key_are_refused_before_anything_happens() {
        let mut model = Model::new(10);
        let request = pb::TxnRequest {
            success: vec![put_op("a", "1"), put_op("a", "2")],
            ..Default::default()
        };
        assert!(matches!(
            txn(&mut model, &request),
            Err(EtcdError::DuplicateKey)
        ));
        assert!(model.pending().is_empty());
    }

    #[test]
    fn a_range_is_sorted_cut_and_counted() {
        let mut model = Model::new(10);
        for (key, value) in [("p/a", "3"), ("p/b", "1"), ("p/c", "2"), ("q", "0")] {
            model.put(key.into(), value.into(), 0);
            model.commit();
        }
        let request = pb::RangeRequest {
            key: "p/".into(),
            range_end: "p0".into(),
            limit: 2,
            sort_order: SortOrder::Descend.into(),
            sort_target: SortTarget::Value.into(),
            ..Default::default()
        };
        let answer = range(&model, &request).unwrap();
        let keys: Vec<_> = answer.kvs.iter().map(|kv| kv.key.clone()).collect();
        assert_eq!(keys, ["p/a", "p/c"]);
        assert!(answer.more);
        assert_eq!(answer.count, 3);
    }
}
