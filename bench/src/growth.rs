//! How the cost of one event changes when something else grows: it should not.
//!
//! * `regions`: the same events in slices of the same size, from 1 region to many. With one
//!   region the slices are closed by the size limit.
//! * `slices`: the same events in 1 slice or many: what a small slice costs.
//! * `versions`: the same records restored, of many keys or as versions of few.

use std::time::Duration;

use pitr_format::RecordBatch;
use pitr_observer::{ObserverConfig, SourceEvent};
use pitr_storage::open_url;
use tokio::runtime::Runtime;

use crate::capture::{Capture, END, nowhere, runtime, send};
use crate::clock::timed_async;
use crate::restore::restore_once;
use crate::rows::{REGIONS, Rows, Shape};
use crate::{Error, Result, archive};

/// Events of one slice in the growth over regions.
const SLICE_EVENTS: u64 = 128;
/// Runs of which the best counts.
const RUNS: usize = 2;

/// Prints one line per step: nanoseconds of CPU per event, and the ratio to the first step.
struct Series {
    name: &'static str,
    first: Option<f64>,
}

impl Series {
    fn print(&mut self, x: u64, events: u64, best: Duration) {
        let cost = best.as_nanos() as f64 / events.max(1) as f64;
        let first = *self.first.get_or_insert(cost);
        println!(
            "growth {} x={x} {cost:.0} ns/event {:.2}",
            self.name,
            cost / first
        );
    }
}

/// All three.
pub fn run(most: usize, megabytes: usize) -> Result<()> {
    let runtime = runtime()?;
    regions(&runtime, most as u64)?;
    slices(&runtime, most as u64, megabytes)?;
    versions(&runtime, megabytes)
}

/// 1, then steps of 100 up to `most`.
fn steps(most: u64) -> impl Iterator<Item = u64> {
    let powers = std::iter::successors(Some(1u64), |x| x.checked_mul(100));
    powers.take_while(move |x| *x < most).chain([most])
}

fn regions(runtime: &Runtime, most: u64) -> Result<()> {
    let mut series = Series {
        name: "capture-regions",
        first: None,
    };
    let rows = Rows::new(Shape::Short);
    let slice_bytes = SLICE_EVENTS * Shape::Short.row_bytes() as u64;
    for regions in steps(most) {
        let each = most / regions * SLICE_EVENTS;
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let events = batches(&rows, regions, each, SLICE_EVENTS / 4)?;
            best = best.min(runtime.block_on(captured(regions, slice_bytes, events))?);
        }
        series.print(regions, regions * each, best);
    }
    Ok(())
}

fn slices(runtime: &Runtime, most: u64, megabytes: usize) -> Result<()> {
    let mut series = Series {
        name: "capture-slices",
        first: None,
    };
    let rows = Rows::new(Shape::Short);
    let events = (megabytes as u64 * 1_000_000 / Shape::Short.row_bytes() as u64).max(most);
    for regions in steps(most) {
        let each = events / regions;
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let events = batches(&rows, regions, each, 16)?;
            let limit = ObserverConfig::default().slice_limit;
            best = best.min(runtime.block_on(captured(regions, limit, events))?);
        }
        series.print(regions, regions * each, best);
    }
    Ok(())
}

/// Events of `size` rows, the regions in turn.
fn batches(rows: &Rows, regions: u64, each: u64, size: u64) -> Result<Vec<SourceEvent>> {
    let mut events = Vec::new();
    for first in (0..each).step_by(size as usize) {
        for sub in 1..=regions {
            let mut records = RecordBatch::default();
            for n in first..each.min(first + size) {
                rows.row(sub, n).records(Shape::Short, &mut records)?;
            }
            events.push(SourceEvent::Batch { sub, records });
        }
    }
    Ok(events)
}

/// CPU time to send and flush `events` of `regions` regions.
async fn captured(regions: u64, slice_limit: u64, events: Vec<SourceEvent>) -> Result<Duration> {
    let mut capture = Capture::start(nowhere()?, 1..=regions, slice_limit).await?;
    let (time, done) = timed_async(async {
        for event in events {
            send(capture.observer(), event).await?;
        }
        capture.flush().await
    })
    .await;
    done.map(|()| time)
}

fn versions(runtime: &Runtime, megabytes: usize) -> Result<()> {
    let mut series = Series {
        name: "restore-versions",
        first: None,
    };
    let rows = Rows::new(Shape::Short);
    let each = (megabytes as u64 * 1_000_000 / Shape::Short.row_bytes() as u64 / REGIONS).max(1);
    for versions in [1, 10, 1000] {
        let mut events = Vec::new();
        for sub in 1..=REGIONS {
            let mut records = RecordBatch::default();
            for n in 0..each {
                let number = (n / versions).wrapping_mul(0x9E37_79B1) as u32;
                let row = rows.version(sub, number, n);
                row.records(Shape::Short, &mut records)?;
            }
            events.push(SourceEvent::Batch { sub, records });
            events.push(SourceEvent::Resolved { sub, ts: END });
        }
        let best = runtime.block_on(async {
            let storage = open_url("memory://")?;
            archive::write(storage.clone(), REGIONS, 256 << 20, events).await?;
            let mut best = Duration::MAX;
            for _ in 0..RUNS {
                best = best.min(restore_once(storage.clone(), REGIONS * each).await?);
            }
            Ok::<_, Error>(best)
        })?;
        series.print(versions, REGIONS * each, best);
    }
    Ok(())
}
