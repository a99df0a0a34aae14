use std::sync::Arc;
use std::time::{Duration, Instant};

use pitr_proto::kvrpcpb::prewrite_request::PessimisticAction;
use pitr_proto::kvrpcpb::write_conflict::Reason;
use pitr_proto::kvrpcpb::*;

use super::super::pessimistic::pessimistic_lock;
use super::{Kv, at_ms, bytes, conflict, mutation, put};

const NO_WAIT: i64 = -1;

fn request(kv: &Kv, key: &str, start: u64, for_update: u64) -> PessimisticLockRequest {
    PessimisticLockRequest {
        context: kv.context(),
        mutations: vec![mutation(Op::PessimisticLock, key, "")],
        primary_lock: key.to_owned().into(),
        start_version: start,
        lock_ttl: 3000,
        for_update_ts: for_update,
        wait_timeout: NO_WAIT,
        ..Default::default()
    }
}

async fn lock(kv: &Kv, key: &str, start: u64, for_update: u64) -> PessimisticLockResponse {
    let request = request(kv, key, start, for_update);
    pessimistic_lock(kv.fixture.store.clone(), request).await
}

async fn must_lock(kv: &Kv, key: &str, start: u64, for_update: u64) {
    let response = lock(kv, key, start, for_update).await;
    assert_eq!(response, PessimisticLockResponse::default());
}

fn prewrite(kv: &Kv, mutation: Mutation, start: u64, for_update: u64) -> PrewriteResponse {
    kv.fixture.store.prewrite(PrewriteRequest {
        for_update_ts: for_update,
        pessimistic_actions: vec![PessimisticAction::DoPessimisticCheck.into()],
        ..kv.prewrite_request(vec![mutation], start)
    })
}

fn give_up(kv: &Kv, keys: &[&str], start: u64, for_update: u64) {
    let request = PessimisticRollbackRequest {
        context: kv.context(),
        start_version: start,
        for_update_ts: for_update,
        keys: bytes(keys),
    };
    let response = kv.fixture.store.pessimistic_rollback(request);
    assert_eq!(response, PessimisticRollbackResponse::default());
}

#[tokio::test]
async fn a_lock_becomes_a_write_and_blocks_other_writers_but_no_reader() {
    let kv = Kv::new();
    must_lock(&kv, "a", 10, 10).await;
    assert_eq!(kv.value("a", 50), None);
    let other = lock(&kv, "a", 20, 20).await;
    let info = other.errors[0].locked.as_ref().unwrap();
    assert_eq!(info.lock_type(), Op::PessimisticLock);
    assert_eq!((info.lock_version, info.lock_for_update_ts), (10, 10));
    assert_eq!(prewrite(&kv, put("a", "1"), 10, 10).errors, []);
    assert_eq!(kv.commit(&["a"], 10, 60), None);
    assert_eq!(kv.value("a", 60).as_deref(), Some("1"));
}

#[tokio::test]
async fn a_newer_commit_asks_for_a_newer_for_update_ts() {
    let kv = Kv::new();
    kv.must_put("a", "1", 20, 30);
    let late = lock(&kv, "a", 10, 10).await;
    assert_eq!(conflict(&late.errors), (Reason::PessimisticRetry, 20, 30));
    must_lock(&kv, "a", 10, 30).await;
}

#[tokio::test]
async fn values_and_existence_come_with_the_lock_if_asked_for() {
    let kv = Kv::new();
    kv.must_put("a", "1", 1, 2);
    let mut both = request(&kv, "a", 10, 10);
    both.mutations
        .push(mutation(Op::PessimisticLock, "none", ""));
    let mut values = both.clone();
    values.return_values = true;
    let response = pessimistic_lock(kv.fixture.store.clone(), values).await;
    assert_eq!(response.values, ["1", ""]);
    assert_eq!(response.not_founds, [false, true]);
    // Again, by the same transaction: the same.
    let mut existence = both.clone();
    existence.check_existence = true;
    let response = pessimistic_lock(kv.fixture.store.clone(), existence).await;
    assert_eq!(
        (response.values.len(), &response.not_founds[..]),
        (0, &[false, true][..])
    );
    give_up(&kv, &[], 10, 10);
    both.check_existence = true;
    both.lock_only_if_exists = true;
    let response = pessimistic_lock(kv.fixture.store.clone(), both).await;
    assert_eq!(response.not_founds, [false, true]);
    assert!(kv.is_locked("a") && !kv.is_locked("none"));
}

#[tokio::test]
async fn a_lock_for_an_insert_needs_an_absent_key() {
    let kv = Kv::new();
    kv.must_put("a", "1", 1, 2);
    let mut insert = request(&kv, "a", 10, 10);
    insert.mutations[0].assertion = Assertion::NotExist.into();
    let response = pessimistic_lock(kv.fixture.store.clone(), insert).await;
    assert!(response.errors[0].already_exist.is_some());
}

#[tokio::test]
async fn giving_up_spares_newer_and_prewritten_locks() {
    let kv = Kv::new();
    must_lock(&kv, "a", 10, 20).await;
    give_up(&kv, &["a"], 10, 15);
    assert!(
        kv.is_locked("a"),
        "locked again since, with a newer for_update_ts"
    );
    assert_eq!(prewrite(&kv, put("a", "1"), 10, 20).errors, []);
    give_up(&kv, &["a"], 10, 30);
    assert!(kv.is_locked("a"));
    must_lock(&kv, "b", 10, 20).await;
    give_up(&kv, &["b"], 10, 20);
    assert_eq!(kv.info("b"), MvccInfo::default(), "no record is left");
}

#[tokio::test]
async fn a_lost_lock_is_made_up_for_only_if_the_key_did_not_change() {
    let kv = Kv::new();
    kv.must_put("a", "1", 1, 2);
    assert_eq!(prewrite(&kv, put("a", "2"), 10, 10).errors, []);
    assert_eq!(kv.commit(&["a"], 10, 20), None);
    let late = prewrite(&kv, put("a", "3"), 15, 18);
    assert!(late.errors[0].abort.contains("PessimisticLockNotFound"));
    must_lock(&kv, "b", 30, 30).await;
    let stolen = prewrite(&kv, put("b", "1"), 20, 20);
    assert!(stolen.errors[0].abort.contains("LockTsMismatch"));
    let optimistic = kv.prewrite(vec![put("b", "1")], 30);
    assert!(optimistic.errors[0].abort.contains("LockTypeNotMatch"));
}

#[tokio::test]
async fn a_transaction_that_was_rolled_back_gets_no_lock() {
    let kv = Kv::new();
    assert_eq!(kv.rollback(&["a"], 10), None);
    let refused = lock(&kv, "a", 10, 20).await;
    assert!(
        refused.errors[0]
            .abort
            .contains("PessimisticLockRolledBack")
    );
}

#[tokio::test]
async fn a_commit_takes_a_leftover_lock_away_without_a_record() {
    let kv = Kv::new();
    must_lock(&kv, "a", 10, 10).await;
    assert_eq!(kv.resolve(10, 20), ResolveLockResponse::default());
    assert_eq!(kv.info("a"), MvccInfo::default());
}

#[tokio::test]
async fn a_waiter_gets_the_lock_when_it_is_released_and_gives_up_in_time() {
    let kv = Arc::new(Kv::new());
    must_lock(&kv, "a", 10, 10).await;
    let waiting = {
        let (kv, mut request) = (kv.clone(), request(&kv, "a", 20, 20));
        request.wait_timeout = 20_000;
        tokio::spawn(async move { pessimistic_lock(kv.fixture.store.clone(), request).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    let mut impatient = request(&kv, "a", 30, 30);
    impatient.wait_timeout = 50;
    let begin = Instant::now();
    let response = pessimistic_lock(kv.fixture.store.clone(), impatient).await;
    assert!(response.errors[0].locked.is_some());
    assert!(begin.elapsed() >= Duration::from_millis(50));
    give_up(&kv, &["a"], 10, 10);
    assert_eq!(waiting.await.unwrap(), PessimisticLockResponse::default());
    assert_eq!(kv.info("a").lock.unwrap().start_ts, 20);
}

#[tokio::test]
async fn a_waiter_learns_of_the_commit_that_it_waited_for() {
    let kv = Arc::new(Kv::new());
    must_lock(&kv, "a", 10, 10).await;
    assert_eq!(prewrite(&kv, put("a", "1"), 10, 10).errors, []);
    let waiting = {
        let (kv, mut request) = (kv.clone(), request(&kv, "a", 20, 20));
        request.wait_timeout = 20_000;
        tokio::spawn(async move { pessimistic_lock(kv.fixture.store.clone(), request).await })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(kv.commit(&["a"], 10, 30), None);
    let response = waiting.await.unwrap();
    assert_eq!(
        conflict(&response.errors),
        (Reason::PessimisticRetry, 10, 30)
    );
}

#[tokio::test]
async fn two_transactions_that_wait_for_each_other_are_told() {
    let kv = Arc::new(Kv::new());
    must_lock(&kv, "a", 10, 10).await;
    must_lock(&kv, "b", 20, 20).await;
    let waiting = {
        let (kv, mut request) = (kv.clone(), request(&kv, "b", 10, 10));
        request.wait_timeout = 20_000;
        tokio::spawn(async move { pessimistic_lock(kv.fixture.store.clone(), request).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut closing = request(&kv, "a", 20, 20);
    closing.wait_timeout = 20_000;
    let response = pessimistic_lock(kv.fixture.store.clone(), closing).await;
    let deadlock = response.errors[0].deadlock.as_ref().unwrap();
    assert_eq!((deadlock.lock_ts, &deadlock.lock_key[..]), (10, &b"a"[..]));
    let chain: Vec<_> = deadlock
        .wait_chain
        .iter()
        .map(|e| (e.txn, e.wait_for_txn))
        .collect();
    assert_eq!(chain, [(10, 20), (20, 10)]);
    give_up(&kv, &["b"], 20, 20);
    assert_eq!(waiting.await.unwrap(), PessimisticLockResponse::default());
}

#[tokio::test]
async fn an_expired_pessimistic_primary_is_only_unlocked() {
    let kv = Kv::new();
    must_lock(&kv, "a", at_ms(1000), at_ms(1000)).await;
    let status = kv.status(CheckTxnStatusRequest {
        primary_key: "a".into(),
        lock_ts: at_ms(1000),
        current_ts: at_ms(9000),
        rollback_if_not_exist: true,
        resolving_pessimistic_lock: true,
        ..Default::default()
    });
    assert_eq!(status.action(), Action::TtlExpirePessimisticRollback);
    assert_eq!(kv.info("a"), MvccInfo::default());
}

#[tokio::test]
async fn a_pessimistic_one_phase_commit_takes_its_lock_away() {
    let kv = Kv::new();
    must_lock(&kv, "a", 10, 40).await;
    let response = kv.fixture.store.prewrite(PrewriteRequest {
        for_update_ts: 40,
        pessimistic_actions: vec![PessimisticAction::DoPessimisticCheck.into()],
        try_one_pc: true,
        ..kv.prewrite_request(vec![put("a", "1")], 10)
    });
    assert_eq!((response.min_commit_ts, response.one_pc_commit_ts), (0, 41));
    assert!(!kv.is_locked("a"));
    assert_eq!(kv.value("a", 41).as_deref(), Some("1"));
}
