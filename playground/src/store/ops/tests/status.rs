use pitr_proto::kvrpcpb::*;

use super::{Kv, at_ms, bytes, mutation, put};

fn ask(key: &str, lock_ts: u64, caller: u64, current: u64) -> CheckTxnStatusRequest {
    CheckTxnStatusRequest {
        primary_key: key.to_owned().into(),
        lock_ts,
        caller_start_ts: caller,
        current_ts: current,
        ..Default::default()
    }
}

fn secondaries(kv: &Kv, keys: &[&str], start: u64) -> CheckSecondaryLocksResponse {
    let request = CheckSecondaryLocksRequest {
        context: kv.context(),
        keys: bytes(keys),
        start_version: start,
    };
    kv.fixture.store.check_secondary_locks(request)
}

#[test]
fn a_living_lock_is_described_and_an_expired_one_rolled_back() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1")], at_ms(1000));
    let alive = kv.status(ask("a", at_ms(1000), 0, at_ms(4000)));
    assert_eq!((alive.lock_ttl, alive.action()), (3000, Action::NoAction));
    assert_eq!(alive.lock_info.unwrap().lock_version, at_ms(1000));
    let expired = kv.status(ask("a", at_ms(1000), 0, at_ms(4001)));
    assert_eq!(expired.action(), Action::TtlExpireRollback);
    assert!(!kv.is_locked("a"));
    let known = kv.status(ask("a", at_ms(1000), 0, at_ms(4002)));
    assert_eq!(known, CheckTxnStatusResponse::default());
}

#[test]
fn a_heart_beat_lengthens_a_life_and_never_shortens_it() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1")], at_ms(1000));
    let beat = |key: &str, ttl| {
        kv.fixture.store.txn_heart_beat(TxnHeartBeatRequest {
            context: kv.context(),
            primary_lock: key.to_owned().into(),
            start_version: at_ms(1000),
            advise_lock_ttl: ttl,
            ..Default::default()
        })
    };
    assert_eq!(beat("a", 9000).lock_ttl, 9000);
    assert_eq!(beat("a", 10).lock_ttl, 9000);
    assert!(beat("none", 10).error.unwrap().txn_not_found.is_some());
    let alive = kv.status(ask("a", at_ms(1000), 0, at_ms(9999)));
    assert_eq!(alive.lock_ttl, 9000);
}

#[test]
fn an_unknown_transaction_is_reported_or_rolled_back_for_good() {
    let kv = Kv::new();
    let unknown = kv.status(ask("a", 10, 0, 20));
    assert_eq!(unknown.error.unwrap().txn_not_found.unwrap().start_ts, 10);
    assert_eq!(kv.records("a"), []);
    let request = CheckTxnStatusRequest {
        rollback_if_not_exist: true,
        ..ask("a", 10, 0, 20)
    };
    assert_eq!(
        kv.status(request.clone()).action(),
        Action::LockNotExistRollback
    );
    assert_eq!(kv.records("a"), [(Op::Rollback, 10, 10, "protected")]);
    let pessimistic = CheckTxnStatusRequest {
        resolving_pessimistic_lock: true,
        lock_ts: 11,
        ..request
    };
    assert_eq!(
        kv.status(pessimistic).action(),
        Action::LockNotExistDoNothing
    );
    kv.must_put("a", "1", 30, 40);
    assert_eq!(kv.status(ask("a", 30, 0, 50)).commit_version, 40);
}

#[test]
fn a_reader_pushes_a_lock_that_may_be_pushed() {
    let kv = Kv::new();
    let request = PrewriteRequest {
        min_commit_ts: 11,
        ..kv.prewrite_request(vec![put("a", "1")], 10)
    };
    assert_eq!(kv.fixture.store.prewrite(request).errors, []);
    let pushed = kv.status(ask("a", 10, 20, 25));
    assert_eq!(pushed.action(), Action::MinCommitTsPushed);
    assert_eq!(pushed.lock_info.unwrap().min_commit_ts, 25);
    assert_eq!(kv.value("a", 24), None, "the lock is no obstacle below 25");
    assert!(kv.get("a", 25).error.is_some());
    let early = kv.commit(&["a"], 10, 24).unwrap();
    assert_eq!(early.commit_ts_expired.unwrap().min_commit_ts, 25);
    kv.must_prewrite(vec![put("b", "1")], 10);
    let fixed = kv.status(ask("b", 10, 20, 25));
    assert_eq!(
        fixed.action(),
        Action::NoAction,
        "its client did not ask for pushes"
    );
}

#[test]
fn an_async_commit_is_left_to_its_secondaries_unless_forced() {
    let kv = Kv::new();
    let start = at_ms(1000);
    kv.async_prewrite(vec![put("a", "1"), put("b", "1")], start, 0);
    let expired = kv.status(ask("a", start, 0, at_ms(9000)));
    assert_eq!(expired.action(), Action::NoAction);
    assert_eq!(expired.lock_info.unwrap().secondaries, ["b"]);
    let forced = CheckTxnStatusRequest {
        force_sync_commit: true,
        ..ask("a", start, 0, at_ms(9000))
    };
    assert_eq!(kv.status(forced).action(), Action::TtlExpireRollback);
}

#[test]
fn a_key_that_is_not_the_primary_is_not_judged() {
    let kv = Kv::new();
    kv.must_prewrite(vec![put("a", "1"), put("b", "1")], 10);
    let verify = CheckTxnStatusRequest {
        verify_is_primary: true,
        ..ask("b", 10, 0, u64::MAX)
    };
    let error = kv.status(verify).error.unwrap();
    let info = error.primary_mismatch.unwrap().lock_info.unwrap();
    assert_eq!(info.primary_lock, "a");
    assert!(kv.is_locked("b"));
}

#[test]
fn secondaries_are_all_there_or_committed_or_can_never_be() {
    let kv = Kv::new();
    let min = kv.async_prewrite(vec![put("a", "1"), put("b", "1"), put("c", "1")], 10, 0);
    let found = secondaries(&kv, &["b", "c"], 10);
    assert_eq!(found.locks.len(), 2);
    assert_eq!(found.locks[0].min_commit_ts, min);
    assert_eq!(kv.commit(&["b"], 10, 20), None);
    let committed = secondaries(&kv, &["c", "b"], 10);
    assert_eq!((committed.locks.len(), committed.commit_ts), (0, 20));
    // "d" never arrived: it must not arrive later.
    let missing = secondaries(&kv, &["d"], 30);
    assert_eq!(missing, CheckSecondaryLocksResponse::default());
    assert_eq!(kv.records("d"), [(Op::Rollback, 30, 30, "protected")]);
    let late = kv.prewrite(vec![put("d", "1")], 30);
    assert_eq!(
        super::conflict(&late.errors).0.as_str_name(),
        "SelfRolledBack"
    );
}

#[test]
fn asking_moves_commit_timestamps_behind_the_askers() {
    let kv = Kv::new();
    kv.status(ask("a", 10, 40, 60));
    let response = kv.one_pc(vec![mutation(Op::Put, "b", "1")], 20);
    assert_eq!(response.one_pc_commit_ts, 61);
}
