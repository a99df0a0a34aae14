use pitr_proto::kvrpcpb::write_conflict::Reason;
use pitr_proto::kvrpcpb::*;

use super::{Kv, conflict, mutation, put};

#[test]
fn a_committed_write_conflicts_with_an_older_transaction() {
    let kv = Kv::new();
    kv.must_put("a", "1", 10, 20);
    let late = kv.prewrite(vec![put("a", "x")], 15);
    assert_eq!(conflict(&late.errors), (Reason::Optimistic, 10, 20));
    assert!(!kv.is_locked("a"));
    kv.must_prewrite(vec![put("a", "2")], 20);
}

#[test]
fn all_locks_in_the_way_are_reported_and_nothing_is_written() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("b", "1"), put("c", "1")], 10);
    let blocked = kv.prewrite(vec![put("a", "2"), put("b", "2"), put("c", "2")], 30);
    let keys: Vec<_> = blocked
        .errors
        .iter()
        .map(|e| e.locked.as_ref().unwrap().key.clone())
        .collect();
    assert_eq!(keys, ["b", "c"]);
    assert!(!kv.is_locked("a"));
}

#[test]
fn a_repeated_prewrite_changes_nothing() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1")], 10);
    let before = kv.info("a");
    kv.must_prewrite(vec![put("a", "other")], 10);
    assert_eq!(kv.info("a"), before);
}

#[test]
fn a_transaction_that_was_rolled_back_cannot_prewrite() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1")], 10);
    assert_eq!(kv.rollback(&["a"], 10), None);
    let again = kv.prewrite(vec![put("a", "1")], 10);
    assert_eq!(conflict(&again.errors), (Reason::SelfRolledBack, 10, 10));
}

#[test]
fn an_insert_needs_a_key_that_does_not_exist_behind_rollbacks_too() {
    let kv = Kv::new();
    let insert = |start| kv.prewrite(vec![mutation(Op::Insert, "a", "n")], start);
    let check = |start| kv.prewrite(vec![mutation(Op::CheckNotExists, "a", "")], start);
    assert_eq!(check(5), PrewriteResponse::default());
    assert!(!kv.is_locked("a"), "a check leaves no lock");
    kv.must_put("a", "1", 10, 20);
    assert!(insert(30).errors[0].already_exist.is_some());
    assert_eq!(kv.rollback(&["a"], 32), None);
    assert!(insert(35).errors[0].already_exist.is_some());
    assert!(check(36).errors[0].already_exist.is_some());
    kv.must_prewrite(vec![mutation(Op::Del, "a", "")], 40);
    assert_eq!(kv.commit(&["a"], 40, 50), None);
    assert_eq!(insert(60), PrewriteResponse::default());
    assert_eq!(kv.commit(&["a"], 60, 70), None);
    assert_eq!(kv.value("a", 70).as_deref(), Some("n"));
}

#[test]
fn a_long_value_lies_in_the_default_family_and_goes_with_a_rollback() {
    let kv = Kv::new();
    let (short, long) = ("s".repeat(255), "l".repeat(256));
    kv.must_put("a", &short, 10, 20);
    assert_eq!(kv.info("a").values, []);
    kv.must_put("a", &long, 30, 40);
    kv.must_put("a", "", 50, 60);
    assert_eq!(kv.info("a").values[0].start_ts, 30);
    assert_eq!(kv.value("a", 20), Some(short));
    assert_eq!(kv.value("a", 40), Some(long.clone()));
    assert_eq!(kv.value("a", 60).as_deref(), Some(""));
    kv.must_prewrite(vec![put("b", &long)], 70);
    assert_eq!(kv.info("b").values.len(), 1);
    assert_eq!(kv.rollback(&["b"], 70), None);
    assert_eq!(kv.info("b").values, []);
}

#[test]
fn a_one_phase_commit_is_above_every_read() {
    let kv = Kv::new();
    assert_eq!(kv.value("b", 100), None);
    let long = "l".repeat(300);
    let response = kv.one_pc(vec![put("a", "1"), put("b", &long)], 50);
    assert_eq!(
        (response.min_commit_ts, response.one_pc_commit_ts),
        (101, 101)
    );
    assert_eq!(kv.records("a"), [(Op::Put, 50, 101, "")]);
    assert!(!kv.is_locked("a"));
    assert_eq!(kv.value("b", 100), None, "the earlier read stays true");
    assert_eq!(kv.value("b", 101), Some(long));
}

#[test]
fn a_read_of_the_newest_does_not_move_commit_timestamps() {
    let kv = Kv::new();
    assert_eq!(kv.value("a", u64::MAX), None);
    assert_eq!(kv.one_pc(vec![put("a", "1")], 50).one_pc_commit_ts, 51);
}

#[test]
fn a_repeated_one_phase_commit_answers_with_its_first_commit_ts() {
    let kv = Kv::new();
    let first = kv.one_pc(vec![put("a", "1")], 50);
    assert_eq!(kv.value("b", 70), None);
    assert_eq!(kv.one_pc(vec![put("a", "1")], 50), first);
    let other = kv.one_pc(vec![put("a", "1")], 49);
    assert_eq!(conflict(&other.errors).0, Reason::Optimistic);
}

#[test]
fn an_async_commit_tells_its_smallest_commit_ts_and_its_secondaries() {
    let kv = Kv::new();
    assert_eq!(kv.value("x", 30), None);
    assert_eq!(
        kv.async_prewrite(vec![put("a", "1"), put("b", "2")], 20, 0),
        31
    );
    let lock = kv.info("a").lock.unwrap();
    assert!(lock.use_async_commit);
    assert_eq!(lock.secondaries, ["b"]);
    assert_eq!(kv.info("b").lock.unwrap().secondaries, [""; 0]);
    // Repeated: the same, although readers have come since.
    assert_eq!(kv.value("x", 40), None);
    assert_eq!(
        kv.async_prewrite(vec![put("a", "1"), put("b", "2")], 20, 0),
        31
    );
    // Too early a commit is refused.
    let early = kv
        .commit(&["a"], 20, 30)
        .unwrap()
        .commit_ts_expired
        .unwrap();
    assert_eq!((early.attempted_commit_ts, early.min_commit_ts), (30, 31));
    assert_eq!(kv.commit(&["a", "b"], 20, 31), None);
}

#[test]
fn a_commit_ts_above_the_clients_limit_becomes_two_phases() {
    let kv = Kv::new();
    assert_eq!(kv.value("x", 100), None);
    assert_eq!(
        kv.async_prewrite(vec![put("a", "1"), put("b", "2")], 20, 100),
        0
    );
    assert!(!kv.info("a").lock.unwrap().use_async_commit);
    // Asked again with room: the locks decide, it stays two-phase.
    assert_eq!(
        kv.async_prewrite(vec![put("a", "1"), put("b", "2")], 20, 0),
        0
    );
    let response = kv.fixture.store.prewrite(PrewriteRequest {
        try_one_pc: true,
        max_commit_ts: 100,
        ..kv.prewrite_request(vec![put("c", "1")], 20)
    });
    assert_eq!(response, PrewriteResponse::default());
    assert!(kv.is_locked("c"));
}

#[test]
fn an_absent_key_of_an_insert_counts_as_read() {
    let kv = Kv::new();
    kv.must_prewrite(vec![mutation(Op::CheckNotExists, "a", "")], 100);
    let response = kv.one_pc(vec![put("a", "1")], 50);
    assert_eq!(response.one_pc_commit_ts, 101);
}

#[test]
fn a_commit_without_a_lock_is_told_apart_from_a_repeated_one() {
    let kv = Kv::new();
    kv.must_put("a", "1", 10, 20);
    assert_eq!(kv.commit(&["a"], 10, 20), None);
    assert_eq!(kv.commit(&["a"], 10, 25), None);
    let lost = kv.commit(&["b"], 10, 20).unwrap();
    assert_eq!(lost.txn_lock_not_found.unwrap().key, "b");
    assert!(
        kv.commit(&["a"], 30, 30)
            .unwrap()
            .abort
            .contains("InvalidTxnTso")
    );
}

#[test]
fn a_lock_only_record_says_where_the_last_change_is() {
    let kv = Kv::new();
    let lock = |start| {
        kv.must_prewrite(vec![mutation(Op::Lock, "a", "")], start);
        assert_eq!(kv.commit(&["a"], start, start + 5), None);
        let newest = &kv.info("a").writes[0];
        (newest.last_change_ts, newest.versions_to_last_change)
    };
    assert_eq!(lock(10), (0, 1));
    kv.must_put("a", "1", 20, 21);
    assert_eq!(lock(30), (21, 1));
    assert_eq!(lock(40), (21, 2));
    assert_eq!(kv.value("a", 50).as_deref(), Some("1"));
}
