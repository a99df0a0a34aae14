//! Anything in any order, chosen by a seed: transactions, slow shards, splits, broken
//! connections, failing storage and PD, crashes. The invariant is checked after every flush.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pitr_storage::fault::{FaultPlan, When};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::SimError;
use crate::node::Rule;
use crate::world::{Checked, World};

const KEYS: u32 = 40;

/// Plays `steps` steps of `seed`; the world afterwards, settled, and what was checked.
pub async fn play(seed: u64, steps: u32, rule: Rule) -> Result<(World, Checked), SimError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new(seed, rule).await?;
    for _ in 0..steps {
        step(&mut world, &mut rng).await?;
        world.pass(Duration::from_millis(rng.random_range(1..400)));
        if world.flush_is_due() {
            world.flush().await?;
        }
    }
    let checked = world.settle().await?;
    Ok((world, checked))
}

async fn step(world: &mut World, rng: &mut StdRng) -> Result<(), SimError> {
    let open = world.store.open_transactions();
    match rng.random_range(0..100) {
        0..30 => world.prewrite(writes(rng)),
        30..55 if open > 0 => world.commit(rng.random_range(0..open)),
        55..58 if open > 0 => world.store.roll_back(rng.random_range(0..open)),
        58..80 => world.work(rng.random_range(0..3), rng.random_range(1..20)),
        80..90 => world.resolve(),
        90..92 => world.split(&key(rng)),
        92..94 => {
            let region = rng.random_range(0..world.store.regions());
            world.reconnect(region, rng.random_bool(0.5));
        }
        94..97 => world.set_faults(plan(rng)),
        97 => world.pd.refuse(rng.random_range(1..4)),
        98 => world.publish().await?,
        99 if rng.random_bool(0.3) => world.crash().await?,
        _ => {}
    }
    Ok(())
}

fn key(rng: &mut StdRng) -> Vec<u8> {
    let first = [b'a', b'm', b't', 0xFD][rng.random_range(0..4)];
    let mut key = vec![first];
    key.extend_from_slice(rng.random_range(0..KEYS).to_string().as_bytes());
    key
}

fn writes(rng: &mut StdRng) -> BTreeMap<Vec<u8>, Option<Bytes>> {
    (0..rng.random_range(1..5))
        .map(|_| {
            let fill = rng.random_range(0..=255);
            let size = [0, 10, 255, 256, 900][rng.random_range(0..5)];
            let value = rng.random_bool(0.8).then(|| vec![fill; size].into());
            (key(rng), value)
        })
        .collect()
}

fn plan(rng: &mut StdRng) -> FaultPlan {
    let when = [When::Before, When::After, When::Alternate][rng.random_range(0..3)];
    match rng.random_range(0..4) {
        0 => FaultPlan::none(),
        1 => FaultPlan::every_nth_write(rng.random_range(1..5), when),
        2 => FaultPlan::failing_writes(when, |name| name.ends_with(".meta")),
        _ => FaultPlan::failing_writes(when, |name| name.ends_with(".ts")),
    }
}
