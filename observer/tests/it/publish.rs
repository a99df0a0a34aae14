//! The order of publication, and that no failure makes the archive promise too much.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pitr_format::{EncodedRange, Ts};
use pitr_observer::{
    FlushedProof, Flusher, FlusherConfig, Generation, ProgressSink, Publisher, PublisherConfig,
};
use pitr_storage::fault::{FaultPlan, FaultyStorage, When};
use pitr_storage::{SharedStorage, open_url};

use crate::support::{
    FakePd, NO_LIMIT, batch, bound, checkpoint_object, core, env, region, resolved, row, started,
};

const STORE: u64 = 1;
/// End of the task.
const END: Ts = Ts::new(1000);

fn everything() -> EncodedRange {
    EncodedRange::new(bound(b""), bound(&[0xFF; 32]))
}

async fn publisher(storage: &SharedStorage, pd: &Arc<FakePd>, global: Option<u64>) -> Publisher {
    let config = PublisherConfig {
        task: "task".into(),
        store_id: STORE,
        ranges: vec![everything()],
        start_ts: Ts::new(10),
        end_ts: END,
        global_checkpoint: global.map(Ts::new),
    };
    let sink: Arc<dyn ProgressSink> = Arc::clone(pd) as _;
    Publisher::open(config, Arc::clone(storage), sink, &env())
        .await
        .unwrap()
}

/// Proof of a generation of one subscription over `range`.
async fn proof(range: EncodedRange, base: u64, ts: u64) -> FlushedProof {
    let storage = open_url("memory://").unwrap();
    let mut core = core(NO_LIMIT);
    core.apply(started(1, region(7, range), base));
    core.apply(batch(1, vec![row(b"k", ts)]));
    core.apply(resolved(1, ts));
    let mut generation = Generation::assemble(1, vec![core.seal()]).unwrap();
    let mut flusher = Flusher::open(storage, FlusherConfig::new(STORE), &env())
        .await
        .unwrap();
    flusher.flush(&mut generation, Ts::new(ts)).await.unwrap()
}

#[tokio::test]
async fn the_checkpoint_moves_when_every_range_of_the_task_is_proven() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    let mut publisher = publisher(&storage, &pd, None).await;
    let left = EncodedRange::new("", bound(b"m"));
    let right = EncodedRange::new(bound(b"m"), "");
    assert_eq!(
        publisher.absorb(&proof(left, 10, 100).await).checkpoint,
        Ts::new(10)
    );
    publisher.publish().await.unwrap();
    // A store tells its part, and the checkpoint that this makes: that of the start.
    assert_eq!(*pd.told.lock(), [("global", 10), ("storage", 10)]);
    publisher.absorb(&proof(right, 10, 70).await);
    let published = publisher.publish().await.unwrap();
    assert_eq!(published.global, Some(Ts::new(70)));
    assert_eq!(pd.told.lock()[2..], [("global", 70), ("storage", 70)]);
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 70);
    // A region from the first key on: what lies before the task's ranges does not count.
    let frontier = publisher.frontier();
    assert_eq!(
        frontier.min_over(&EncodedRange::new("", bound(b"a"))),
        Ts::new(100)
    );
    publisher.publish().await.unwrap();
    assert_eq!(pd.told.lock().len(), 4, "nothing new, nothing told");
}

#[tokio::test]
async fn of_several_stores_each_tells_its_regions_and_publishes_what_it_learns() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    pd.answers_later.store(true, Ordering::SeqCst);
    let mut publisher = publisher(&storage, &pd, Some(40)).await;
    let left = EncodedRange::new("", bound(b"m"));
    publisher.absorb(&proof(left.clone(), 10, 100).await);
    publisher.publish().await.unwrap();
    let table = pd.tables.lock().pop().unwrap();
    assert_eq!(table.checkpoint, Ts::new(40), "the other half is not ours");
    let line = &table.regions[0];
    assert_eq!((table.regions.len(), line.ts), (1, Ts::new(100)));
    assert_eq!((line.region.id, &line.region.range), (7, &left));
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 40);

    publisher.learn(Ts::new(90));
    publisher.learn(Ts::new(60));
    publisher.publish().await.unwrap();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 90);
    let frontier = publisher.frontier();
    let right = EncodedRange::new(bound(b"m"), "");
    assert_eq!(frontier.min_over(&right), Ts::new(90), "durable elsewhere");
    assert_eq!(frontier.min_over(&left), Ts::new(100));
    assert!(pd.tables.lock().is_empty(), "a table is told once");
}

#[tokio::test]
async fn a_region_that_reaches_over_the_frontier_of_its_parts_tells_their_minimum() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    pd.answers_later.store(true, Ordering::SeqCst);
    let mut publisher = publisher(&storage, &pd, None).await;
    // It was read from 40 on, and nobody read what lies between.
    let absorbed = publisher.absorb(&proof(EncodedRange::ALL, 40, 60).await);
    assert_eq!(absorbed.gaps, 1);
    publisher.publish().await.unwrap();
    assert_eq!(pd.tables.lock()[0].regions[0].ts, Ts::new(10));
}

#[tokio::test]
async fn no_object_promises_more_than_the_end_of_the_task() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    let mut publisher = publisher(&storage, &pd, None).await;
    publisher.absorb(&proof(EncodedRange::ALL, 10, END.get() + 500).await);
    publisher.publish().await.unwrap();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, END.get());
    assert_eq!(pd.told.lock()[1], ("storage", END.get()));
}

#[tokio::test]
async fn each_step_waits_for_the_one_before_and_is_repeated_alone() {
    let inner = open_url("memory://").unwrap();
    let faulty = FaultyStorage::new(inner, FaultPlan::none());
    let storage: SharedStorage = faulty.clone();
    let pd = Arc::new(FakePd::default());
    let mut publisher = publisher(&storage, &pd, None).await;
    publisher.absorb(&proof(EncodedRange::ALL, 10, 50).await);
    pd.refuse_global.store(true, Ordering::SeqCst);
    publisher.publish().await.unwrap_err();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 0);

    pd.refuse_global.store(false, Ordering::SeqCst);
    faulty.set_plan(FaultPlan::failing_writes(When::Before, |name| {
        name.ends_with(".ts")
    }));
    publisher.publish().await.unwrap_err();
    assert_eq!(*pd.told.lock(), [("global", 50)]);
    assert_eq!(
        publisher.published().object,
        Ts::ZERO,
        "memory follows the object"
    );

    faulty.set_plan(FaultPlan::failing_writes(When::After, |name| {
        name.ends_with(".ts")
    }));
    publisher.publish().await.unwrap_err();
    faulty.set_plan(FaultPlan::none());
    pd.refuse_storage.store(true, Ordering::SeqCst);
    publisher.publish().await.unwrap_err();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 50);

    pd.refuse_storage.store(false, Ordering::SeqCst);
    publisher.publish().await.unwrap();
    assert_eq!(*pd.told.lock(), [("global", 50), ("storage", 50)]);
}

#[tokio::test]
async fn a_crash_between_pd_and_the_object_is_repaired_at_the_next_start() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    let mut publisher = publisher(&storage, &pd, Some(80)).await;
    assert_eq!(
        publisher.checkpoint(),
        Ts::new(80),
        "PD's checkpoint is durable truth"
    );
    publisher.publish().await.unwrap();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 80);
    assert_eq!(*pd.told.lock(), [("storage", 80)]);
}

#[tokio::test]
async fn the_object_holds_what_pd_answered_and_is_never_lowered() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    *pd.floor.lock() = 90;
    let mut first = publisher(&storage, &pd, None).await;
    first.absorb(&proof(EncodedRange::ALL, 10, 60).await);
    first.publish().await.unwrap();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 90);
    *pd.floor.lock() = 0;
    let mut second = publisher(&storage, &pd, None).await;
    second.absorb(&proof(EncodedRange::ALL, 10, 60).await);
    second.publish().await.unwrap();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 90);
}

#[tokio::test]
async fn a_subscription_that_began_above_the_frontier_advances_nothing() {
    let storage = open_url("memory://").unwrap();
    let pd = Arc::new(FakePd::default());
    let mut publisher = publisher(&storage, &pd, None).await;
    let absorbed = publisher.absorb(&proof(EncodedRange::ALL, 40, 60).await);
    assert_eq!((absorbed.checkpoint, absorbed.gaps), (Ts::new(10), 1));
    publisher.publish().await.unwrap();
    assert_eq!(checkpoint_object(storage.as_ref(), STORE).await, 10);
}
