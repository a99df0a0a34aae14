//! Targets that fail or change while a restore runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use async_trait::async_trait;
use pitr_format::{Class, EncodedKey, EncodedRange};
use pitr_restore_worker::digest::record_digest;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::sst::SstFile;
use pitr_restore_worker::target::{EngineTarget, Target, TargetError, TargetRegion};
use pitr_restore_worker::{RestoreError, plan, restore};

use super::golden::{Golden, Local, restore_new, up_to};

/// Fails its first `failures` ingests with `class`; splits regions after the first failure.
struct Shaky {
    before: EngineTarget<RocksEngine>,
    after: EngineTarget<RocksEngine>,
    class: Class,
    failures: usize,
    calls: AtomicUsize,
}

impl Shaky {
    fn new(local: &Local, class: Class, failures: usize) -> Shaky {
        let splits = [&b"multi/3"[..], b"val/0300"].map(|k| EncodedKey::encode(k).into_bytes());
        Shaky {
            before: local.target(),
            after: local.target_with_splits(&splits),
            class,
            failures,
            calls: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Target for Shaky {
    async fn regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        match self.calls.load(SeqCst) {
            0 => self.before.regions(range).await,
            _ => self.after.regions(range).await,
        }
    }

    async fn ingest(&self, region: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError> {
        for sst in ssts {
            assert_eq!(
                region.range.intersect(&sst.key_range()),
                Some(sst.key_range())
            );
            assert!(sst.path.is_file());
        }
        assert!(
            ssts.is_sorted_by_key(|sst| sst.cf),
            "values come before write records"
        );
        if self.calls.fetch_add(1, SeqCst) < self.failures {
            return Err(TargetError::new(self.class, "not now"));
        }
        self.after.ingest(region, ssts).await
    }
}

async fn run(
    class: Class,
    failures: usize,
    batch_bytes: u64,
) -> (Local, Result<u64, RestoreError>, u64) {
    let golden = Golden::proven_empty("log-basic");
    let window = up_to(golden.times.end_ts);
    let (_, wanted) = restore_new(&golden, &window).await;
    let archive = golden.open().await;
    let local = Local::new();
    let target = Shaky::new(&local, class, failures);
    let mut options = local.options();
    options.batch_bytes = batch_bytes;
    // One at a time, so that most batches are cut after the regions changed.
    options.ingests = 1;
    let (plan, storage) = (
        plan(&archive, &window).await.unwrap(),
        Arc::clone(archive.storage()),
    );
    let result = restore(&plan, storage, &target, options, Arc::default()).await;
    if let Ok(report) = &result {
        assert_eq!(report.digest_out, wanted.digest_out);
        assert_eq!(
            record_digest(local.engine.as_ref()).unwrap(),
            wanted.digest_out
        );
    }
    let ssts = result.as_ref().map_or(0, |r| r.ssts);
    (local, result.map(|r| r.recuts), ssts)
}

#[tokio::test]
async fn when_regions_split_the_batch_is_cut_again_at_the_new_bounds() {
    let (_, recuts, ssts) = run(Class::Refresh, 1, u64::MAX).await;
    assert_eq!(
        (recuts.unwrap(), ssts),
        (1, 6),
        "three regions, two column families"
    );
}

#[tokio::test]
async fn a_busy_target_gets_the_same_files_again() {
    let (_, recuts, ssts) = run(Class::Retry, 2, u64::MAX).await;
    assert_eq!((recuts.unwrap(), ssts), (0, 2));
}

#[tokio::test]
async fn a_permanent_refusal_ends_the_restore_at_once() {
    let (_, result, _) = run(Class::Permanent, 1, u64::MAX).await;
    let error = result.unwrap_err();
    assert!(matches!(error, RestoreError::Target(_)), "{error}");
    assert_eq!(error.class(), Class::Permanent);
}

#[tokio::test]
async fn a_split_amid_many_batches_cuts_only_the_batch_that_was_refused() {
    let (_, recuts, ssts) = run(Class::Refresh, 1, 1 << 15).await;
    assert_eq!(recuts.unwrap(), 1);
    assert!(ssts > 20, "{ssts} files");
}
