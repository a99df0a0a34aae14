//! The scenarios, and that they can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use pitr_sim::SimError;
use pitr_sim::node::Rule;
use pitr_sim::scenario::{failed_flush, random};
use pitr_storage::fault::When;

/// One thread, no timers: nothing but the seed decides.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

const SEEDS: u64 = 60;
const STEPS: u32 = 400;

#[test]
fn a_retried_flush_publishes_exactly_what_its_own_rows_prove() {
    for when in [When::Before, When::After] {
        let outcome = block_on(failed_flush::play(Rule::Proof, when)).unwrap();
        assert!(outcome.before < outcome.after_retry);
        assert!(Some(outcome.after_retry) < outcome.settled.last);
        assert_eq!(outcome.settled.failed_flushes, 1);
    }
}

#[test]
fn publishing_what_is_resolved_now_is_caught_as_lost_rows() {
    for when in [When::Before, When::After] {
        let caught = block_on(failed_flush::play(Rule::Now, when)).unwrap_err();
        assert!(matches!(caught, SimError::Violation { .. }), "{caught}");
    }
}

#[test]
fn restore_at_every_published_checkpoint_equals_the_store_in_random_worlds() {
    let (mut checkpoints, mut failures, mut crashes) = (0, 0, 0);
    for seed in 0..SEEDS {
        let played = block_on(random::play(seed, STEPS, Rule::Proof));
        let (_, checked) = played.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        checkpoints += checked.checkpoints;
        failures += checked.failed_flushes;
        crashes += checked.crashes;
    }
    // The worlds are worth their name: progress, failures and crashes all happen.
    assert!(checkpoints > 4 * SEEDS, "{checkpoints} checkpoints");
    assert!(failures > SEEDS, "{failures} failed flushes");
    assert!(crashes > SEEDS / 4, "{crashes} crashes");
}

#[test]
fn random_worlds_catch_the_planted_mistake_too() {
    let caught = |seed: &u64| {
        let played = block_on(random::play(*seed, STEPS, Rule::Now));
        matches!(played.map(|_| ()), Err(SimError::Violation { .. }))
    };
    let count = (0..SEEDS).filter(caught).count() as u64;
    assert!(count > SEEDS / 3, "only {count} of {SEEDS} seeds");
}

#[test]
fn the_same_seed_twice_gives_the_same_bytes() {
    let objects = |seed| {
        let (world, checked) = block_on(random::play(seed, STEPS, Rule::Proof)).unwrap();
        (block_on(world.objects()).unwrap(), checked)
    };
    assert_eq!(objects(7), objects(7));
    assert_ne!(objects(7).0, objects(8).0);
}
