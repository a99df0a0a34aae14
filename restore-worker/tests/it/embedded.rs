//! The restore and the import service in an environment of their embedder: its clock, its names,
//! its threads, its memory; and what is left when it stops them in the middle.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_env::Clock;
use pitr_format::{Class, EncodedRange};
use pitr_proto::import_sstpb::SwitchMode;
use pitr_restore_worker::plan::PlanError;
use pitr_restore_worker::restore::MIN_MEMORY;
use pitr_restore_worker::service::ImportLimits;
use pitr_restore_worker::sst::SstFile;
use pitr_restore_worker::target::{EngineTarget, Target, TargetError, TargetRegion};
use pitr_restore_worker::{
    Archive, Env, Progress, Report, RestoreError, RestoreOptions, plan, restore,
};
use pitr_storage::fault::{Call, Fault, FaultPlan, FaultyStorage, Rule, When};
use pitr_storage::{SharedStorage, StorageErrorKind};
use uuid::Uuid;

use super::desk::Desk;
use super::environment::{TestClock, Threads, env};
use super::golden::up_to;
use super::memory_engine::MemoryEngine;
use super::synthetic::{END, Synthetic, long, short, value};

async fn archive() -> Synthetic {
    let mut archive = Synthetic::new(10).await;
    for flush in 0..5u64 {
        let key = |i: u64| format!("key-{flush}-{i}").into_bytes();
        let mut records = Vec::new();
        for i in 0..20 {
            let ts = 100 * (flush + 1) + i;
            records.push(short(&key(i), ts, ts + 1, "v"));
        }
        let ts = 100 * (flush + 1) + 50;
        records.extend([
            value(b"long", ts, "a long value"),
            long(b"long", ts, ts + 1),
        ]);
        archive.flush(&records).await;
    }
    archive
}

/// A restore of everything, with parts that a test looks at.
struct Bench {
    dir: tempfile::TempDir,
    engine: MemoryEngine,
    clock: TestClock,
    threads: Arc<Threads>,
    budget: Arc<MemoryBudget>,
    progress: Arc<Progress>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
            engine: MemoryEngine::default(),
            clock: TestClock::hurried(),
            threads: Threads::endless(),
            budget: MemoryBudget::new(64 << 20),
            progress: Arc::default(),
        }
    }

    fn env(&self) -> Env {
        env(&self.clock, &self.threads, &self.budget)
    }

    async fn run(
        &self,
        storage: SharedStorage,
        wrap: impl FnOnce(EngineTarget<MemoryEngine>) -> Arc<dyn Target>,
        edit: impl FnOnce(&mut RestoreOptions),
    ) -> Result<Report, RestoreError> {
        let env = self.env();
        let archive = Archive::open(storage.clone(), env.clone()).await.unwrap();
        let mut window = up_to(END);
        window.log_only = true;
        let plan = match plan(&archive, &window).await {
            Ok(plan) => plan,
            Err(PlanError::Storage(error)) => return Err(error.into()),
            Err(other) => panic!("{other}"),
        };
        let target = wrap(EngineTarget::new(
            Arc::new(self.engine.clone()),
            env.spawner.clone(),
        ));
        let mut options = RestoreOptions::new(self.dir.path(), Arc::new(self.engine.clone()), env);
        edit(&mut options);
        let progress = Arc::clone(&self.progress);
        restore(&plan, storage, target.as_ref(), options, progress).await
    }

    /// Nothing is held, and nothing lies in the temporary directory; workers may need a moment.
    async fn assert_clean(&self) {
        for _ in 0..200 {
            let left = std::fs::read_dir(self.dir.path()).unwrap().count();
            if left == 0 && self.budget.used() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} bytes are held, or files left", self.budget.used());
    }
}

fn plainly(target: EngineTarget<MemoryEngine>) -> Arc<dyn Target> {
    Arc::new(target)
}

fn failing(storage: &SharedStorage, rule: Rule) -> SharedStorage {
    FaultyStorage::new(storage.clone(), FaultPlan::none().with(rule))
}

fn transient() -> Fault {
    Fault::Error(When::Before, StorageErrorKind::Transient)
}

#[tokio::test]
async fn everything_runs_on_the_embedders_threads_and_no_time_of_its_clock_passes() {
    let (bench, archive) = (Bench::new(), archive().await);
    let report = bench
        .run(archive.storage.clone(), plainly, |_| ())
        .await
        .unwrap();
    assert_eq!(report.written, 5 * 22);
    // At least: a piece for each request, the sort, the cut, an ingest, the files' removal.
    assert!(bench.threads.done() >= 5 + 4, "{}", bench.threads.done());
    assert_eq!(bench.clock.now(), Duration::ZERO);
    bench.assert_clean().await;
}

/// Notes names of files, and passes them on.
struct Named {
    inner: EngineTarget<MemoryEngine>,
    names: Mutex<Vec<(Uuid, PathBuf)>>,
}

#[async_trait]
impl Target for Named {
    async fn regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        self.inner.regions(range).await
    }

    async fn ingest(&self, region: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError> {
        let named = ssts.iter().map(|sst| (sst.uuid, sst.path.clone()));
        self.names.lock().extend(named);
        self.inner.ingest(region, ssts).await
    }
}

#[tokio::test]
async fn files_and_their_directory_are_named_by_the_embedders_randomness() {
    let (bench, archive) = (Bench::new(), archive().await);
    let named = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&named);
    let wrap = move |inner| {
        let target = Arc::new(Named {
            inner,
            names: Mutex::default(),
        });
        *keep.lock() = Some(Arc::clone(&target));
        target as Arc<dyn Target>
    };
    let small = |options: &mut RestoreOptions| options.sst_bytes = 500;
    bench
        .run(archive.storage.clone(), wrap, small)
        .await
        .unwrap();
    let target = named.lock().take().unwrap();
    let names = target.names.lock().clone();
    assert!(names.len() > 3);
    let drawn: BTreeSet<u64> = names.iter().map(|(uuid, _)| uuid.as_u64_pair().1).collect();
    // The first name is the directory's.
    assert_eq!(drawn, (1..=names.len() as u64).collect());
    let dir = format!("pitr-restore-{}", Uuid::from_u64_pair(7, 0));
    for (uuid, path) in &names {
        assert_eq!(path.parent().unwrap(), bench.dir.path().join(&dir));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&uuid.to_string()), "{name}");
    }
}

#[tokio::test]
async fn a_storage_that_is_away_for_a_while_costs_time_of_the_clock_and_no_record() {
    let (bench, archive) = (Bench::new(), archive().await);
    let storage = failing(
        &archive.storage,
        Rule::every_nth(Call::Read, 2, transient()),
    );
    let report = bench.run(storage, plainly, |_| ()).await.unwrap();
    assert_eq!(report.written, 5 * 22);
    assert!(
        bench.clock.now() >= Duration::from_millis(500),
        "{:?}",
        bench.clock.now()
    );
    bench.assert_clean().await;
}

#[tokio::test]
async fn a_storage_that_stays_away_ends_the_restore_after_its_attempts_and_nothing_is_touched() {
    let (bench, archive) = (Bench::new(), archive().await);
    let logs = Rule::always(Call::Read, transient()).on_names(|name| name.ends_with(".log"));
    let storage = failing(&archive.storage, logs);
    let few = |options: &mut RestoreOptions| options.attempts = 6;
    let error = bench.run(storage, plainly, few).await.unwrap_err();
    assert!(matches!(error, RestoreError::Storage(_)), "{error}");
    assert_eq!(error.class(), Class::Retry);
    // Five waits: 0.1, 0.2, 0.4, 0.8 and 1.6 seconds.
    let waited = bench.clock.now();
    assert!(waited >= Duration::from_millis(3_100), "{waited:?}");
    assert!(!bench.progress.target_touched());
    bench.assert_clean().await;
}

#[tokio::test]
async fn half_an_answer_of_the_storage_is_damage_of_the_object_and_not_an_end() {
    let (bench, archive) = (Bench::new(), archive().await);
    let rule = Rule::always(Call::Read, Fault::ShortRead);
    let storage = failing(
        &archive.storage,
        rule.on_names(|name| name.ends_with("1-3.log")),
    );
    let error = bench.run(storage, plainly, |_| ()).await.unwrap_err();
    let RestoreError::Damage(damage) = error else {
        panic!("{error}");
    };
    assert_eq!(damage.object, "v1/20260101/00/1/1-3.log");
    assert!(bench.engine.records().is_empty());
    bench.assert_clean().await;
}

#[tokio::test]
async fn a_restore_does_not_begin_without_its_smallest_memory() {
    let archive = archive().await;
    let mut bench = Bench::new();
    bench.budget = MemoryBudget::new(MIN_MEMORY - 1);
    let error = bench
        .run(archive.storage.clone(), plainly, |_| ())
        .await
        .unwrap_err();
    assert!(matches!(error, RestoreError::TooLittleMemory { limit } if limit == MIN_MEMORY - 1));

    bench.budget = MemoryBudget::new(MIN_MEMORY);
    let report = bench
        .run(archive.storage.clone(), plainly, |_| ())
        .await
        .unwrap();
    assert_eq!(report.written, 5 * 22);
    assert!(bench.budget.peak() <= MIN_MEMORY);
}

#[tokio::test]
async fn memory_that_others_hold_is_waited_for_and_then_given_up() {
    let (bench, archive) = (Bench::new(), archive().await);
    let took = |options: &mut RestoreOptions| {
        let budget = &options.env.budget;
        let most = budget.limit() - budget.used() - 1;
        // For the rest of the process.
        std::mem::forget(budget.try_reserve(most).unwrap());
    };
    let error = bench
        .run(archive.storage.clone(), plainly, took)
        .await
        .unwrap_err();
    assert!(matches!(error, RestoreError::MemoryInUse { .. }), "{error}");
    assert_eq!(error.class(), Class::Retry);
    assert!(
        bench.clock.now() >= Duration::from_secs(60),
        "{:?}",
        bench.clock.now()
    );
    assert!(!bench.progress.target_touched());
}

/// Never answers the ingest of its `stuck_at`-th batch.
struct Stuck {
    inner: EngineTarget<MemoryEngine>,
    stuck_at: usize,
    batches: Mutex<usize>,
}

#[async_trait]
impl Target for Stuck {
    async fn regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        self.inner.regions(range).await
    }

    async fn ingest(&self, region: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError> {
        let batch = {
            let mut batches = self.batches.lock();
            *batches += 1;
            *batches
        };
        if batch == self.stuck_at {
            std::future::pending::<()>().await;
        }
        self.inner.ingest(region, ssts).await
    }
}

#[tokio::test]
async fn a_restore_that_is_cancelled_among_its_batches_gives_everything_back() {
    let archive = archive().await;
    for stuck_at in [1, 3, 7] {
        let bench = Bench::new();
        let wrap = move |inner| {
            let batches = Mutex::new(0);
            Arc::new(Stuck {
                inner,
                stuck_at,
                batches,
            }) as Arc<dyn Target>
        };
        let small = |options: &mut RestoreOptions| {
            options.batch_bytes = 200;
            options.ingests = 1;
        };
        let restoring = bench.run(archive.storage.clone(), wrap, small);
        let cancelled = tokio::time::timeout(Duration::from_millis(300), restoring).await;
        assert!(cancelled.is_err(), "it is stuck");
        assert!(bench.progress.target_touched());
        let taken = bench.engine.records().len() as u64;
        assert_eq!(
            bench.progress.ingested_amount().1,
            taken,
            "what was told is there"
        );
        bench.assert_clean().await;
    }
}

#[tokio::test]
async fn a_restore_that_is_cancelled_at_any_piece_of_work_leaves_no_file_and_no_memory() {
    let archive = archive().await;
    let whole = Bench::new();
    whole
        .run(archive.storage.clone(), plainly, |_| ())
        .await
        .unwrap();
    for step in 0..whole.threads.done() {
        let mut bench = Bench::new();
        bench.threads = Threads::until(step);
        let restoring = bench.run(archive.storage.clone(), plainly, |_| ());
        let cancelled = tokio::time::timeout(Duration::from_millis(100), restoring).await;
        assert!(cancelled.is_err(), "step {step}");
        let left = std::fs::read_dir(bench.dir.path()).unwrap().count();
        assert_eq!(left, 0, "step {step}");
    }
}

#[tokio::test]
async fn threads_that_cannot_be_had_end_a_restore_with_an_error() {
    struct None;
    impl pitr_env::Spawn for None {
        fn worker(&self, _: String, _: Box<dyn pitr_env::Worker>) -> std::io::Result<()> {
            Err(std::io::Error::other("no threads"))
        }
        fn blocking(&self, _: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
            Err(std::io::Error::other("no threads"))
        }
    }
    let (bench, archive) = (Bench::new(), archive().await);
    let without = |options: &mut RestoreOptions| options.env.spawner = Arc::new(None);
    let error = bench
        .run(archive.storage.clone(), plainly, without)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RestoreError::Worker(what) if what.contains("no threads")),
        "{error}"
    );
    bench.assert_clean().await;
}

/// A service whose clock is moved by hand, with its upkeep.
fn kept_up() -> (Desk, TestClock, tokio::task::JoinHandle<()>) {
    let clock = TestClock::default();
    let desk = Desk::build(
        tempfile::tempdir().unwrap(),
        Threads::endless(),
        clock.clone(),
        MemoryBudget::new(64 << 20),
        ImportLimits::default(),
    );
    let upkeep = tokio::spawn(desk.service.upkeep());
    (desk, clock, upkeep)
}

/// Lets `seconds` pass, ten at a time, and the upkeep look at each.
async fn pass(clock: &TestClock, seconds: u64) {
    for _ in 0..seconds / 10 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        clock.pass(Duration::from_secs(10));
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
}

#[tokio::test]
async fn import_mode_ends_ten_minutes_after_it_was_asked_for_last() {
    let (desk, clock, upkeep) = kept_up();
    desk.switch_mode(SwitchMode::Import).await;
    pass(&clock, 590).await;
    assert_eq!(*desk.host.modes.lock(), [true]);
    desk.switch_mode(SwitchMode::Import).await;
    pass(&clock, 590).await;
    assert_eq!(*desk.host.modes.lock(), [true], "it was renewed");
    pass(&clock, 20).await;
    assert_eq!(*desk.host.modes.lock(), [true, false]);
    desk.switch_mode(SwitchMode::Normal).await;
    assert_eq!(*desk.host.modes.lock(), [true, false], "told once");
    upkeep.abort();
}

#[tokio::test]
async fn a_cached_slice_that_nobody_asks_for_gives_its_memory_back_after_a_minute() {
    let (desk, clock, upkeep) = kept_up();
    let meta = desk.slice("a", &[short(b"k", 1, 10, "v")]);
    desk.apply(std::slice::from_ref(&meta)).await.unwrap();
    let held = desk.budget.used();
    assert!(held > 0);
    pass(&clock, 50).await;
    desk.apply(&[meta]).await.unwrap();
    pass(&clock, 50).await;
    assert_eq!(desk.budget.used(), held, "it was asked for in between");
    pass(&clock, 20).await;
    assert_eq!(desk.budget.used(), 0);
    upkeep.abort();
}

#[tokio::test]
async fn parts_of_downloads_that_nobody_went_on_with_are_swept_after_hours() {
    let (desk, clock, upkeep) = kept_up();
    let part = desk.dir.path().join("import/.partial/abandoned");
    std::fs::write(&part, b"half").unwrap();
    pass(&clock, 600).await;
    assert!(part.exists());
    clock.pass(Duration::from_secs(6 * 3600));
    pass(&clock, 20).await;
    for _ in 0..100 {
        if !part.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!part.exists());
    upkeep.abort();
}
