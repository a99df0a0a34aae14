//! Second half of a restore: sorted records to files, files into the target.
//!
//! One blocking worker cuts; a few batches are ingested at once. When the target says that its
//! regions changed, the regions of that batch alone are loaded anew and the batch is cut again.

use std::path::Path;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use pitr_format::{Class, EncodedRange};
use tokio::sync::mpsc;

use super::{Progress, Report, RestoreError, RestoreOptions, lost};
use crate::cut::{Batch, CutError, CutOptions, CutTally, Cutter, SortedRecords};
use crate::fetch::back_off_as_asked;
use crate::regions::{self, RegionTable};
use crate::sst::SstFile;
use crate::target::{Target, TargetError, TargetRegion};

/// Batches that are cut ahead of those being ingested.
const AHEAD: usize = 1;

pub(super) struct Ingest<'a> {
    pub(super) target: &'a dyn Target,
    pub(super) options: &'a RestoreOptions,
    pub(super) cut: CutOptions,
    pub(super) progress: &'a Progress,
}

/// State that the cutter and the ingesting side share.
struct Shared {
    records: SortedRecords,
    regions: Mutex<RegionTable>,
}

impl Ingest<'_> {
    pub(super) async fn run(
        &self,
        records: SortedRecords,
        regions: RegionTable,
        report: &mut Report,
    ) -> Result<(), RestoreError> {
        let shared = Arc::new(Shared {
            records,
            regions: Mutex::new(regions),
        });
        let (sender, mut batches) = mpsc::channel(AHEAD);
        let cutter = self.cut_all(&shared, sender).fuse();
        let mut cutter = std::pin::pin!(cutter);
        let mut cut = None;
        let mut running = FuturesUnordered::new();
        loop {
            let room = running.len() < self.options.ingests.max(1);
            tokio::select! {
                batch = batches.recv(), if room => match batch {
                    Some(batch) => running.push(self.ingest(batch, &shared)),
                    None => break,
                },
                done = &mut cutter, if cut.is_none() => cut = Some(done?),
                Some(done) = running.next(), if !running.is_empty() => {
                    self.account(done?, report);
                }
            }
        }
        while let Some(done) = running.next().await {
            self.account(done?, report);
        }
        let (tally, duplicates) = match cut {
            Some(cut) => cut,
            None => cutter.await?,
        };
        report.filtered.unreferenced_value += tally.unreferenced;
        report.duplicates += duplicates;
        report.digest_in = tally.digest;
        report.expected_scan = tally.expected_scan;
        Ok(())
    }

    fn account(&self, done: Done, report: &mut Report) {
        for file in &done.files {
            report.ssts += 1;
            report.written += file.entries;
            report.written_bytes += file.raw_bytes;
            report.sst_bytes += file.file_size;
            report.digest_out.merge(&file.digest);
        }
        report.recuts += done.recuts;
    }

    /// Cuts everything; sends the batches as fast as they are taken.
    async fn cut_all(
        &self,
        shared: &Arc<Shared>,
        sender: mpsc::Sender<Batch>,
    ) -> Result<(CutTally, u64), RestoreError> {
        let (shared, cut) = (Arc::clone(shared), self.cut.clone());
        let work = move || -> Result<(CutTally, u64), CutError> {
            let mut cutter = Cutter::new(&shared.records, cut)?;
            loop {
                let regions = shared.regions.lock().clone();
                let Some(batch) = cutter.next_batch(&regions)? else {
                    return Ok(cutter.tally());
                };
                // The receiver is gone only when the restore has failed.
                if sender.blocking_send(batch).is_err() {
                    return Ok(cutter.tally());
                }
            }
        };
        Ok(self.options.env.unblock(work).await.map_err(lost)??)
    }

    /// Ingests a batch, cutting it again as often as regions change.
    async fn ingest(&self, batch: Batch, shared: &Arc<Shared>) -> Result<Done, RestoreError> {
        let mut done = Done::default();
        let mut pending = vec![batch];
        let mut attempt = 0;
        while let Some(batch) = pending.pop() {
            self.progress.touch_target();
            let Err(error) = self.target.ingest(&batch.region, &batch.ssts).await else {
                self.taken(batch.ssts, &mut done).await?;
                attempt = 0;
                continue;
            };
            attempt += 1;
            if attempt >= self.options.attempts || error.class() == Class::Permanent {
                return Err(error.into());
            }
            tracing::info!(range = ?batch.range(), attempt, %error, "ingest is repeated");
            let clock = self.options.env.clock.as_ref();
            back_off_as_asked(clock, attempt, error.wait).await;
            if error.class() == Class::Refresh {
                done.recuts += 1;
                pending.extend(self.cut_again(batch, shared).await?);
            } else {
                pending.push(batch);
            }
        }
        Ok(done)
    }

    async fn taken(&self, files: Vec<SstFile>, done: &mut Done) -> Result<(), RestoreError> {
        for file in &files {
            self.progress.ingested(file.raw_bytes, file.entries);
        }
        self.remove(&files).await?;
        done.files.extend(files);
        Ok(())
    }

    async fn remove(&self, files: &[SstFile]) -> Result<(), RestoreError> {
        let paths: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let work = move || paths.iter().for_each(|path| remove(path));
        self.options.env.unblock(work).await.map_err(lost)
    }

    /// Batches with the keys of `batch`, cut at the regions as they are now.
    async fn cut_again(
        &self,
        batch: Batch,
        shared: &Arc<Shared>,
    ) -> Result<Vec<Batch>, RestoreError> {
        self.remove(&batch.ssts).await?;
        // The whole former region: parts of it that lie behind this batch changed as well.
        let stale = batch.region.range.clone();
        let fresh = self.load_regions(&stale).await?;
        shared.regions.lock().replace(&stale, fresh.clone())?;
        let mut table = RegionTable::default();
        table.replace(&stale, fresh)?;
        let (shared, cut) = (Arc::clone(shared), self.cut.clone());
        let work = move || -> Result<Vec<Batch>, CutError> {
            let mut cutter = Cutter::again(&shared.records, cut, &batch)?;
            let mut batches = Vec::new();
            while let Some(batch) = cutter.next_batch(&table)? {
                batches.push(batch);
            }
            Ok(batches)
        };
        Ok(self.options.env.unblock(work).await.map_err(lost)??)
    }

    async fn load_regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        let clock = self.options.env.clock.as_ref();
        regions::load(self.target, clock, range, self.options.attempts).await
    }
}

/// Files that the target took for one batch.
#[derive(Default)]
struct Done {
    files: Vec<SstFile>,
    recuts: u64,
}

/// Ingest by move may have taken the file; what is left goes with the directory.
fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), error = %e, "SST file stays until the end");
    }
}
