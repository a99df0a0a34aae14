//! The seeds of a CI run hold, and the oracle is awake.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};

use pitr_sim::{Bug, Outcome, SimError, play};

/// Seeds of this run: `PITR_SIM_SEEDS`, else 2000.
fn seeds() -> u64 {
    let set = std::env::var("PITR_SIM_SEEDS").ok();
    set.map_or(2000, |text| text.parse().unwrap())
}

fn add(sum: &mut Outcome, more: &Outcome) {
    sum.checkpoints += more.checkpoints;
    sum.metas += more.metas;
    sum.crashes += more.crashes;
    sum.failed_flushes += more.failed_flushes;
    sum.refused += more.refused;
    sum.faults += more.faults;
    sum.restored += more.restored;
    sum.moves += more.moves;
    sum.leaders += more.leaders;
}

#[test]
fn no_seed_loses_a_record_or_promises_one_that_is_not_durable() {
    let (seeds, next) = (seeds(), AtomicU64::new(0));
    let worker = || {
        let mut sum = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return sum;
            }
            let (outcome, result) = play(seed, None, false);
            if let Err(error) = result {
                panic!("seed {seed}: {error}\nreplay: make sim SEED={seed}");
            }
            add(&mut sum, &outcome);
        }
    };
    let mut sum = Outcome::default();
    std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        for worker in workers {
            add(&mut sum, &worker.join().unwrap());
        }
    });
    println!("{seeds} seeds: {sum:?}");
    // The worlds are worth their name: all of it happens.
    assert!(sum.checkpoints > 4 * seeds, "{sum:?}");
    assert!(sum.crashes > seeds / 2, "{sum:?}");
    assert!(sum.failed_flushes > seeds, "{sum:?}");
    assert!(sum.refused > seeds, "{sum:?}");
    assert!(sum.faults > 5 * seeds, "{sum:?}");
    assert!(sum.restored > 20 * seeds, "{sum:?}");
    assert!(sum.moves > seeds, "{sum:?}");
    assert!(sum.leaders > seeds + seeds / 4, "{sum:?}");
}

#[test]
fn the_same_seed_twice_gives_the_same_trace_and_the_same_bytes() {
    for seed in [0, 7, 1234] {
        let (first, _) = play(seed, None, true);
        let (second, _) = play(seed, None, true);
        assert_eq!(first, second);
        assert!(first.trace.len() > 50);
        assert_eq!(play(seed, None, false).0.fingerprint, first.fingerprint);
    }
    let of = |seed| play(seed, None, false).0.fingerprint;
    assert_ne!(of(7), of(8));
}

/// A planted mistake must break an invariant within the seeds of a CI run.
fn is_found(bug: Bug) {
    let broken =
        |seed: &u64| matches!(play(*seed, Some(bug), false).1, Err(SimError::Violation(_)));
    let seed = (0..1000).find(broken);
    println!("{bug:?}: first found by seed {seed:?}");
    assert!(seed.is_some(), "{bug:?} was not found");
}

macro_rules! planted {
    ($($name:ident: $bug:ident,)*) => {
        $(#[test] fn $name() { is_found(Bug::$bug); })*

        #[test]
        fn every_mistake_that_can_be_planted_has_its_test() {
            let tested = [$(Bug::$bug),*];
            assert!(Bug::ALL.iter().all(|bug| tested.contains(bug)));
        }
    };
}

planted! {
    a_checkpoint_published_before_the_upload_is_found: PublishBeforeUpload,
    progress_from_now_is_found: ProgressFromNow,
    a_retry_with_fresh_progress_is_found: RetryWithFreshProgress,
    a_region_left_out_of_the_minimum_is_found: RegionIgnored,
    a_checkpoint_object_before_the_global_checkpoint_is_found: ObjectBeforeGlobal,
    a_scan_from_what_was_resolved_but_not_durable_is_found: ScanFromResolved,
    a_meta_before_its_log_objects_is_found: MetaBeforeLogs,
    an_ignored_error_of_a_log_object_is_found: LogErrorIgnored,
    an_ignored_error_of_a_meta_is_found: MetaErrorIgnored,
    a_dropped_default_record_is_found: DefaultDropped,
    a_dropped_delete_is_found: DeleteDropped,
    rows_dropped_when_full_are_found: DroppedWhenFull,
    lost_rows_of_an_ended_subscription_are_found: EndedRowsLost,
    a_resolved_ts_above_open_transactions_is_found: LocksIgnored,
    a_resolved_ts_before_the_scan_is_found: ResolvedBeforeScan,
    a_subscription_without_its_scan_is_found: NoScan,
    a_coordinator_that_ignores_who_says_nothing_is_found: HoleIgnored,
    an_answer_for_another_version_of_a_region_is_found: VersionIgnored,
}
