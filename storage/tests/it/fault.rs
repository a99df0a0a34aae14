//! The fault plan strikes where it says, and only there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::Class;
use pitr_storage::fault::{Call, Fault, FaultPlan, FaultyStorage, Rule, When};
use pitr_storage::{SharedStorage, Storage, StorageErrorKind, open_url};

fn faulty(plan: FaultPlan) -> (SharedStorage, Arc<FaultyStorage>) {
    let inner = open_url("memory://").unwrap();
    (Arc::clone(&inner), FaultyStorage::new(inner, plan))
}

/// Which of `count` writes were acknowledged, and which left an object.
async fn write_some(
    inner: &SharedStorage,
    storage: &FaultyStorage,
    count: u8,
) -> (Vec<u8>, Vec<u8>) {
    let (mut acknowledged, mut present) = (Vec::new(), Vec::new());
    for i in 1..=count {
        let name = format!("{i}.log");
        match storage.put(&name, Bytes::from(vec![i]).into()).await {
            Ok(()) => acknowledged.push(i),
            Err(error) => assert_eq!(error.class(), Class::Retry),
        }
        if inner.head(&name).await.unwrap().is_some() {
            present.push(i);
        }
    }
    (acknowledged, present)
}

#[tokio::test]
async fn every_third_write_fails_before_its_effect() {
    let (inner, storage) = faulty(FaultPlan::every_nth_write(3, When::Before));
    let (acknowledged, present) = write_some(&inner, &storage, 7).await;
    assert_eq!(acknowledged, [1, 2, 4, 5, 7]);
    assert_eq!(present, acknowledged);
    assert_eq!(
        (storage.counters().writes, storage.counters().errors_before),
        (7, 2)
    );
}

#[tokio::test]
async fn every_third_write_fails_after_its_effect() {
    let (inner, storage) = faulty(FaultPlan::every_nth_write(3, When::After));
    let (acknowledged, present) = write_some(&inner, &storage, 7).await;
    assert_eq!(acknowledged, [1, 2, 4, 5, 7]);
    assert_eq!(present, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(storage.counters().errors_after, 2);
}

#[tokio::test]
async fn alternating_faults_strike_before_then_after() {
    let (inner, storage) = faulty(FaultPlan::every_nth_write(2, When::Alternate));
    let (acknowledged, present) = write_some(&inner, &storage, 8).await;
    assert_eq!(acknowledged, [1, 3, 5, 7]);
    assert_eq!(present, [1, 3, 4, 5, 7, 8]);
}

#[tokio::test]
async fn a_repeated_put_new_after_a_late_error_finds_its_own_object() {
    let (_, storage) = faulty(FaultPlan::every_nth_write(1, When::After));
    let data = Bytes::from_static(b"x");
    let first = storage
        .put_new("a.meta", data.clone().into())
        .await
        .unwrap_err();
    assert_eq!(first.kind, StorageErrorKind::Transient);
    let second = storage
        .put_new("a.meta", data.clone().into())
        .await
        .unwrap_err();
    assert_eq!(second.kind, StorageErrorKind::AlreadyExists);
    assert_eq!(storage.get("a.meta").await.unwrap(), data);
}

#[tokio::test]
async fn chosen_names_fail_until_told_otherwise() {
    let (inner, storage) = faulty(FaultPlan::failing_writes(When::Before, |name| {
        name.ends_with(".log")
    }));
    for _ in 0..3 {
        storage.put("a.log", "".into()).await.unwrap_err();
        storage.put("a.meta", "".into()).await.unwrap();
    }
    storage.set_plan(FaultPlan::none());
    storage.put("a.log", "".into()).await.unwrap();
    assert_eq!(inner.list("").await.unwrap().len(), 2);
    assert_eq!(storage.counters().errors_before, 3);
}

#[tokio::test]
async fn short_reads_answer_with_half_of_the_bytes() {
    let plan = FaultPlan::none().with(Rule::every_nth(Call::Read, 2, Fault::ShortRead));
    let (_, storage) = faulty(plan);
    storage.put("a.log", "0123456789".into()).await.unwrap();
    assert_eq!(storage.get("a.log").await.unwrap(), "0123456789");
    assert_eq!(storage.get("a.log").await.unwrap(), "01234");
    assert_eq!(storage.get_range("a.log", 2..6).await.unwrap(), "2345");
    assert_eq!(storage.get_range("a.log", 2..6).await.unwrap(), "23");
    assert_eq!(storage.counters().short_reads, 2);
}

#[tokio::test]
async fn a_slow_storage_answers_late_and_rightly() {
    let delay = Fault::Delay(Duration::from_millis(30));
    let (_, storage) = faulty(FaultPlan::none().with(Rule::always(Call::List, delay)));
    let start = std::time::Instant::now();
    storage.list("").await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!(storage.counters().delays, 1);
}

#[tokio::test]
async fn reads_listings_and_deletions_can_fail_too_with_any_kind() {
    let denied = Fault::Error(When::Before, StorageErrorKind::PermissionDenied);
    let late = Fault::Error(When::After, StorageErrorKind::Transient);
    let plan = FaultPlan::none()
        .with(Rule::always(Call::Read, denied).on_names(|name| name == "secret"))
        .with(Rule::always(Call::List, denied))
        .with(Rule::always(Call::Delete, late));
    let (inner, storage) = faulty(plan);
    storage.put("a", "".into()).await.unwrap();
    assert_eq!(
        storage.get("secret").await.unwrap_err().kind,
        StorageErrorKind::PermissionDenied
    );
    assert_eq!(
        storage.list("").await.unwrap_err().class(),
        Class::Permanent
    );
    assert!(storage.head("a").await.unwrap().is_some());
    storage.delete("a").await.unwrap_err();
    assert_eq!(
        inner.head("a").await.unwrap(),
        None,
        "the deletion took effect"
    );
}

#[tokio::test]
async fn the_same_plan_fails_the_same_writes_in_every_run() {
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let plan = FaultPlan::every_nth_write(3, When::Alternate).with(Rule::every_nth(
            Call::Write,
            2,
            Fault::Error(When::After, StorageErrorKind::NoSpace),
        ));
        let (inner, storage) = faulty(plan);
        outcomes.push((write_some(&inner, &storage, 20).await, storage.counters()));
    }
    assert_eq!(outcomes[0], outcomes[1]);
    assert!(outcomes[0].1.errors_before > 0 && outcomes[0].1.errors_after > 0);
}
