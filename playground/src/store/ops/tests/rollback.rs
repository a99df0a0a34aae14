use pitr_proto::kvrpcpb::*;

use super::{Kv, put};

fn cleanup(kv: &Kv, key: &str, start: u64, current: u64) -> CleanupResponse {
    kv.fixture.store.cleanup(CleanupRequest {
        context: kv.context(),
        key: key.to_owned().into(),
        start_version: start,
        current_ts: current,
    })
}

#[test]
fn the_rollback_of_a_primary_is_protected_and_others_collapse() {
    let kv = Kv::new();
    for start in [10, 20] {
        kv.must_prewrite(vec![put("a", "1"), put("b", "1")], start);
        assert_eq!(kv.rollback(&["a", "b"], start), None);
        assert_eq!(kv.rollback(&["a", "b"], start), None, "again is fine");
    }
    let both = [
        (Op::Rollback, 20, 20, "protected"),
        (Op::Rollback, 10, 10, "protected"),
    ];
    assert_eq!(kv.records("a"), both);
    assert_eq!(kv.records("b"), [(Op::Rollback, 20, 20, "")]);
}

#[test]
fn a_rollback_cannot_undo_a_commit() {
    let kv = Kv::new();
    kv.must_put("a", "1", 10, 20);
    let error = kv.rollback(&["a"], 10).unwrap();
    assert!(error.abort.contains("Committed { start_ts: TimeStamp(10)"));
    assert_eq!(cleanup(&kv, "a", 10, 0).commit_version, 20);
    assert_eq!(kv.value("a", 20).as_deref(), Some("1"));
}

#[test]
fn a_cleanup_respects_a_living_lock() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1")], super::at_ms(1000));
    let alive = cleanup(&kv, "a", super::at_ms(1000), super::at_ms(4000));
    assert!(alive.error.unwrap().locked.is_some());
    let expired = cleanup(&kv, "a", super::at_ms(1000), super::at_ms(4001));
    assert_eq!(expired, CleanupResponse::default());
    assert!(!kv.is_locked("a"));
    assert_eq!(cleanup(&kv, "none", 7, 0), CleanupResponse::default());
    assert_eq!(kv.records("none"), [(Op::Rollback, 7, 7, "protected")]);
}

#[test]
fn a_rollback_at_the_commit_ts_of_another_transaction_keeps_the_commit() {
    let kv = Kv::new();
    kv.must_put("a", "1", 10, 20);
    // Unprotected: nothing is written.
    assert_eq!(kv.rollback(&["a"], 20), None);
    assert_eq!(kv.records("a"), [(Op::Put, 10, 20, "")]);
    // Protected: the commit record carries the mark.
    assert_eq!(cleanup(&kv, "a", 20, 0), CleanupResponse::default());
    assert_eq!(kv.records("a"), [(Op::Put, 10, 20, "overlapped")]);
    assert_eq!(kv.value("a", 20).as_deref(), Some("1"));
    let refused = kv.prewrite(vec![put("a", "2")], 20);
    assert_eq!(
        super::conflict(&refused.errors).0.as_str_name(),
        "SelfRolledBack"
    );
    assert_eq!(
        kv.rollback(&["a"], 20),
        None,
        "it is known to be rolled back"
    );
}

#[test]
fn the_fence_of_an_overlapped_rollback_is_the_next_change() {
    let kv = Kv::new();
    kv.must_put("a", "1", 10, 20);
    kv.must_put("a", "2", 25, 30);
    cleanup(&kv, "a", 20, 0);
    let marked = &kv.info("a").writes[1];
    assert!(marked.has_overlapped_rollback && marked.has_gc_fence);
    assert_eq!(marked.gc_fence, 30);
    assert_eq!(kv.value("a", 25).as_deref(), Some("1"));
    assert_eq!(kv.value("a", 30).as_deref(), Some("2"));
}

#[test]
fn an_async_commit_that_lands_on_a_rolled_back_start_ts_carries_the_mark() {
    let kv = Kv::new();
    assert_eq!(
        kv.async_prewrite(vec![put("a", "1"), put("b", "1")], 10, 0),
        11
    );
    // Transaction 15 is rolled back on the locked key, then 10 commits at 15.
    cleanup(&kv, "a", 15, 0);
    assert_eq!(kv.info("a").lock.unwrap().rollback_ts, [15]);
    assert_eq!(kv.commit(&["a"], 10, 15), None);
    assert_eq!(kv.records("a"), [(Op::Put, 10, 15, "overlapped")]);
    let refused = kv.prewrite(vec![put("a", "2")], 15);
    assert_eq!(
        super::conflict(&refused.errors).0.as_str_name(),
        "SelfRolledBack"
    );
}

#[test]
fn a_calculated_commit_ts_never_takes_the_place_of_a_rollback() {
    let kv = Kv::new();
    cleanup(&kv, "a", 11, 0);
    let response = kv.one_pc(vec![put("b", "1")], 10);
    assert_eq!(response.one_pc_commit_ts, 12);
}
