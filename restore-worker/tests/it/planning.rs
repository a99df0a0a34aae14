//! The plan: which slices it chooses, in how much memory, and what of an archive that changes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_format::meta::{build_group, build_metadata, encode_metadata};
use pitr_format::object_name::MetaName;
use pitr_format::{Cf, EncodedKey, EncodedRange, Ts};
use pitr_proto::backup::{DataFileInfo, FileType};
use pitr_restore_worker::plan::{PlanError, Slice};
use pitr_restore_worker::{Archive, Env, Plan, Window, plan};
use pitr_storage::fault::{Call, Fault, FaultPlan, FaultyStorage, Rule};
use pitr_storage::{ObjectInfo, Payload, SharedStorage, Storage, StorageError};
use proptest::prelude::*;

use super::synthetic::{Synthetic, short};

/// One slice as a meta tells of it.
#[derive(Clone, Debug)]
struct Told {
    cf: Cf,
    delete: bool,
    min_ts: u64,
    max_ts: u64,
    begin: u64,
    keys: (u8, u8),
    length: u64,
}

impl Told {
    fn info(&self, offset: u64) -> DataFileInfo {
        let key = |byte: u8, ts| EncodedKey::encode(&[byte]).at(Ts::new(ts)).into_bytes();
        DataFileInfo {
            cf: self.cf.as_str().to_owned(),
            r#type: if self.delete {
                FileType::Delete
            } else {
                FileType::Put
            } as i32,
            min_ts: self.min_ts,
            max_ts: self.max_ts,
            min_begin_ts_in_default_cf: self.begin,
            start_key: key(self.keys.0, u64::MAX),
            end_key: key(self.keys.1, 0),
            sha256: vec![self.length as u8; 32].into(),
            number_of_entries: 3,
            length: 2 * self.length,
            range_offset: offset,
            range_length: self.length,
            ..DataFileInfo::default()
        }
    }
}

fn told() -> impl Strategy<Value = Told> {
    let cf = prop_oneof![Just(Cf::Default), Just(Cf::Write)];
    let keys = (0u8..20, 0u8..20).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let times = (20u64..100, 0u64..30, 0u64..40);
    (cf, prop::bool::weighted(0.1), times, keys, 1u64..200_000).prop_map(
        |(cf, delete, (min_ts, span, before), keys, length)| Told {
            cf,
            delete,
            min_ts,
            max_ts: min_ts + span,
            begin: min_ts - before.min(min_ts - 1),
            keys,
            length,
        },
    )
}

/// An archive of metas alone: one object for each inner list.
async fn archive(metas: &[Vec<Vec<Told>>]) -> (Synthetic, Vec<(String, DataFileInfo)>) {
    let archive = Synthetic::new(10).await;
    let mut all = Vec::new();
    for (number, objects) in metas.iter().enumerate() {
        let mut groups = Vec::new();
        for (object, slices) in objects.iter().enumerate() {
            let path = format!("v1/{number}-{object}.log");
            let (mut infos, mut offset) = (Vec::new(), 0);
            for slice in slices {
                infos.push(slice.info(offset));
                offset += slice.length;
            }
            all.extend(infos.iter().map(|info| (path.clone(), info.clone())));
            groups.push(build_group(path, infos));
        }
        let metadata = build_metadata(1, Ts::ZERO, groups);
        let name = MetaName::of_flush(Ts::new(10_000 + number as u64), &metadata).write();
        let bytes = encode_metadata(&metadata);
        archive.storage.put(&name, bytes.into()).await.unwrap();
    }
    (archive, all)
}

/// The choice, straight from the rules: puts only; write slices of the window; default slices from
/// the earliest begin of those on; of each, what overlaps the ranges.
fn chosen(all: &[(String, DataFileInfo)], window: &Window) -> Vec<(String, DataFileInfo)> {
    let (start, end) = (window.start.unwrap().get(), window.restored.get());
    let puts = all
        .iter()
        .filter(|(_, info)| info.r#type == FileType::Put as i32);
    let of = |cf: &'static str| puts.clone().filter(move |(_, info)| info.cf == cf);
    let writes = of("write").filter(|(_, info)| info.max_ts > start && info.min_ts <= end);
    let shift = writes
        .clone()
        .map(|(_, info)| info.min_begin_ts_in_default_cf)
        .min();
    let shift = shift.unwrap_or(start);
    let values = of("default").filter(|(_, info)| info.max_ts >= shift && info.min_ts <= end);
    let overlaps = |info: &DataFileInfo| {
        window.ranges.is_empty()
            || window.ranges.iter().any(|range| {
                info.end_key >= range.start && (range.end.is_empty() || info.start_key < range.end)
            })
    };
    let all = writes.chain(values).filter(|(_, info)| overlaps(info));
    let mut all: Vec<_> = all.cloned().collect();
    all.sort_by_key(|(path, info)| (path.clone(), info.range_offset));
    all
}

fn window(start: u64, restored: u64, ranges: Vec<EncodedRange>) -> Window {
    Window {
        start: Some(Ts::new(start)),
        restored: Ts::new(restored),
        ranges,
        log_only: true,
    }
}

/// What a check of a slice needs is all there; what a restore never looks at may be gone.
fn assert_same(planned: &[Slice], wanted: &[(String, DataFileInfo)]) {
    let named = |slice: &Slice| (slice.object.clone(), slice.info.clone());
    let wanted = wanted.iter().cloned().map(|(path, info)| {
        let r#type = DataFileInfo::default().r#type;
        (
            path,
            DataFileInfo {
                r#type,
                path: String::new(),
                ..info
            },
        )
    });
    let found: Vec<_> = planned.iter().map(named).collect();
    assert_eq!(found, wanted.collect::<Vec<_>>());
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_plan_reads_the_slices_that_the_rules_choose_each_once(
        metas in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(told(), 1..6), 1..4),
            0..6,
        ),
        from in 10u64..120,
        length in 0u64..80,
        ranges in prop::collection::vec((0u8..20, 1u8..8), 0..3),
    ) {
        run(async {
            let (archive, all) = archive(&metas).await;
            let bound = |byte: u8| EncodedKey::encode(&[byte]).into_bytes();
            let ranges = ranges.into_iter().map(|(start, span)| {
                EncodedRange::new(bound(start), bound(start + span))
            });
            let window = window(from, from + length, ranges.collect());
            let plan = plan(&archive.open().await, &window).await.unwrap();
            let slices: Vec<Slice> = plan.reads.iter().flat_map(|read| read.slices).collect();
            let wanted = chosen(&all, &window);
            assert_same(&slices, &wanted);
            let counted = plan.write.slices + plan.default.slices;
            let skipped = plan.skipped.by_window.slices
                + plan.skipped.by_range.slices
                + plan.skipped.deletes.slices;
            assert_eq!((counted, counted + skipped), (wanted.len() as u64, all.len() as u64));
            check_reads(&plan);
        });
    }
}

/// Every request covers its slices, and none overlaps the next one of its object.
fn check_reads(plan: &Plan) {
    let reads: Vec<_> = plan.reads.iter().collect();
    for read in &reads {
        let range: &Range<u64> = read.range.as_ref().unwrap();
        assert!(read.slices.len() == 1 || range.end - range.start <= 8 << 20);
        for Slice { object, info, .. } in &read.slices {
            let end = info.range_offset + info.range_length;
            assert!(*object == read.object);
            assert!(range.start <= info.range_offset && end <= range.end);
        }
    }
    for pair in reads.windows(2) {
        let behind = pair[0].range.as_ref().unwrap().end <= pair[1].range.as_ref().unwrap().start;
        assert!(pair[0].object < pair[1].object || behind);
    }
}

/// A meta of `slices` write slices.
async fn large(slices: usize) -> Synthetic {
    let one = Told {
        cf: Cf::Write,
        delete: false,
        min_ts: 50,
        max_ts: 60,
        begin: 40,
        keys: (1, 2),
        length: 100,
    };
    let (archive, _) = archive(&[vec![vec![one; slices]]]).await;
    archive
}

#[tokio::test]
async fn a_plan_holds_its_memory_until_it_is_dropped_and_nothing_else_afterwards() {
    let archive = large(5_000).await;
    let budget = MemoryBudget::new(64 << 20);
    let env = Env::system(Arc::clone(&budget));
    let archive = Archive::open(archive.storage.clone(), env).await.unwrap();
    let plan = plan(&archive, &window(10, 100, vec![])).await.unwrap();
    assert_eq!(plan.write.slices, 5_000);
    assert_eq!(
        budget.used(),
        plan.reads.memory(),
        "of the meta nothing stays"
    );
    let each = plan.reads.memory() / 5_000;
    assert!(each < 600, "{each} bytes a slice");
    let copy = plan.clone();
    drop(plan);
    assert!(budget.used() > 0);
    drop(copy);
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn a_list_of_slices_above_its_share_is_refused_and_holds_nothing() {
    let archive = large(5_000).await;
    let budget = MemoryBudget::new(2 << 20);
    let env = Env::system(Arc::clone(&budget));
    let archive = Archive::open(archive.storage.clone(), env).await.unwrap();
    let error = plan(&archive, &window(10, 100, vec![])).await.unwrap_err();
    let PlanError::TooLittleMemory {
        slices,
        most,
        limit,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((most, limit), (512 << 10, 2 << 20));
    assert!(0 < slices && slices < 5_000);
    assert_eq!(budget.used(), 0);
    // What lies outside of the window costs nothing.
    let plan = plan(&archive, &window(60, 100, vec![])).await.unwrap();
    assert_eq!(
        (plan.write.slices, plan.skipped.by_window.slices),
        (0, 5_000)
    );
    assert!(plan.reads.is_empty() && plan.reads.memory() < 1 << 10);
}

/// Slow enough that many metas are on their way at once.
fn slow_metas(storage: &SharedStorage) -> SharedStorage {
    let slow = Rule::always(Call::Read, Fault::Delay(Duration::from_millis(20)));
    let slow = slow.on_names(|name| name.ends_with(".meta"));
    FaultyStorage::new(storage.clone(), FaultPlan::none().with(slow))
}

#[tokio::test]
async fn metas_are_read_within_the_budget_however_many_there_are() {
    let one = |min_ts| Told {
        cf: Cf::Write,
        delete: false,
        min_ts,
        max_ts: min_ts,
        begin: 40,
        keys: (1, 2),
        length: 100,
    };
    let metas: Vec<_> = (0..60).map(|_| vec![vec![one(500); 200]]).collect();
    let (archive, _) = archive(&metas).await;
    let budget = MemoryBudget::new(1 << 20);
    let env = Env::system(Arc::clone(&budget));
    let storage = slow_metas(&archive.storage);
    let archive = Archive::open(storage, env).await.unwrap();
    let plan = plan(&archive, &window(10, 100, vec![])).await.unwrap();
    assert_eq!(plan.skipped.by_window.slices, 60 * 200);
    assert!(budget.peak() <= 1 << 20, "{}", budget.peak());
    assert!(
        budget.peak() > 256 << 10,
        "several at once: {}",
        budget.peak()
    );
}

#[tokio::test]
async fn metas_on_their_way_leave_room_for_what_is_chosen_of_them() {
    let one = |min_ts| Told {
        cf: Cf::Write,
        delete: false,
        min_ts,
        max_ts: min_ts,
        begin: 40,
        keys: (1, 2),
        length: 100,
    };
    let meta = || vec![[vec![one(50); 20], vec![one(500); 200]].concat()];
    let (archive, _) = archive(&(0..60).map(|_| meta()).collect::<Vec<_>>()).await;
    let budget = MemoryBudget::new(4 << 20);
    let storage = slow_metas(&archive.storage);
    let opened = Archive::open(storage, Env::system(Arc::clone(&budget)))
        .await
        .unwrap();
    let plan = plan(&opened, &window(10, 100, vec![])).await.unwrap();
    assert_eq!(plan.write.slices, 60 * 20);
    assert!(
        budget.peak() > 2 << 20,
        "the metas took their half: {}",
        budget.peak()
    );
    assert!(budget.peak() <= 3 << 20, "{}", budget.peak());
}

/// A storage in which a truncation begins while its metas are read.
struct Truncated {
    inner: SharedStorage,
    began: AtomicBool,
}

#[async_trait]
impl Storage for Truncated {
    async fn put(&self, path: &str, data: Payload) -> Result<(), StorageError> {
        self.inner.put(path, data).await
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<(), StorageError> {
        self.inner.put_new(path, data).await
    }

    async fn get(&self, path: &str) -> Result<Bytes, StorageError> {
        if path.ends_with(".meta") && !self.began.swap(true, SeqCst) {
            let safepoint = Bytes::from("500");
            self.inner
                .put("v1_stream_trancate_safepoint.txt", safepoint.into())
                .await?;
            self.inner.delete(path).await?;
        }
        self.inner.get(path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.inner.get_range(path, range).await
    }

    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>, StorageError> {
        self.inner.head(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<(), StorageError> {
        self.inner.delete(path).await
    }

    async fn remove_leftovers(&self, older_than: Duration) -> Result<u64, StorageError> {
        self.inner.remove_leftovers(older_than).await
    }

    fn uri(&self) -> String {
        self.inner.uri()
    }
}

async fn truncated_meanwhile() -> Archive {
    let mut archive = Synthetic::new(10).await;
    archive.flush(&[short(b"old", 100, 200, "v")]).await;
    archive.flush(&[short(b"new", 600, 700, "v")]).await;
    let storage = Truncated {
        inner: archive.storage.clone(),
        began: AtomicBool::new(false),
    };
    Archive::open(Arc::new(storage), Env::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_truncation_that_begins_while_metas_are_read_moves_the_start_and_is_no_damage() {
    let archive = truncated_meanwhile().await;
    let without_start = Window {
        start: None,
        ..window(0, 1_000, vec![])
    };
    let found = plan(&archive, &without_start).await.unwrap();
    assert_eq!(found.start, Ts::new(500));
    assert_eq!(found.write.slices, 1, "the slice that is left");

    let archive = truncated_meanwhile().await;
    let error = plan(&archive, &window(100, 1_000, vec![]))
        .await
        .unwrap_err();
    let PlanError::OutsideWindow { what, min, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((what, min), ("start-ts", Ts::new(500)));
}
