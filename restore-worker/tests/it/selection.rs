//! Which records of an archive a restore brings back.

use bytes::Bytes;
use pitr_format::object_name::MetaName;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, OpKind, Ts};
use pitr_restore_worker::cut::CutError;
use pitr_restore_worker::plan::{PlanError, Window};
use pitr_restore_worker::verify::VerifyOptions;
use pitr_restore_worker::{Report, RestoreError, plan, restore, verify};

use super::golden::{Golden, Local, Pairs, restore_new, up_to};
use super::synthetic::{END, Synthetic, long, record, short, value};

fn log_only(start: u64, restored: u64) -> Window {
    let start = Some(Ts::new(start));
    Window {
        start,
        log_only: true,
        ..up_to(restored)
    }
}

async fn try_run(archive: &Synthetic, window: &Window) -> Result<(Local, Report), RestoreError> {
    let local = Local::new();
    let plan = plan(&archive.open().await, window).await.unwrap();
    let target = local.target();
    let storage = archive.storage.clone();
    let report = restore(&plan, storage, &target, local.options(), Default::default()).await?;
    Ok((local, report))
}

async fn run(archive: &Synthetic, window: &Window) -> (Pairs, Report) {
    let (local, report) = try_run(archive, window).await.unwrap();
    (local.scan(u64::MAX), report)
}

fn pairs<const N: usize>(pairs: [(&[u8], &str); N]) -> Pairs {
    pairs
        .map(|(key, value)| (key.to_vec(), value.as_bytes().to_vec()))
        .into()
}

#[tokio::test]
async fn a_value_older_than_the_window_comes_along_when_its_commit_lies_inside() {
    let mut archive = Synthetic::new(10).await;
    archive
        .flush(&[
            value(b"a", 20, "written before"),
            value(b"b", 21, "not committed"),
        ])
        .await;
    archive
        .flush(&[long(b"a", 20, 60), short(b"c", 30, 40, "before the window")])
        .await;
    let (found, report) = run(&archive, &log_only(50, END)).await;
    assert_eq!(found, pairs([(b"a", "written before")]));
    assert_eq!(
        (
            report.filtered.unreferenced_value,
            report.filtered.out_of_window
        ),
        (1, 1)
    );
    assert_eq!((report.read, report.written), (4, 2));
}

#[tokio::test]
async fn an_unknown_begin_ts_of_an_early_release_means_that_every_value_is_read() {
    let mut archive = Synthetic::new(10).await;
    archive.flush(&[value(b"a", 5, "very old")]).await;
    let unknown = |metadata: &mut pitr_proto::backup::Metadata| {
        metadata.file_groups[0].data_files_info[0].min_begin_ts_in_default_cf = 0;
    };
    archive.flush_with(&[long(b"a", 5, 60)], unknown).await;
    let plan = plan(&archive.open().await, &log_only(50, END))
        .await
        .unwrap();
    assert_eq!((plan.shift, plan.default.slices), (Ts::ZERO, 1));
    assert_eq!(
        run(&archive, &log_only(50, END)).await.0,
        pairs([(b"a", "very old")])
    );
}

#[tokio::test]
async fn slices_outside_of_the_window_are_not_read() {
    let mut archive = Synthetic::new(10).await;
    archive
        .flush(&[value(b"a", 20, "old"), long(b"a", 20, 30)])
        .await;
    archive.flush(&[short(b"b", 60, 70, "wanted")]).await;
    archive
        .flush(&[value(b"c", 200, "new"), long(b"c", 200, 300)])
        .await;
    let plan = plan(&archive.open().await, &log_only(50, 100))
        .await
        .unwrap();
    assert_eq!((plan.write.slices, plan.default.slices), (1, 0));
    assert_eq!(
        (plan.skipped.by_window.slices, plan.reads.objects()),
        (4, 1)
    );
    assert_eq!(
        run(&archive, &log_only(50, 100)).await.0,
        pairs([(b"b", "wanted")])
    );
}

#[tokio::test]
async fn records_that_came_twice_count_as_duplicates() {
    let mut archive = Synthetic::new(10).await;
    let records = [
        value(b"a", 20, "v"),
        long(b"a", 20, 30),
        short(b"b", 20, 30, "w"),
    ];
    archive.flush(&records).await;
    archive.flush(&records).await;
    let (found, report) = run(&archive, &log_only(10, END)).await;
    assert_eq!(found, pairs([(b"a", "v"), (b"b", "w")]));
    assert_eq!((report.read, report.duplicates, report.written), (6, 3, 3));
}

#[tokio::test]
async fn rolled_back_values_and_the_deletes_that_clean_them_up_leave_nothing() {
    let mut archive = Synthetic::new(10).await;
    let rollback = WriteRecord {
        kind: WriteType::Rollback,
        ..WriteRecord::delete(Ts::new(20))
    };
    archive.flush(&[value(b"a", 20, "never committed")]).await;
    archive
        .flush(&[
            record(Cf::Default, OpKind::Delete, b"a", 20, ""),
            record(Cf::Write, OpKind::Put, b"a", 20, rollback.to_bytes()),
            record(Cf::Write, OpKind::Delete, b"a", 20, ""),
        ])
        .await;
    let (found, report) = run(&archive, &log_only(10, END)).await;
    assert_eq!((found.len(), report.written), (0, 0));
    assert_eq!(report.filtered.lock_or_rollback, 1);
    assert_eq!(
        plan(&archive.open().await, &log_only(10, END))
            .await
            .unwrap()
            .skipped
            .deletes
            .slices,
        2
    );
}

#[tokio::test]
async fn a_commit_at_the_ts_of_a_collapsed_rollback_survives_the_delete_of_that_rollback() {
    let mut archive = Synthetic::new(10).await;
    let collapsed = record(Cf::Write, OpKind::Delete, b"a", 30, "");
    archive
        .flush(&[short(b"a", 20, 30, "committed"), collapsed])
        .await;
    assert_eq!(
        run(&archive, &log_only(10, END)).await.0,
        pairs([(b"a", "committed")])
    );
}

#[tokio::test]
async fn a_record_with_and_without_rollback_marks_is_one_record() {
    let mut archive = Synthetic::new(10).await;
    let marked = WriteRecord {
        overlapped_rollback: true,
        gc_fence: Some(Ts::new(500)),
        ..WriteRecord::put(Ts::new(20), Some(Bytes::from("v")))
    };
    archive.flush(&[short(b"a", 20, 30, "v")]).await;
    archive
        .flush(&[record(Cf::Write, OpKind::Put, b"a", 30, marked.to_bytes())])
        .await;
    let (found, report) = run(&archive, &log_only(10, END)).await;
    assert_eq!((found, report.duplicates), (pairs([(b"a", "v")]), 1));
}

#[tokio::test]
async fn a_deleted_key_stays_deleted_and_shows_its_older_version_below() {
    let mut archive = Synthetic::new(10).await;
    let delete = WriteRecord::delete(Ts::new(40)).to_bytes();
    archive
        .flush(&[
            short(b"a", 20, 30, "v"),
            record(Cf::Write, OpKind::Put, b"a", 50, delete),
        ])
        .await;
    let (local, _) = try_run(&archive, &log_only(10, END)).await.unwrap();
    assert_eq!(
        (local.scan(49), local.scan(50).len()),
        (pairs([(b"a", "v")]), 0)
    );
}

#[tokio::test]
async fn a_commit_whose_value_is_missing_is_an_error_that_names_the_key() {
    let mut archive = Synthetic::new(10).await;
    archive
        .flush(&[
            value(b"a", 21, "of another transaction"),
            long(b"a", 20, 30),
        ])
        .await;
    let error = try_run(&archive, &log_only(10, END)).await.err().unwrap();
    let RestoreError::Cut(CutError::MissingValue { user_key, start_ts }) = error else {
        panic!("{error}");
    };
    assert_eq!((user_key.as_str(), start_ts), ("61", 20));
}

#[tokio::test]
async fn two_different_records_of_one_version_are_an_error() {
    for (one, other) in [
        (
            vec![short(b"a", 20, 30, "v")],
            vec![short(b"a", 20, 30, "w")],
        ),
        (
            vec![long(b"a", 20, 30), value(b"a", 20, "v")],
            vec![value(b"a", 20, "w")],
        ),
    ] {
        let mut archive = Synthetic::new(10).await;
        archive.flush(&one).await;
        archive.flush(&other).await;
        let error = try_run(&archive, &log_only(10, END)).await.err().unwrap();
        assert!(
            matches!(error, RestoreError::Cut(CutError::Conflict { .. })),
            "{error}"
        );
    }
}

#[tokio::test]
async fn metas_of_every_generation_are_read() {
    for shift in 0..2 {
        let golden = Golden::proven_empty("log-basic");
        let window = up_to(golden.times.end_ts);
        let (_, wanted) = restore_new(&golden, &window).await;
        let metas = golden.metas().await;
        // Only the newest form is written for flushes of nothing.
        let full = metas.iter().filter(|meta| {
            let content = meta.content.as_ref().unwrap();
            !content.slices.is_empty()
        });
        for (index, meta) in full.enumerate() {
            let other = other_form(meta.name.as_ref().unwrap(), index + shift);
            let path = format!("v1/backupmeta/{other}.meta");
            golden.write(&path, &golden.read(&meta.path));
            golden.remove(&meta.path);
        }
        let (_, report) = restore_new(&golden, &window).await;
        assert_eq!(report.digest_out, wanted.digest_out);
    }
}

fn other_form(name: &MetaName, form: usize) -> String {
    let (f, d, l, u) = (
        name.flush_ts.get(),
        name.min_begin_ts.get(),
        name.min_ts.get(),
        name.max_ts.get(),
    );
    match form {
        0 => format!("{f:016X}-{d:016x}-{l:016x}-{u:016x}"),
        1 => format!("{f:020}-5e0ff0a5-1f2d-4bd9-9a6c-8c8e3ad1b8a6"),
        2 => format!("{f:016X}{:016X}-u{u:016X}z{:016X}l{l:016X}d{d:016X}", 1, 9),
        _ => "written by somebody else".to_owned(),
    }
}

#[tokio::test]
async fn an_archive_that_others_migrated_is_refused_and_the_check_warns() {
    let golden = Golden::proven_empty("log-basic");
    let window = up_to(golden.times.end_ts);
    golden.write("v1/migrations/BASE", b"");
    let archive = golden.open().await;
    let error = plan(&archive, &window).await.unwrap_err();
    assert!(
        error.to_string().starts_with("v1/migrations/BASE: "),
        "{error}"
    );
    let report = verify(&archive, &VerifyOptions::default()).await.unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|w| w.contains("v1/migrations/BASE"))
    );
}

#[tokio::test]
async fn an_encrypted_archive_is_refused_by_name() {
    let mut archive = Synthetic::new(10).await;
    let encrypt = |metadata: &mut pitr_proto::backup::Metadata| {
        metadata.file_groups[0].data_files_info[0].file_encryption_info = Some(Default::default());
    };
    archive
        .flush_with(&[short(b"a", 20, 30, "v")], encrypt)
        .await;
    let error = plan(&archive.open().await, &log_only(10, END))
        .await
        .unwrap_err();
    assert!(matches!(error, PlanError::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn a_meta_that_does_not_hold_what_its_name_says_is_damage() {
    let edits: [fn(&mut pitr_proto::backup::Metadata); 3] = [
        |m| m.store_id = 2,
        |m| m.file_groups[0].data_files_info[0].max_ts = 31,
        |m| m.file_groups.clear(),
    ];
    for edit in edits {
        let mut archive = Synthetic::new(10).await;
        let name = archive.flush(&[short(b"a", 20, 30, "v")]).await;
        let bytes = archive.storage.get(&name).await.unwrap();
        let mut other = pitr_format::meta::decode_metadata(&bytes).unwrap();
        edit(&mut other);
        let bytes = pitr_format::meta::encode_metadata(&other);
        archive.storage.put(&name, bytes.into()).await.unwrap();
        let error = plan(&archive.open().await, &log_only(10, END))
            .await
            .unwrap_err();
        let PlanError::Damage(damage) = error else {
            panic!("{error}");
        };
        assert_eq!(damage.object, name);
    }
}
