//! The hot path: what a row costs beyond its bytes, and for how long a seal stops it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pitr_env::Clock;
use pitr_format::{EncodedRange, KvRecord};
use pitr_observer::{Env, Observer, ObserverConfig, ShardCore, SourceEvent};
use prometheus::core::Metric;
use rustix::time::{ClockId, clock_gettime};
use tikv_jemalloc_ctl::thread::allocatedp;

use crate::support::{batch, bound, core, env, region, resolved, row, started};

const REGIONS: u64 = 10_000;

/// Processor time of the thread that asks: a busy machine does not make a pause longer.
struct ThreadCpu;

impl Clock for ThreadCpu {
    fn now(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

fn key(region: u64, n: u64) -> Vec<u8> {
    [&region.to_be_bytes()[..], &n.to_be_bytes()].concat()
}

fn rows(region: u64, from: u64, count: u64) -> Vec<KvRecord> {
    (from..from + count)
        .map(|n| row(&key(region, n), n + 2))
        .collect()
}

fn region_range(id: u64) -> EncodedRange {
    EncodedRange::new(bound(&key(id, 0)), bound(&key(id + 1, 0)))
}

/// Bytes that this thread allocated since it began.
fn allocated() -> u64 {
    let counter = allocatedp::read().unwrap();
    counter.get()
}

/// What applying `events` allocates beyond the buffers of the slices.
fn allocated_beside_buffers(core: &mut ShardCore, events: Vec<SourceEvent>) -> i64 {
    let (before, held) = (allocated(), core.held_bytes());
    for event in events {
        core.apply(event);
    }
    let buffers = core.held_bytes() - held;
    (allocated() - before) as i64 - buffers as i64
}

#[test]
fn a_row_costs_no_allocation_once_its_slice_is_open() {
    let mut core = core(1 << 30);
    for sub in 1..=4 {
        core.apply(started(sub, region(sub, region_range(sub)), 1));
    }
    let of = |from, sub| batch(sub, rows(sub, from, 500));
    let events = |from| (1..=4).map(|sub| of(from, sub)).collect::<Vec<_>>();
    // Opens the slices and lets the counters of the metrics come into being.
    allocated_beside_buffers(&mut core, events(0));
    let first = events(500);
    let beside = allocated_beside_buffers(&mut core, first);
    // 2000 rows; the list of a slice's chunks may grow once.
    assert!(
        (-2048..2048).contains(&beside),
        "{beside} bytes for 2000 rows"
    );
    let later = events(1000);
    let beside = allocated_beside_buffers(&mut core, later);
    assert!(
        (-2048..2048).contains(&beside),
        "{beside} bytes for 2000 rows"
    );
}

#[test]
fn a_seal_of_ten_thousand_regions_stops_a_shard_for_milliseconds_at_most() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let env = Env {
        clock: Arc::new(ThreadCpu),
        ..env()
    };
    let observer =
        Observer::start(ObserverConfig::default(), env.clone(), [EncodedRange::ALL]).unwrap();
    runtime.block_on(async {
        for sub in 1..=REGIONS {
            let event = started(sub, region(sub, region_range(sub)), 1);
            observer.send(event).await.unwrap();
        }
        for round in 0..10 {
            for sub in 1..=REGIONS {
                let records = rows(sub, round * 4, 4);
                observer.send(batch(sub, records)).await.unwrap();
                observer.send(resolved(sub, round * 4 + 6)).await.unwrap();
            }
            let generation = observer.seal().await.unwrap();
            assert_eq!(generation.slices().len() as u64, REGIONS);
            assert_eq!(generation.progress().len() as u64, REGIONS);
        }
    });
    let pauses = env.metrics.seal_pause.metric();
    let pauses = pauses.get_histogram();
    for bucket in pauses.get_bucket() {
        let (count, bound) = (bucket.cumulative_count(), bucket.upper_bound());
        println!("{count:3} pauses up to {:.2} ms", bound * 1000.0);
    }
    assert_eq!(pauses.get_sample_count(), 20);
    let below = |seconds: f64| {
        let mut buckets = pauses.get_bucket().iter();
        let largest = buckets.rfind(|bucket| bucket.upper_bound() <= seconds);
        largest.unwrap().cumulative_count()
    };
    assert!(below(0.005) >= 19, "a pause in a hundred may be longer");
}

#[test]
fn ten_thousand_small_slices_take_little_memory() {
    let mut core = core(1 << 30);
    for sub in 1..=REGIONS {
        core.apply(started(sub, region(sub, region_range(sub)), 1));
        core.apply(batch(sub, rows(sub, 0, 5)));
    }
    let each = core.held_bytes() / REGIONS;
    assert!(each < 2048, "{each} bytes a slice of five rows");
}
