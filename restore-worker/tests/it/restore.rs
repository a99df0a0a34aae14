//! Golden archives restored into a local RocksDB equal what scans of the real store gave.

use std::sync::Arc;

use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_restore_worker::digest::{record_digest, scan_digest};
use pitr_restore_worker::plan::{PlanError, Window};
use pitr_restore_worker::rewrite::Rewrite;
use pitr_restore_worker::{Progress, plan, restore};

use super::golden::{Golden, Local, Pairs, restore_new, up_to};

fn assert_same(found: &Pairs, wanted: &Pairs) {
    let missing = wanted
        .iter()
        .filter(|(k, v)| found.get(*k) != Some(v))
        .count();
    let extra = found.keys().filter(|k| !wanted.contains_key(*k)).count();
    assert_eq!((missing, extra, found.len()), (0, 0, wanted.len()));
}

#[tokio::test]
async fn log_basic_restores_to_its_two_scans() {
    let golden = Golden::proven_empty("log-basic");
    let times = golden.times;
    for (ts, scan) in [
        (times.mid_ts, "scan-mid.tsv.gz"),
        (times.end_ts, "scan-end.tsv.gz"),
    ] {
        let (local, report) = restore_new(&golden, &up_to(ts)).await;
        assert_same(&local.scan(ts), &golden.scan(scan));
        assert!(report.written > 648, "{report}");
        assert_eq!(
            record_digest(local.engine.as_ref()).unwrap(),
            report.digest_out
        );
        assert_eq!(
            scan_digest(local.engine.as_ref(), Ts::new(ts)).unwrap(),
            report.expected_scan
        );
    }
}

#[tokio::test]
async fn a_restore_to_the_end_still_shows_the_middle_because_every_version_survives() {
    let golden = Golden::proven_empty("log-basic");
    let (local, _) = restore_new(&golden, &up_to(golden.times.end_ts)).await;
    assert_same(
        &local.scan(golden.times.mid_ts),
        &golden.scan("scan-mid.tsv.gz"),
    );
    let (mid, _) = restore_new(&golden, &up_to(golden.times.mid_ts)).await;
    let ts = Ts::new(golden.times.mid_ts);
    let digest = scan_digest(local.engine.as_ref(), ts).unwrap();
    assert_eq!(digest, scan_digest(mid.engine.as_ref(), ts).unwrap());
    assert_eq!(digest.count(), 648);
    assert_ne!(digest, scan_digest(local.engine.as_ref(), Ts::MAX).unwrap());
}

#[tokio::test]
async fn log_splits_on_top_of_log_basic_restores_to_its_two_scans() {
    let (basic, splits) = (
        Golden::proven_empty("log-basic"),
        Golden::complete("log-splits"),
    );
    let archive = splits.open().await;
    for (ts, scan) in [
        (splits.times.mid_ts, "scan-mid.tsv.gz"),
        (splits.times.end_ts, "scan-end.tsv.gz"),
    ] {
        let (local, _) = restore_new(&basic, &up_to(basic.times.end_ts)).await;
        let window = Window {
            log_only: true,
            ..up_to(ts)
        };
        local
            .restore(&archive, &plan(&archive, &window).await.unwrap())
            .await;
        assert_same(&local.scan(ts), &splits.scan(scan));
    }
}

#[tokio::test]
async fn log_splits_alone_is_refused_and_with_log_only_gives_the_changed_keys() {
    let golden = Golden::complete("log-splits");
    let archive = golden.open().await;
    let error = plan(&archive, &up_to(golden.times.end_ts))
        .await
        .unwrap_err();
    assert!(matches!(error, PlanError::NotProvenEmpty { .. }), "{error}");

    let window = Window {
        log_only: true,
        ..up_to(golden.times.end_ts)
    };
    let (local, _) = restore_new(&golden, &window).await;
    let found = local.scan(golden.times.end_ts);
    assert_eq!(found.len(), 652);
    let scan = golden.scan("scan-end.tsv.gz");
    assert!(
        found
            .iter()
            .all(|(key, value)| scan.get(key) == Some(value))
    );
}

#[tokio::test]
async fn small_memory_small_files_and_many_regions_give_the_same_records() {
    let golden = Golden::proven_empty("log-basic");
    let window = up_to(golden.times.end_ts);
    let (_, wanted) = restore_new(&golden, &window).await;
    let archive = golden.open().await;
    let plan = plan(&archive, &window).await.unwrap();
    let local = Local::new();
    let mut options = local.options();
    options.sort_memory = 1 << 20;
    options.inflight_bytes = 1 << 16;
    options.sst_bytes = 1 << 14;
    options.batch_bytes = 1 << 15;
    let splits = [&b"multi/3"[..], b"r", b"val/0300", b"x"];
    let splits = splits.map(|key| EncodedKey::encode(key).into_bytes());
    let target = local.target_with_splits(&splits);
    let storage = Arc::clone(archive.storage());
    let progress = Arc::new(Progress::default());
    let report = restore(&plan, storage, &target, options, Arc::clone(&progress))
        .await
        .unwrap();
    assert!(report.ssts > 20, "{report}");
    assert_eq!(report.digest_out, wanted.digest_out);
    assert_eq!(
        record_digest(local.engine.as_ref()).unwrap(),
        wanted.digest_out
    );
    assert_eq!((report.read, report.written), (wanted.read, wanted.written));
    assert_eq!(
        progress.ingested_amount(),
        (report.written_bytes, report.written)
    );
    assert_eq!(
        progress.plain_bytes(),
        (report.plain_bytes, report.plain_bytes)
    );
    let left = std::fs::read_dir(local.dir.path()).unwrap().count();
    assert_eq!(
        left, 1,
        "the temporary directory is gone, the engine is left"
    );
}

#[tokio::test]
async fn restoring_twice_changes_nothing() {
    let golden = Golden::proven_empty("log-basic");
    let (local, report) = restore_new(&golden, &up_to(golden.times.end_ts)).await;
    let archive = golden.open().await;
    let again = local
        .restore(
            &archive,
            &plan(&archive, &up_to(golden.times.end_ts)).await.unwrap(),
        )
        .await;
    assert_eq!(report, again);
    assert_eq!(
        record_digest(local.engine.as_ref()).unwrap(),
        report.digest_out
    );
}

#[tokio::test]
async fn a_range_restores_just_its_keys_and_a_prefix_can_be_renamed() {
    let golden = Golden::proven_empty("log-basic");
    let (from, to) = (EncodedKey::encode(b"val/"), EncodedKey::encode(b"val0"));
    let window = Window {
        ranges: vec![EncodedRange::new(from.into_bytes(), to.into_bytes())],
        ..up_to(golden.times.end_ts)
    };
    let in_range: Pairs = golden
        .scan("scan-end.tsv.gz")
        .into_iter()
        .filter(|(key, _)| key.starts_with(b"val/"))
        .collect();
    assert!(!in_range.is_empty());
    let (local, report) = restore_new(&golden, &window).await;
    assert_same(&local.scan(golden.times.end_ts), &in_range);
    assert!(report.filtered.out_of_range > 0);

    let archive = golden.open().await;
    let renamed = Local::new();
    let mut options = renamed.options();
    options.rewrite = Rewrite::prefix("val/", "copy-of-val/");
    let target = renamed.target();
    let (plan, storage) = (
        plan(&archive, &window).await.unwrap(),
        Arc::clone(archive.storage()),
    );
    restore(&plan, storage, &target, options, Arc::default())
        .await
        .unwrap();
    let wanted = in_range
        .into_iter()
        .map(|(key, value)| ([b"copy-of-", &key[..]].concat(), value));
    assert_same(&renamed.scan(golden.times.end_ts), &wanted.collect());
}

#[tokio::test]
async fn a_window_outside_of_the_archive_and_an_archive_without_bounds_are_refused() {
    let golden = Golden::proven_empty("log-basic");
    let archive = golden.open().await;
    for ts in [golden.times.start_ts - 1, golden.times.end_ts + 1] {
        let error = plan(&archive, &up_to(ts)).await.unwrap_err();
        assert!(matches!(error, PlanError::OutsideWindow { .. }), "{error}");
    }
    golden.remove("v1/global_checkpoint/1.ts");
    let error = plan(&golden.open().await, &up_to(golden.times.end_ts))
        .await
        .unwrap_err();
    assert!(matches!(error, PlanError::NoCheckpoint { .. }), "{error}");
    golden.remove("backupmeta");
    let error = plan(&golden.open().await, &up_to(golden.times.end_ts))
        .await
        .unwrap_err();
    assert!(matches!(error, PlanError::NoBackupMeta { .. }), "{error}");
}

#[tokio::test]
async fn both_spellings_of_the_truncate_safepoint_raise_the_lower_bound() {
    for name in [
        "v1_stream_trancate_safepoint.txt",
        "v1_stream_truncate_safepoint.txt",
    ] {
        let golden = Golden::proven_empty("log-basic");
        golden.write(name, format!("{}\n", golden.times.mid_ts).as_bytes());
        let archive = golden.open().await;
        assert_eq!(archive.info.log_min(), Ts::new(golden.times.mid_ts));
        let error = plan(&archive, &up_to(golden.times.end_ts))
            .await
            .unwrap_err();
        assert!(matches!(error, PlanError::NotProvenEmpty { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_largest_checkpoint_counts_and_a_torn_one_is_left_out_with_a_warning() {
    let golden = Golden::proven_empty("log-basic");
    golden.write(
        "v1/global_checkpoint/2.ts",
        &(golden.times.end_ts - 5).to_le_bytes(),
    );
    golden.write("v1/global_checkpoint/3.ts", &[1, 2, 3]);
    let archive = golden.open().await;
    assert_eq!(archive.info.log_max, Some(Ts::new(golden.times.end_ts)));
    assert!(archive.info.warnings()[0].contains("3.ts"));
}
