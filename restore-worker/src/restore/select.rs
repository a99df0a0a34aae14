//! First half of a restore: slices to sorted records.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use pitr_format::Cf;
use pitr_format::record::RecordIter;
use pitr_storage::SharedStorage;
use tokio::sync::Semaphore;

use super::{Progress, Report, RestoreError, RestoreOptions};
use crate::cut::SortedRecords;
use crate::damage::Damage;
use crate::fetch::{fetch, open_slice};
use crate::filter::{Filter, FilterError, Filtered, Sink};
use crate::merge::{SortError, SortOptions, Sorter, Tag};
use crate::plan::{Plan, Read, Slice};

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
    let sort = SortOptions {
        memory: options.sort_memory / 2,
        ..SortOptions::default()
    };
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
            default: Sorter::new(dir, "default", sort.clone(), &options.memory),
            write: Sorter::new(dir, "write", sort, &options.memory),
        }),
    });
    let share = Semaphore::new(options.inflight_bytes as usize);
    let mut tallies = futures::stream::iter(plan.reads.iter().cloned())
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
    let sorted = finish(selection).await?;
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
    let permits = u32::try_from(read.memory())
        .unwrap_or(u32::MAX)
        .min(options.inflight_bytes);
    let permit = share.acquire_many(permits).await;
    let _permit = permit.map_err(|e| RestoreError::Worker(e.to_string()))?;
    // The sorters never hold all of the budget, so there will be room.
    let _memory = options.memory.reserve(u64::from(permits)).await;
    let bytes = fetch(storage.as_ref(), &read, options.attempts).await?;
    let selection = Arc::clone(selection);
    let worker = tokio::task::spawn_blocking(move || selection.add(&read, &bytes));
    let tally = worker
        .await
        .map_err(|e| RestoreError::Worker(e.to_string()))??;
    progress.read(tally.plain_bytes);
    Ok(tally)
}

async fn finish(selection: Arc<Selection>) -> Result<SortedRecords, RestoreError> {
    let busy = || RestoreError::Worker("a slice is still being sorted".to_owned());
    let selection = Arc::into_inner(selection).ok_or_else(busy)?;
    let Sorters { default, write } = selection.sorters.into_inner();
    let worker = tokio::task::spawn_blocking(move || {
        Ok(SortedRecords {
            default: default.finish()?,
            write: write.finish()?,
        })
    });
    worker
        .await
        .map_err(|e| RestoreError::Worker(e.to_string()))?
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
