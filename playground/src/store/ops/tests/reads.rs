use pitr_proto::kvrpcpb::*;

use super::{Kv, bytes, mutation, put};

fn scan(kv: &Kv, request: ScanRequest) -> Vec<(String, String)> {
    let response = kv.fixture.store.scan(ScanRequest {
        context: kv.context(),
        ..request
    });
    assert_eq!((response.region_error, response.error), (None, None));
    let text = |b: bytes::Bytes| String::from_utf8(b.to_vec()).unwrap();
    response
        .pairs
        .into_iter()
        .map(|pair| match pair.error.and_then(|e| e.locked) {
            Some(lock) => (text(lock.key), "LOCKED".to_owned()),
            None => (text(pair.key), text(pair.value)),
        })
        .collect()
}

fn filled() -> Kv {
    let kv = Kv::new();
    for (i, key) in ["a", "b", "12345678", "123456789", "c"].iter().enumerate() {
        kv.must_put(key, &format!("v{i}"), 10, 20);
    }
    kv.must_put("b", "new", 30, 40);
    kv.must_prewrite(vec![mutation(Op::Del, "c", "")], 30);
    assert_eq!(kv.commit(&["c"], 30, 40), None);
    kv.must_prewrite(vec![put("a0", "locked")], 25);
    kv
}

#[test]
fn a_scan_sees_one_point_in_time_in_both_directions() {
    let kv = filled();
    let forward = |ts, limit| ScanRequest {
        version: ts,
        limit,
        ..Default::default()
    };
    let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = list.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        owned.collect()
    };
    let mut expected = pairs(&[
        ("12345678", "v2"),
        ("123456789", "v3"),
        ("a", "v0"),
        ("b", "v1"),
        ("c", "v4"),
    ]);
    assert_eq!(scan(&kv, forward(24, 10)), expected);
    assert_eq!(scan(&kv, forward(24, 2)), expected[..2]);
    let backward = |ts, limit| ScanRequest {
        reverse: true,
        ..forward(ts, limit)
    };
    expected.reverse();
    assert_eq!(scan(&kv, backward(24, 10)), expected);
    let with_lock = pairs(&[
        ("12345678", "v2"),
        ("123456789", "v3"),
        ("a", "v0"),
        ("a0", "LOCKED"),
        ("b", "new"),
    ]);
    assert_eq!(scan(&kv, forward(50, 10)), with_lock);
    assert_eq!(scan(&kv, forward(50, 0)), []);
}

#[test]
fn a_scan_keeps_its_bounds_and_can_leave_the_values_out() {
    let kv = filled();
    let request = |start: &'static str, end: &'static str, reverse| ScanRequest {
        start_key: start.into(),
        end_key: end.into(),
        version: 24,
        limit: 10,
        key_only: true,
        reverse,
        ..Default::default()
    };
    let keys = |request| -> Vec<String> {
        let pairs = scan(&kv, request).into_iter();
        pairs.map(|(key, value)| key + &value).collect()
    };
    assert_eq!(keys(request("123456789", "b", false)), ["123456789", "a"]);
    assert_eq!(keys(request("b", "123456789", true)), ["a", "123456789"]);
    assert_eq!(keys(request("b", "a", false)), [""; 0]);
}

#[test]
fn a_batch_leaves_absent_keys_out_and_reports_locked_ones() {
    let kv = filled();
    let response = kv.fixture.store.batch_get(BatchGetRequest {
        context: kv.context(),
        keys: bytes(&["b", "c", "a0", "none"]),
        version: 50,
        need_commit_ts: true,
    });
    assert_eq!(response.pairs.len(), 2);
    assert_eq!(response.pairs[0].value, "new");
    assert_eq!(response.pairs[0].commit_ts, 40);
    let lock = response.pairs[1].error.as_ref().unwrap().locked.as_ref();
    assert_eq!(lock.unwrap().lock_version, 25);
}

#[test]
fn a_lock_blocks_only_reads_that_might_have_to_see_it() {
    let kv = Kv::new();
    kv.must_put("a", "old", 10, 20);
    kv.must_prewrite(vec![put("a", "new"), put("b", "new")], 30);
    let read = |key: &str, ts, context: Context| {
        let response = kv.fixture.store.get(GetRequest {
            context: Some(Context {
                resolved_locks: context.resolved_locks,
                committed_locks: context.committed_locks,
                isolation_level: context.isolation_level,
                ..kv.context().unwrap()
            }),
            key: key.to_owned().into(),
            version: ts,
            ..Default::default()
        });
        match response.error {
            Some(error) => {
                assert_eq!(error.locked.unwrap().lock_version, 30);
                "LOCKED".to_owned()
            }
            None if response.not_found => "none".to_owned(),
            None => String::from_utf8(response.value.to_vec()).unwrap(),
        }
    };
    let plain = Context::default;
    assert_eq!(read("a", 29, plain()), "old");
    assert_eq!(read("a", 30, plain()), "LOCKED");
    assert_eq!(
        read("a", u64::MAX, plain()),
        "old",
        "the newest of a primary"
    );
    assert_eq!(read("b", u64::MAX, plain()), "LOCKED");
    let resolved = Context {
        resolved_locks: vec![30],
        ..plain()
    };
    assert_eq!(read("a", 40, resolved), "old");
    let committed = Context {
        committed_locks: vec![30],
        ..plain()
    };
    assert_eq!(read("b", 40, committed), "new");
    let read_committed = Context {
        isolation_level: IsolationLevel::Rc.into(),
        ..plain()
    };
    assert_eq!(read("b", 40, read_committed), "none");
}

#[test]
fn locks_are_found_by_age_and_range_and_resolved_in_one_go() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1"), put("c", "1")], 10);
    kv.must_prewrite(vec![put("b", "1")], 20);
    kv.must_prewrite(vec![put("d", "1")], 30);
    let found = |max, start: &'static str, limit| -> Vec<bytes::Bytes> {
        let response = kv.fixture.store.scan_lock(ScanLockRequest {
            context: kv.context(),
            max_version: max,
            start_key: start.into(),
            limit,
            ..Default::default()
        });
        response.locks.into_iter().map(|l| l.key).collect()
    };
    assert_eq!(found(20, "", 0), ["a", "b", "c"]);
    assert_eq!(found(30, "b", 2), ["b", "c"]);
    let response = kv.fixture.store.resolve_lock(ResolveLockRequest {
        context: kv.context(),
        txn_infos: vec![
            TxnInfo {
                txn: 10,
                status: 15,
                ..Default::default()
            },
            TxnInfo {
                txn: 20,
                ..Default::default()
            },
        ],
        ..Default::default()
    });
    assert_eq!(response, ResolveLockResponse::default());
    assert_eq!(found(u64::MAX, "", 0), ["d"]);
    assert_eq!(kv.value("c", 15).as_deref(), Some("1"));
    assert_eq!(kv.records("b"), [(Op::Rollback, 20, 20, "protected")]);
    assert_eq!(
        kv.resolve(30, 30).error.map(|e| e.abort.is_empty()),
        Some(false)
    );
}

#[test]
fn delete_range_removes_versions_values_and_locks_of_the_range_only() {
    let kv = Kv::new();
    let long = "l".repeat(300);
    for key in ["a", "b", "c"] {
        kv.must_put(key, &long, 10, 20);
    }
    kv.must_prewrite(vec![put("b", "locked")], 30);
    let delete = |start: &'static str, end: &'static str| {
        let response = kv.fixture.store.delete_range(DeleteRangeRequest {
            context: kv.context(),
            start_key: start.into(),
            end_key: end.into(),
            ..Default::default()
        });
        response.error
    };
    assert_eq!(delete("b", "c"), "");
    assert_eq!(kv.info("b"), MvccInfo::default());
    assert_eq!(kv.value("a", 50), Some(long.clone()));
    assert_eq!(kv.value("c", 50), Some(long));
    assert!(delete("c", "b").contains("not above"));
}

#[test]
fn a_key_of_another_region_is_refused() {
    let kv = Kv::new();
    kv.fixture.store.split_at_user_keys(&[b"m"]).unwrap();
    let error = kv.get("z", 10).error.unwrap();
    assert!(
        error
            .abort
            .contains("Key 7A00000000000000F8 is out of [region 100] [, 6D00000000000000F8)")
    );
    let error = &kv.prewrite(vec![put("z", "1")], 10).errors[0];
    assert!(error.abort.contains("is out of"));
    let whole = ScanRequest {
        version: 5,
        limit: 10,
        end_key: "zz".into(),
        ..Default::default()
    };
    kv.must_put("l", "1", 1, 2);
    assert_eq!(scan(&kv, whole), [("l".to_owned(), "1".to_owned())]);
}
