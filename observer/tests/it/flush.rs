//! Generations under a failing storage: what is retried, what is proven, what is left behind.

use std::sync::Arc;
use std::time::Duration;

use pitr_format::{EncodedRange, Ts};
use pitr_observer::{FlushError, FlushedProof, Flusher, FlusherConfig, Generation, ShardCore};
use pitr_storage::fault::{Call, Fault, FaultPlan, FaultyStorage, Rule, When};
use pitr_storage::{SharedStorage, open_url};

use crate::support::{Archive, NO_LIMIT, batch, core, env, region, resolved, row, started};

const STORE: u64 = 4;

fn seal(core: &mut ShardCore, id: u64) -> Generation {
    Generation::assemble(id, vec![core.seal()]).unwrap()
}

/// One subscription over everything, from 10, with rows at 20, 30… resolved at the last.
fn filled(rows: u64) -> ShardCore {
    let mut core = core(100);
    core.apply(started(1, region(7, EncodedRange::ALL), 10));
    for n in 2..rows + 2 {
        core.apply(batch(1, vec![row(b"some key that is long", n * 10)]));
    }
    core.apply(resolved(1, rows * 10 + 10));
    core
}

async fn flusher(storage: &SharedStorage) -> Flusher {
    let config = FlusherConfig {
        merge_limit: 200,
        concurrency: 3,
        ..FlusherConfig::new(STORE)
    };
    Flusher::open(Arc::clone(storage), config, &env())
        .await
        .unwrap()
}

async fn flush_until_done(
    flusher: &mut Flusher,
    generation: &mut Generation,
    flush_ts: u64,
) -> (FlushedProof, u64) {
    for failures in 0..1000 {
        match flusher
            .flush(generation, Ts::new(flush_ts + failures))
            .await
        {
            Ok(proof) => return (proof, failures),
            Err(error) => assert_eq!(error.class(), pitr_format::Class::Retry, "{error}"),
        }
    }
    panic!("the flush never succeeds");
}

#[tokio::test]
async fn whatever_third_write_fails_the_retry_leaves_no_object_that_nothing_refers_to() {
    for when in [When::Before, When::After, When::Alternate] {
        let inner = open_url("memory://").unwrap();
        let faulty = FaultyStorage::new(Arc::clone(&inner), FaultPlan::every_nth_write(3, when));
        let storage: SharedStorage = faulty.clone();
        let mut flusher = flusher(&storage).await;
        let mut core = filled(30);
        let mut failures = 0;
        for id in 1..=4 {
            let mut generation = seal(&mut core, id);
            assert!(id > 1 || generation.slices().len() > 10);
            let sealed_at = generation.progress()[0].ts;
            // What arrives while the flush fails belongs to the next generation.
            let ts = 1000 * id;
            core.apply(batch(1, vec![row(b"later", ts)]));
            core.apply(resolved(1, ts));
            let (proof, failed) = flush_until_done(&mut flusher, &mut generation, ts).await;
            failures += failed;
            assert_eq!(proof.progress()[0].ts, sealed_at);
            let written = Archive::read(&inner).await;
            assert!(
                written.unreferenced.is_empty(),
                "{:?}",
                written.unreferenced
            );
            assert_eq!(written.metas.len() as u64, id);
            assert!(written.row_ts().iter().all(|ts| *ts <= sealed_at.get()));
        }
        assert!(failures > 1, "{when:?} made only {failures} flushes fail");
        let mut expect: Vec<_> = (2..32).map(|n| n * 10).collect();
        expect.extend([1000, 2000, 3000]);
        assert_eq!(Archive::read(&inner).await.row_ts(), expect);
    }
}

#[tokio::test]
async fn a_retry_sends_only_what_is_missing_under_the_same_names() {
    let inner = open_url("memory://").unwrap();
    let faulty = FaultyStorage::new(Arc::clone(&inner), FaultPlan::none());
    let storage: SharedStorage = faulty.clone();
    let mut flusher = flusher(&storage).await;
    let mut generation = seal(&mut filled(30), 1);
    let no_meta = |name: &str| name.ends_with(".meta");
    faulty.set_plan(FaultPlan::failing_writes(When::Before, no_meta));
    flusher
        .flush(&mut generation, Ts::new(500))
        .await
        .unwrap_err();
    let uploaded = inner.list("").await.unwrap();
    let writes = faulty.counters().writes;
    assert!(uploaded.len() > 3);
    flusher
        .flush(&mut generation, Ts::new(501))
        .await
        .unwrap_err();
    assert_eq!(faulty.counters().writes, writes + 1, "only the meta again");
    faulty.set_plan(FaultPlan::none());
    let proof = flusher.flush(&mut generation, Ts::new(502)).await.unwrap();
    assert_eq!(proof.flush_ts(), Ts::new(500), "of the first attempt");
    assert_eq!(proof.objects(), uploaded.len());
    assert_eq!(faulty.counters().writes, writes + 2);
}

#[tokio::test]
async fn nothing_later_is_flushed_while_a_generation_is_missing() {
    let storage = open_url("memory://").unwrap();
    let mut flusher = flusher(&storage).await;
    let mut core = filled(3);
    let lost = seal(&mut core, 1);
    drop(lost);
    core.apply(resolved(1, 900));
    let mut next = seal(&mut core, 2);
    let error = flusher.flush(&mut next, Ts::new(1000)).await.unwrap_err();
    assert!(matches!(error, FlushError::OutOfOrder { due: 1, got: 2 }));
    assert!(storage.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_flushed_generation_cannot_be_flushed_twice() {
    let storage = open_url("memory://").unwrap();
    let mut flusher = flusher(&storage).await;
    let mut generation = seal(&mut filled(3), 1);
    flusher.flush(&mut generation, Ts::new(1000)).await.unwrap();
    let error = flusher
        .flush(&mut generation, Ts::new(1001))
        .await
        .unwrap_err();
    assert!(matches!(error, FlushError::OutOfOrder { due: 2, got: 1 }));
}

#[tokio::test]
async fn flush_ts_rise_within_a_run_and_over_restarts_with_an_older_clock() {
    let storage = open_url("memory://").unwrap();
    let mut newest = 0;
    for (restart, clock) in [(true, 1000), (false, 900), (true, 10), (true, 2000)] {
        let mut flusher = flusher(&storage).await;
        let mut core = filled(1);
        for id in 1..=2 {
            let mut generation = seal(&mut core, id);
            let proof = flusher
                .flush(&mut generation, Ts::new(clock))
                .await
                .unwrap();
            assert!(proof.flush_ts().get() > newest, "restart {restart}");
            newest = proof.flush_ts().get();
        }
    }
    assert_eq!(newest, 2001);
    // Another store's metas do not count.
    let mut config = FlusherConfig::new(STORE + 1);
    config.merge_limit = 1;
    let other = Flusher::open(storage, config, &env()).await.unwrap();
    assert_eq!(other.last_flush_ts(), Ts::ZERO);
}

#[tokio::test]
async fn an_empty_generation_writes_a_meta_without_files() {
    let storage = open_url("memory://").unwrap();
    let mut core = core(NO_LIMIT);
    let mut generation = seal(&mut core, 1);
    assert!(generation.is_empty());
    let mut flusher = flusher(&storage).await;
    let proof = flusher.flush(&mut generation, Ts::new(0xAB)).await.unwrap();
    assert_eq!(
        proof.meta_path(),
        "v1/backupmeta/00000000000000AB0000000000000004\
         -d0000000000000000l0000000000000000u0000000000000000p0000000000000003.meta"
    );
    let archive = Archive::read(&storage).await;
    assert_eq!(archive.metas[0].1.store_id, 4);
    assert!(archive.records.is_empty());
}

#[tokio::test]
async fn a_meta_of_a_stranger_under_the_same_name_is_never_replaced() {
    let storage = open_url("memory://").unwrap();
    let mut flusher = flusher(&storage).await;
    let mut generation = seal(&mut core(NO_LIMIT), 1);
    let path = "v1/backupmeta/00000000000000AB0000000000000004\
         -d0000000000000000l0000000000000000u0000000000000000p0000000000000003.meta";
    storage.put(path, "another".into()).await.unwrap();
    let error = flusher
        .flush(&mut generation, Ts::new(0xAB))
        .await
        .unwrap_err();
    assert!(matches!(error, FlushError::MetaCollision { .. }), "{error}");
    assert_eq!(storage.get(path).await.unwrap(), "another");
}

#[tokio::test]
async fn a_dropped_flush_future_goes_on_where_it_was() {
    let inner = open_url("memory://").unwrap();
    let slow_meta = Rule::always(Call::Write, Fault::Delay(Duration::from_secs(60)));
    let plan = FaultPlan::none().with(slow_meta.on_names(|name| name.ends_with(".meta")));
    let faulty = FaultyStorage::new(Arc::clone(&inner), plan);
    let storage: SharedStorage = faulty.clone();
    let mut flusher = flusher(&storage).await;
    let mut generation = seal(&mut filled(30), 1);
    let flush = flusher.flush(&mut generation, Ts::new(500));
    tokio::time::timeout(Duration::from_millis(20), flush)
        .await
        .unwrap_err();
    assert!(Archive::read(&inner).await.unreferenced.len() > 3);
    faulty.set_plan(FaultPlan::none());
    let writes = faulty.counters().writes;
    let (proof, _) = flush_until_done(&mut flusher, &mut generation, 600).await;
    assert_eq!(
        (proof.flush_ts(), faulty.counters().writes),
        (Ts::new(500), writes + 1)
    );
    let archive = Archive::read(&inner).await;
    assert!(archive.unreferenced.is_empty());
    assert_eq!((archive.records.len(), proof.progress().len()), (30, 1));
}

#[tokio::test]
async fn metadata_describes_regions_kinds_and_order_of_the_slices() {
    let storage = open_url("memory://").unwrap();
    let mut core = core(NO_LIMIT);
    let whole = region(7, EncodedRange::new(&b"a"[..], &b"z"[..]));
    core.apply(started(1, whole.clone(), 10));
    core.apply(batch(1, vec![row(b"table", 20)]));
    core.apply(resolved(1, 25));
    core.apply(batch(1, vec![row(b"m-schema", 30), row(b"b", 32)]));
    let mut newer = whole;
    newer.version = 6;
    newer.range.end = "y".into();
    core.apply(started(1, newer, 10));
    core.apply(started(2, region(5, EncodedRange::new("z", "")), 10));
    core.apply(batch(2, vec![row(b"zz", 40)]));
    let mut flusher = flusher(&storage).await;
    flusher.set_global_checkpoint(Ts::new(12));
    let mut generation = seal(&mut core, 1);
    flusher.flush(&mut generation, Ts::new(50)).await.unwrap();
    let (path, meta) = Archive::read(&storage).await.metas.remove(0);
    assert!(path.ends_with("l0000000000000014u0000000000000028p0000000000000000.meta"));
    let infos: Vec<_> = meta
        .file_groups
        .iter()
        .map(|group| {
            let infos = &group.data_files_info;
            infos
                .iter()
                .map(|i| (i.region_id, i.is_meta, i.resolved_ts))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(
        infos,
        [vec![(5, false, 0), (7, false, 25)], vec![(7, true, 25)]]
    );
    let seven = &meta.file_groups[0].data_files_info[1];
    assert_eq!(&seven.region_end_key[..], b"y");
    let versions: Vec<_> = seven.region_epoch.iter().map(|e| e.version).collect();
    assert_eq!(versions, [5, 6]);
    assert!(meta.file_groups[1].path.contains("/schema-meta/"));
    assert_eq!(meta.resolved_ts, 10, "claims begin at the checkpoint of 10");
}
