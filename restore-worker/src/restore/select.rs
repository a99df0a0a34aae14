//! First half of a restore: slices to sorted records.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use pitr_format::Cf;
use pitr_format::record::RecordIter;
use pitr_storage::SharedStorage;
use tokio::sync::Semaphore;

use super::{Progress, Report, RestoreError, RestoreOptions, lost};
use crate::cut::SortedRecords;
use crate::damage::Damage;
use crate::env::{Env, within};
use crate::fetch::{fetch, open_slice};
use crate::filter::{Filter, FilterError, Filtered, Sink};
use crate::merge::{FLOOR, SortError, SortOptions, Sorter, Tag};
use crate::plan::{Plan, Read, Slice};

/// How long a restore waits for others to give memory back before it begins.
const WAIT_FOR_MEMORY: Duration = Duration::from_secs(120);

/// The sorters, shared by the workers: one worker at a time adds a slice.
struct Selection {
    filter: Filter,
    max_slice_bytes: u64,
    sorters: Mutex<Sorters>,
}

struct Sorters {
    default: Sorter,
    write: Sorter,
}

impl Sink for Sorters {
    type Error = SortError;

    fn record(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), SortError> {
        match cf {
            Cf::Default => self.default.push(key, Tag::Value, value),
            Cf::Write => self.write.push(key, Tag::Value, value),
        }
    }

    fn reference(&mut self, key: &[u8]) -> Result<(), SortError> {
        self.default.push(key, Tag::Reference, &[])
    }
}

/// What one request brought.
#[derive(Default)]
struct Tally {
    records: u64,
    filtered: Filtered,
    slices: u64,
    stored_bytes: u64,
    plain_bytes: u64,
}

/// Fetches, proves, filters and sorts everything the plan reads.
pub(super) async fn select(
    plan: &Plan,
    storage: &SharedStorage,
    options: &RestoreOptions,
    dir: &Path,
    progress: &Arc<Progress>,
    report: &mut Report,
) -> Result<SortedRecords, RestoreError> {
    let budget = &options.env.budget;
    // What the plan holds is gone, and the rest stays as it is divided.
    let left = budget.limit().saturating_sub(plan.reads.memory());
    let share = usize::try_from(left / 2).unwrap_or(usize::MAX);
    let sort = SortOptions {
        memory: options.sort_memory.min(share) / 2,
        ..SortOptions::default()
    };
    let clock = options.env.clock.as_ref();
    let floors = within(clock, WAIT_FOR_MEMORY, budget.reserve(2 * FLOOR)).await;
    let mut floors = floors.ok_or(RestoreError::MemoryInUse {
        bytes: 2 * FLOOR,
        limit: budget.limit(),
    })?;
    let selection = Arc::new(Selection {
        filter: Filter {
            start: plan.start,
            shift: plan.shift,
            restored: plan.restored,
            ranges: plan.ranges.clone(),
            rewrite: options.rewrite.clone(),
        },
        max_slice_bytes: options.max_slice_bytes,
        sorters: Mutex::new(Sorters {
            default: Sorter::new(dir, "default", sort.clone(), floors.split(FLOOR)),
            write: Sorter::new(dir, "write", sort, floors),
        }),
    });
    let share = Semaphore::new(options.inflight_bytes as usize);
    let mut tallies = futures::stream::iter(plan.reads.iter())
        .map(|read| one_request(read, &selection, storage, options, &share, progress))
        .buffer_unordered(options.fetches.max(1));
    while let Some(tally) = tallies.try_next().await? {
        report.requests += 1;
        report.slices += tally.slices;
        report.read += tally.records;
        report.filtered.merge(&tally.filtered);
        report.stored_bytes += tally.stored_bytes;
        report.plain_bytes += tally.plain_bytes;
    }
    drop(tallies);
    let sorted = finish(selection, &options.env).await?;
    report.duplicates += sorted.default.duplicates().values + sorted.write.duplicates().values;
    Ok(sorted)
}

async fn one_request(
    read: Read,
    selection: &Arc<Selection>,
    storage: &SharedStorage,
    options: &RestoreOptions,
    share: &Semaphore,
    progress: &Arc<Progress>,
) -> Result<Tally, RestoreError> {
    let clock = options.env.clock.as_ref();
    let permits = u32::try_from(read.memory())
        .unwrap_or(u32::MAX)
        .min(options.inflight_bytes);
    let permit = share.acquire_many(permits).await;
    let _permit = permit.map_err(|e| RestoreError::Worker(e.to_string()))?;
    // The sorters never hold all of the budget, so there will be room.
    let _memory = options.env.budget.reserve(u64::from(permits)).await;
    let bytes = fetch(storage.as_ref(), clock, &read, options.attempts).await?;
    let selection = Arc::clone(selection);
    let added = options.env.unblock(move || selection.add(&read, &bytes));
    let tally = added.await.map_err(lost)??;
    progress.read(tally.plain_bytes);
    Ok(tally)
}

async fn finish(selection: Arc<Selection>, env: &Env) -> Result<SortedRecords, RestoreError> {
    let busy = || RestoreError::Worker("a slice is still being sorted".to_owned());
    let selection = Arc::into_inner(selection).ok_or_else(busy)?;
    let Sorters { default, write } = selection.sorters.into_inner();
    let sort = move || {
        Ok(SortedRecords {
            default: default.finish()?,
            write: write.finish()?,
        })
    };
    env.unblock(sort).await.map_err(lost)?
}

impl Selection {
    fn add(&self, read: &Read, bytes: &Bytes) -> Result<Tally, RestoreError> {
        let mut tally = Tally {
            stored_bytes: bytes.len() as u64,
            ..Tally::default()
        };
        for slice in &read.slices {
            let plain = open_slice(read, slice, bytes, self.max_slice_bytes)?;
            tally.slices += 1;
            tally.plain_bytes += plain.len() as u64;
            self.add_slice(slice, &plain, &mut tally)?;
        }
        Ok(tally)
    }

    fn add_slice(
        &self,
        slice: &Slice,
        plain: &[u8],
        tally: &mut Tally,
    ) -> Result<(), RestoreError> {
        let mut sorters = self.sorters.lock();
        for record in RecordIter::new(plain) {
            let (key, value) = record.map_err(|e| Damage::new(&slice.object, e))?;
            tally.records += 1;
            let filtered = &mut tally.filtered;
            match self
                .filter
                .apply(slice.cf, key, value, &mut *sorters, filtered)
            {
                Ok(()) => {}
                Err(FilterError::Sink(e)) => return Err(e.into()),
                Err(FilterError::Malformed(what)) => {
                    return Err(Damage::new(&slice.object, what).into());
                }
            }
        }
        Ok(())
    }
}
