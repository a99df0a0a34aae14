//! The running observer: claims under concurrent senders, and its bounds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pitr_budget::MemoryBudget;
use pitr_format::{EncodedRange, Ts};
use pitr_observer::{
    Env, Flusher, FlusherConfig, Generation, Observer, ObserverConfig, ObserverHandle, SendError,
    SourceEvent,
};
use pitr_storage::open_url;

use crate::support::{Archive, batch, bound, env, region, resolved, row, started};

const STORE: u64 = 1;

fn observer(queue_events: usize, memory_budget: u64) -> ObserverHandle {
    let config = ObserverConfig {
        shards: 3,
        queue_events,
        slice_limit: 10_000,
        ..ObserverConfig::default()
    };
    let env = Env {
        budget: MemoryBudget::new(memory_budget),
        ..env()
    };
    Observer::start(config, env, [EncodedRange::ALL]).unwrap()
}

fn send_patiently(observer: &ObserverHandle, mut event: SourceEvent) {
    while let Err(error) = observer.try_send(event) {
        match error {
            SendError::Full(back) => event = back,
            SendError::Closed => panic!("closed"),
        }
        thread::yield_now();
    }
}

fn sealed(observer: &ObserverHandle) -> Generation {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(observer.seal()).unwrap()
}

/// The keys of sender `n`.
fn lane(n: u8) -> EncodedRange {
    EncodedRange::new(bound(&[n]), bound(&[n + 1]))
}

/// Rows at every ts from `first`, each resolved right behind, until told to stop.
fn sender(observer: &ObserverHandle, n: u8, stop: &AtomicBool) {
    let sub = u64::from(n);
    send_patiently(observer, started(sub, region(sub, lane(n)), 1));
    for ts in 2.. {
        if stop.load(Ordering::Relaxed) && ts > 50 {
            return;
        }
        send_patiently(observer, batch(sub, vec![row(&[n, 1], ts)]));
        send_patiently(observer, resolved(sub, ts));
    }
}

#[test]
fn every_generation_holds_all_rows_that_it_claims_under_concurrent_senders() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let observer = observer(16, 1 << 20);
    let storage = open_url("memory://").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 1..=6 {
            let (observer, stop) = (&observer, &stop);
            scope.spawn(move || sender(observer, n, stop));
        }
        runtime.block_on(async {
            let config = FlusherConfig::new(STORE);
            let mut flusher = Flusher::open(storage.clone(), config, &env())
                .await
                .unwrap();
            let mut moved = 0;
            for round in 0..12u64 {
                let mut generation = observer.seal().await.unwrap();
                assert_eq!(generation.id(), round + 1);
                let proof = flusher
                    .flush(&mut generation, Ts::new(round + 1))
                    .await
                    .unwrap();
                let archive = Archive::read(&storage).await;
                for progress in proof.progress() {
                    // Rows are at every ts from 2 on: the claim tells how many there must be.
                    let rows = archive.records.iter().filter(|record| {
                        let ts = pitr_format::key::split_versioned(&record.key).unwrap().1;
                        progress.range.contains(&record.key) && ts <= progress.ts
                    });
                    assert_eq!(rows.count() as u64, progress.ts.get() - 1);
                    moved += u64::from(progress.ts > progress.base);
                }
                thread::sleep(Duration::from_millis(2));
            }
            stop.store(true, Ordering::Relaxed);
            assert!(moved > 10, "only {moved} claims moved");
        });
    });
}

#[test]
fn a_full_observer_gives_the_event_back_and_takes_it_after_a_flush() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let observer = observer(64, 20_000);
    send_patiently(&observer, started(1, region(1, EncodedRange::ALL), 1));
    // A refusal lets shards and encoders make room; full is who still refuses when they did.
    let mut in_a_row = 0;
    let refused = (2..)
        .find_map(|ts| {
            let sent = observer.try_send(batch(1, vec![row(&[9; 500], ts)]));
            assert!(observer.memory_used() <= observer.memory_budget());
            thread::sleep(Duration::from_millis(1));
            in_a_row = if sent.is_err() { in_a_row + 1 } else { 0 };
            match sent {
                Err(SendError::Full(event)) if in_a_row == 50 => Some(event),
                _ => None,
            }
        })
        .unwrap();
    assert!(observer.memory_used() > 15_000);
    // Events without rows need no memory: the claims of what is held still go through.
    send_patiently(&observer, resolved(1, 5));
    runtime.block_on(async {
        let waiting = tokio::spawn({
            let observer = observer.clone();
            async move { observer.send(refused).await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let storage = open_url("memory://").unwrap();
        let config = FlusherConfig::new(STORE);
        let mut flusher = Flusher::open(storage, config, &env()).await.unwrap();
        let mut generation = observer.seal().await.unwrap();
        flusher.flush(&mut generation, Ts::new(1)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .unwrap()
            .unwrap();
        assert!(observer.memory_used() < 4000, "{}", observer.memory_used());
    });
}

#[test]
fn rows_outside_the_ranges_and_of_unknown_subscriptions_are_dropped() {
    let ranges = [EncodedRange::new(bound(b"b"), bound(b"c"))];
    let observer = Observer::start(ObserverConfig::default(), env(), ranges).unwrap();
    send_patiently(&observer, started(1, region(1, EncodedRange::ALL), 1));
    send_patiently(
        &observer,
        batch(1, vec![row(b"a", 5), row(b"b", 6), row(b"c", 7)]),
    );
    send_patiently(&observer, batch(2, vec![row(b"b", 8)]));
    send_patiently(&observer, SourceEvent::Ended { sub: 1 });
    send_patiently(&observer, batch(1, vec![row(b"b", 9)]));
    let generation = sealed(&observer);
    assert_eq!(generation.slices().len(), 1);
    let info = &generation.slices()[0].info;
    assert_eq!((info.number_of_entries, info.max_ts), (1, 6));
}

#[test]
fn a_row_that_is_no_record_stops_the_claim_of_its_subscription_only() {
    let observer = observer(64, 1 << 20);
    for n in [1, 2] {
        send_patiently(&observer, started(n, region(n, lane(n as u8)), 1));
        let mut broken = row(&[n as u8], 5);
        if n == 1 {
            broken.value = "".into();
            broken.key = "x".into();
        }
        send_patiently(
            &observer,
            batch(n, vec![broken.clone(), broken, row(&[n as u8], 6)]),
        );
        send_patiently(&observer, resolved(n, 9));
    }
    let generation = sealed(&observer);
    let faults: Vec<_> = generation.faults().iter().map(|fault| fault.sub).collect();
    assert_eq!(faults, [1]);
    let mut claims: Vec<_> = generation.progress().iter().map(|p| p.ts.get()).collect();
    claims.sort_unstable();
    assert_eq!(claims, [1, 9]);
}
