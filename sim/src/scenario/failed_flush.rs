//! A flush fails, rows go on arriving and are resolved, the flush is repeated and succeeds.
//!
//! The reference then publishes what is resolved *now*, although the repeated flush carried only
//! the old rows: whoever restores loses the rows in between without a word. Published must be what
//! the repeated generation proves.

use std::time::Duration;

use pitr_format::Ts;
use pitr_storage::fault::{FaultPlan, When};

use crate::SimError;
use crate::node::Rule;
use crate::world::{Checked, World};

/// What happened.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Proven checkpoint after the first, successful flush.
    pub before: Ts,
    /// After the repeated flush.
    pub after_retry: Ts,
    /// When everything was flushed.
    pub settled: Checked,
}

/// Plays it; `when` tells where the writes fail.
pub async fn play(rule: Rule, when: When) -> Result<Outcome, SimError> {
    let mut world = World::new(1, rule).await?;
    world.write(b"a", "before");
    world.write(b"b", vec![b'b'; 1000]);
    round(&mut world);
    world.flush().await?;
    let before = world.proven();

    world.write(b"a", "in the generation that fails");
    round(&mut world);
    world.set_faults(FaultPlan::failing_writes(when, |name| {
        name.starts_with("v1/2")
    }));
    world.flush().await?;
    if !world.has_pending() {
        return Err(SimError::Stuck("the flush did not fail".to_owned()));
    }

    // Between the failure and the retry: new rows, delivered and resolved.
    world.write(b"a", "after the failure");
    world.write(b"c", vec![b'c'; 1000]);
    round(&mut world);
    world.set_faults(FaultPlan::none());
    world.flush().await?;
    let after_retry = world.proven();
    let settled = world.settle().await?;
    Ok(Outcome {
        before,
        after_retry,
        settled,
    })
}

fn round(world: &mut World) {
    world.pass(Duration::from_secs(1));
    world.resolve();
    world.work_all();
}
