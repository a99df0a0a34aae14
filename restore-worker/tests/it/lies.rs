//! Metadata that does not tell the truth about its slice, one field at a time: the restore ends
//! before the target is touched, and the check of the archive names the object.

use std::sync::Arc;

use pitr_format::{KvRecord, Ts};
use pitr_proto::backup::{DataFileInfo, Metadata};
use pitr_restore_worker::plan::PlanError;
use pitr_restore_worker::target::EngineTarget;
use pitr_restore_worker::{Env, RestoreError, RestoreOptions, Window, plan, restore, verify};

use super::memory_engine::MemoryEngine;
use super::synthetic::{Synthetic, long, short, value};

const OBJECT: &str = "v1/20260101/00/1/1-1.log";

fn records() -> Vec<KvRecord> {
    let mut records = vec![value(b"c", 30, "long"), long(b"c", 30, 40)];
    records.extend((0..20u8).map(|i| short(&[b'k', i], 20, 25 + u64::from(i), "some value")));
    records
}

/// What a restore of an archive with this metadata says; its target stays empty.
async fn outcome(edit: impl FnOnce(&mut Metadata)) -> Result<(), String> {
    let mut archive = Synthetic::new(10).await;
    archive.flush_with(&records(), edit).await;
    let opened = archive.open().await;
    let window = Window {
        start: None,
        restored: Ts::new(1_000),
        ranges: Vec::new(),
        log_only: true,
    };
    let (engine, dir, env) = (
        MemoryEngine::default(),
        tempfile::tempdir().unwrap(),
        Env::default(),
    );
    let target = EngineTarget::new(Arc::new(engine.clone()), env.spawner.clone());
    let options = RestoreOptions::new(dir.path(), Arc::new(engine.clone()), env);
    let damage = match plan(&opened, &window).await {
        Err(PlanError::Damage(damage)) => damage,
        Err(other) => panic!("{other}"),
        Ok(plan) => {
            let storage = archive.storage.clone();
            match restore(&plan, storage, &target, options, Arc::default()).await {
                Ok(_) => return Ok(()),
                Err(RestoreError::Damage(damage)) => damage,
                Err(other) => panic!("{other}"),
            }
        }
    };
    assert!(engine.records().is_empty(), "{damage}");
    let report = verify(&opened, &Default::default()).await.unwrap();
    let named = report.problems.iter().any(|p| p.object == damage.object);
    assert!(named, "{damage} is not among {:?}", report.problems);
    Err(damage.what)
}

/// The same with one field of the write slice changed.
async fn with_write_slice(edit: impl FnOnce(&mut DataFileInfo)) -> Result<(), String> {
    outcome(|metadata| {
        let slices = &mut metadata.file_groups[0].data_files_info;
        edit(slices.iter_mut().find(|slice| slice.cf == "write").unwrap());
        let times = |of: fn(&DataFileInfo) -> u64| slices.iter().map(of).collect::<Vec<_>>();
        metadata.min_ts = times(|s| s.min_ts).into_iter().min().unwrap();
        metadata.max_ts = times(|s| s.max_ts).into_iter().max().unwrap();
    })
    .await
}

#[tokio::test]
async fn the_truth_is_restored() {
    assert_eq!(with_write_slice(|_| ()).await, Ok(()));
}

#[tokio::test]
async fn digests_and_counts_must_be_those_of_the_slice() {
    type Edit = fn(&mut DataFileInfo);
    let edits: [(&str, Edit); 6] = [
        ("sha256", |s| s.sha256 = vec![1; 32].into()),
        ("an empty sha256", |s| s.sha256.clear()),
        ("crc64xor", |s| s.crc64xor ^= 1),
        ("a record more", |s| s.number_of_entries += 1),
        ("a record less", |s| s.number_of_entries -= 1),
        ("a negative count", |s| s.number_of_entries = -1),
    ];
    for (what, edit) in edits {
        let error = with_write_slice(edit).await.unwrap_err();
        assert!(error.contains("(write CF)"), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_crc64_of_zero_is_one_that_was_never_written() {
    assert_eq!(with_write_slice(|s| s.crc64xor = 0).await, Ok(()));
}

#[tokio::test]
async fn bounds_must_hold_every_record() {
    type Edit = fn(&mut DataFileInfo);
    let edits: [(&str, Edit); 5] = [
        ("min_ts", |s| s.min_ts += 1),
        ("max_ts", |s| s.max_ts -= 1),
        ("start_key", |s| s.start_key = s.end_key.clone()),
        ("end_key", |s| s.end_key = s.start_key.clone()),
        ("begin ts", |s| s.min_begin_ts_in_default_cf = 21),
    ];
    for (what, edit) in edits {
        let error = with_write_slice(edit).await.unwrap_err();
        assert!(error.contains("(write CF)"), "{what}: {error}");
    }
}

#[tokio::test]
async fn the_place_in_the_object_must_be_right_to_the_byte() {
    type Edit = fn(&mut DataFileInfo);
    let edits: [(&str, Edit); 7] = [
        ("offset", |s| s.range_offset += 1),
        ("offset", |s| s.range_offset -= 1),
        ("stored length", |s| s.range_length -= 1),
        ("beyond the end", |s| s.range_length += 1),
        ("far beyond", |s| s.range_offset += 1 << 40),
        ("length", |s| s.length += 1),
        ("length", |s| s.length -= 1),
    ];
    for (what, edit) in edits {
        assert!(with_write_slice(edit).await.is_err(), "{what}");
    }
    let error = with_write_slice(|s| s.range_offset = u64::MAX)
        .await
        .unwrap_err();
    assert_eq!(error, "a slice ends beyond 2^64 bytes");
}

#[tokio::test]
async fn kind_and_compression_must_be_known_and_right() {
    type Edit = fn(&mut DataFileInfo);
    let edits: [(&str, Edit); 5] = [
        ("an unknown column family", |s| s.cf = "lock".to_owned()),
        ("no column family", |s| s.cf.clear()),
        ("no compression", |s| s.compression_type = 0),
        ("LZ4", |s| s.compression_type = 1),
        ("an unknown compression", |s| s.compression_type = 77),
    ];
    for (what, edit) in edits {
        assert!(with_write_slice(edit).await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_slice_above_the_size_that_is_accepted_is_not_read_into_memory() {
    let error = with_write_slice(|s| s.length = 2 << 30).await.unwrap_err();
    assert!(error.contains(&(2u64 << 30).to_string()), "{error}");
}

#[tokio::test]
async fn a_meta_that_names_another_object_is_damage_of_that_object() {
    let error = outcome(|metadata| {
        metadata.file_groups[0].path = "v1/elsewhere.log".to_owned();
    });
    assert_eq!(error.await.unwrap_err(), "the object is missing");
    // A check reads on behind it.
    let mut archive = Synthetic::new(10).await;
    archive.flush(&records()).await;
    let away = |metadata: &mut Metadata| metadata.file_groups[0].path = "v1/away.log".to_owned();
    archive.flush_with(&records(), away).await;
    archive.flush(&[short(b"z", 50, 60, "v")]).await;
    let report = verify(&archive.open().await, &Default::default())
        .await
        .unwrap();
    assert_eq!(report.problems.len(), 1);
    assert_eq!((report.metas, report.objects, report.slices), (3, 3, 3));
    assert_eq!(report.unreferenced, ["v1/20260101/00/1/1-2.log"]);
    assert!(archive.storage.head(OBJECT).await.unwrap().is_some());
}
