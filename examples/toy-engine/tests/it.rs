//! The embedding holds what it promises: no gap between scan and hook, no early resolved ts, a
//! restore through the log that equals the store at every moment asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use pitr_format::Ts;
use pitr_restore_worker::digest::scan_digest;
use pitr_storage::{SharedStorage, open_url};
use pitr_toy_engine::backup::{Backup, describe_archive};
use pitr_toy_engine::environment::{environment, restore_environment};
use pitr_toy_engine::log::ReplicatedLog;
use pitr_toy_engine::restore::restore_into;
use pitr_toy_engine::txn::Store;
use prometheus::Registry;

const BEGIN: Ts = Ts::compose(1_700_000_000_000, 0);

fn one(key: &str, value: &str) -> Vec<(Bytes, Option<Bytes>)> {
    vec![(key.to_owned().into(), Some(value.to_owned().into()))]
}

async fn archive(start_ts: Ts) -> SharedStorage {
    let storage = open_url("memory://").unwrap();
    describe_archive(&storage, start_ts).await.unwrap();
    storage
}

/// What a restore to `moment` holds must be what the store shows at `moment`.
async fn assert_restores(store: &Store, storage: &SharedStorage, moment: Ts) {
    let target = ReplicatedLog::new(2);
    let temp = tempfile::tempdir().unwrap();
    let (env, threads) = restore_environment(32 << 20);
    let budget = env.budget.clone();
    restore_into(&target, storage.clone(), moment, temp.path(), env)
        .await
        .unwrap();
    assert!(
        threads.started() > 0,
        "the restore runs on the engine's threads"
    );
    assert!(budget.peak() > 0 && budget.used() == 0);
    let expected = scan_digest(store.log().replicas()[0].as_ref(), moment).unwrap();
    for replica in target.replicas() {
        assert_eq!(
            scan_digest(replica.as_ref(), Ts::MAX).unwrap(),
            expected,
            "at {moment}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_never_pause_lose_nothing_to_the_scan_that_joins_them() {
    let store = Store::new(ReplicatedLog::new(3), BEGIN);
    let start_ts = store.tso();
    let storage = archive(start_ts).await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..50 {
                    let long = "x".repeat(1 + round % 3 * 200);
                    store
                        .write(one(&format!("key-{writer}-{}", round % 7), &long))
                        .await;
                }
            })
        })
        .collect();
    let (env, threads) = environment(&Registry::new(), 16 << 20).unwrap();
    let mut backup = Backup::start(&store, storage.clone(), start_ts, env)
        .await
        .unwrap();
    let midway = store.tso();
    backup.flush_past(midway).await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    let end = store.tso();
    assert!(backup.flush_past(end).await.unwrap() >= end);
    assert!(
        threads.started() > 0,
        "the observer runs on the engine's threads"
    );
    assert_restores(&store, &storage, midway).await;
    assert_restores(&store, &storage, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_prewritten_before_the_scan_arrives_whole() {
    let store = Store::new(ReplicatedLog::new(1), BEGIN);
    let start_ts = store.tso();
    let storage = archive(start_ts).await;
    let long = "value ".repeat(100);
    let open = store.prewrite(one("early", &long)).await;
    let (env, _) = environment(&Registry::new(), 16 << 20).unwrap();
    let mut backup = Backup::start(&store, storage.clone(), start_ts, env)
        .await
        .unwrap();
    backup.flush().await.unwrap();
    let committed = store.commit(open).await;
    backup.flush_past(committed).await.unwrap();
    assert_restores(&store, &storage, committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_holds_the_checkpoint_below_its_start() {
    let store = Store::new(ReplicatedLog::new(1), BEGIN);
    let start_ts = store.tso();
    let storage = archive(start_ts).await;
    let (env, _) = environment(&Registry::new(), 16 << 20).unwrap();
    let mut backup = Backup::start(&store, storage.clone(), start_ts, env)
        .await
        .unwrap();
    store.write(one("a", "1")).await;
    let before = store.tso();
    let open = store.prewrite(one("b", "2")).await;
    let checkpoint = backup.flush_past(before).await.unwrap();
    for _ in 0..3 {
        assert_eq!(backup.flush().await.unwrap(), checkpoint);
    }
    let committed = store.commit(open).await;
    assert!(checkpoint < committed);
    backup.flush_past(committed).await.unwrap();
    assert_restores(&store, &storage, checkpoint).await;
    assert_restores(&store, &storage, committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_registry_shows_the_backup() {
    let store = Store::new(ReplicatedLog::new(1), BEGIN);
    let start_ts = store.tso();
    let storage = archive(start_ts).await;
    let registry = Registry::new();
    let (env, _) = environment(&registry, 16 << 20).unwrap();
    let mut backup = Backup::start(&store, storage, start_ts, env).await.unwrap();
    let written = store.write(one("a", "1")).await;
    backup.flush_past(written).await.unwrap();
    let families = registry.gather();
    let flushed = families
        .iter()
        .find(|f| f.name() == "tikv_pitr_flushed_generations");
    let flushed = flushed.expect("a metric of flushes in the engine's registry");
    assert!(flushed.get_metric()[0].get_counter().get_value() >= 1.0);
}
