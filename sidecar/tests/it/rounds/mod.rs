//! The long rounds: a store under load, the sidecar beside it, something that goes wrong, and then
//! the proof that a restore gives exactly what the source shows, with every version.
//!
//! `PITR_ROUNDS` is the number of kills and of faulty runs (default 3); `PITR_SEED` repeats the
//! choices of a run, whose seed every test prints. What the load writes is random but bounded.

mod archive;
mod client;
mod compare;
mod damage;
mod faults;
mod kill;
mod lag;
mod load;
mod outage;
mod rows;
mod sidecar;
mod source;
mod target;
mod txn;
mod watch;

use std::time::{Duration, Instant};

/// How long anything may take before a round gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name of the task in every round.
const TASK: &str = "soak";

/// How often each thing goes wrong.
fn rounds() -> u64 {
    let asked = std::env::var("PITR_ROUNDS").ok();
    asked.map_or(3, |text| text.parse().expect("PITR_ROUNDS is a number"))
}

/// The seed of this run, printed under the name of the test.
fn seed(test: &str) -> u64 {
    let asked = std::env::var("PITR_SEED").ok();
    let seed = asked.map_or_else(rand::random::<u64>, |text| {
        text.parse().expect("PITR_SEED is a number")
    });
    println!("{test}: PITR_SEED={seed}");
    seed
}

/// Polls until the condition holds.
async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
