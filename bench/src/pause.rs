//! How long a shard stands still when a generation is sealed: CPU time of the seal of one shard
//! that holds open slices of every region.

use std::sync::Arc;

use pitr_format::{EncodedRange, RecordBatch, Ts};
use pitr_observer::{Env, ShardCore, SourceEvent, TaskRanges};
use prometheus::Registry;

use crate::Result;
use crate::clock::timed;
use crate::rows::{Rows, Shape, region};

/// Seals that are measured.
const SEALS: usize = 50;
/// Rows of each region in a generation.
const ROWS: u64 = 4;

/// Prints one line.
pub fn run(regions: usize) -> Result<()> {
    let ranges = Arc::new(TaskRanges::new([EncodedRange::ALL]));
    let mut core = ShardCore::new(
        ranges,
        256 << 20,
        Env::with_registry(&Registry::new(), 4 << 30)?,
    );
    let regions = regions as u64;
    for id in 1..=regions {
        core.apply(SourceEvent::Started {
            sub: id,
            region: region(id),
            checkpoint_ts: Ts::new(1),
        });
    }
    let rows = Rows::new(Shape::Short);
    let mut pauses = Vec::new();
    for seal in 0..SEALS as u64 {
        for sub in 1..=regions {
            let mut records = RecordBatch::default();
            for n in 0..ROWS {
                rows.row(sub, seal * ROWS + n)
                    .records(Shape::Short, &mut records)?;
            }
            core.apply(SourceEvent::Batch { sub, records });
        }
        let (time, sealed) = timed(|| core.seal());
        drop(sealed);
        pauses.push(time.as_secs_f64() * 1e3);
    }
    pauses.sort_by(f64::total_cmp);
    let at = |share: f64| pauses[((pauses.len() - 1) as f64 * share).ceil() as usize];
    println!(
        "pause seal-{regions}-regions p50={:.3} p99={:.3} max={:.3}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}
