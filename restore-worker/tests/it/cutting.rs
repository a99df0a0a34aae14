//! The cut of sorted records into batches of regions, and batches that are cut again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_env::SystemRandom;
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, Class, EncodedKey, EncodedRange, Ts};
use pitr_restore_worker::cut::{Batch, CutError, CutOptions, Cutter, SortedRecords};
use pitr_restore_worker::engine::{Engine, EngineCf};
use pitr_restore_worker::merge::{FLOOR, SortOptions, Sorter, Tag};
use pitr_restore_worker::regions::RegionTable;
use pitr_restore_worker::sst::SstFile;
use pitr_restore_worker::target::TargetRegion;
use proptest::prelude::*;

use super::memory_engine::MemoryEngine;

/// Versions of a user key: commit ts, and whether its value is long.
type Keys = BTreeMap<Vec<u8>, BTreeMap<u64, bool>>;

fn keys() -> impl Strategy<Value = Keys> {
    let key = prop::collection::vec(prop::sample::select(b"abc".to_vec()), 0..4);
    let versions =
        prop::collection::btree_map((10u64..60).prop_map(|ts| 2 * ts), any::<bool>(), 1..5);
    prop::collection::btree_map(key, versions, 0..20)
}

fn versioned(key: &[u8], ts: u64) -> Vec<u8> {
    EncodedKey::encode(key).at(Ts::new(ts)).as_bytes().to_vec()
}

/// Sorts what a selection would have: values, references, write records, and stray values.
fn sorted(keys: &Keys, dir: &Path, memory: usize) -> SortedRecords {
    let budget = MemoryBudget::new(64 << 20);
    let sorter = |name| {
        let options = SortOptions {
            memory,
            ..SortOptions::default()
        };
        Sorter::new(dir, name, options, budget.try_reserve(FLOOR).unwrap())
    };
    let (mut default, mut write) = (sorter("default"), sorter("write"));
    for (key, versions) in keys {
        for (ts, long) in versions {
            let start = ts - 1;
            let record = match long {
                true => WriteRecord::put(Ts::new(start), None),
                false => WriteRecord::put(Ts::new(start), Some(Bytes::from("short"))),
            };
            write
                .push(&versioned(key, *ts), Tag::Value, &record.to_bytes())
                .unwrap();
            if *long {
                default
                    .push(&versioned(key, start), Tag::Reference, b"")
                    .unwrap();
            }
            // Values of short ones are strays: nothing refers to them.
            default
                .push(&versioned(key, start), Tag::Value, b"a long value")
                .unwrap();
        }
    }
    SortedRecords {
        default: default.finish().unwrap(),
        write: write.finish().unwrap(),
    }
}

fn table(splits: &[Vec<u8>]) -> RegionTable {
    let mut bounds = vec![Bytes::new()];
    bounds.extend(
        splits
            .iter()
            .map(|key| EncodedKey::encode(key).into_bytes()),
    );
    bounds.push(Bytes::new());
    let regions = bounds.windows(2).map(|pair| TargetRegion {
        range: EncodedRange::new(pair[0].clone(), pair[1].clone()),
        handle: Arc::new(()),
    });
    let mut table = RegionTable::default();
    table
        .replace(&EncodedRange::ALL, regions.collect())
        .unwrap();
    table
}

fn splits() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let key = prop::collection::vec(prop::sample::select(b"abc".to_vec()), 1..4);
    prop::collection::btree_set(key, 0..6).prop_map(|keys| keys.into_iter().collect())
}

type Content = Vec<(Cf, Vec<u8>, Vec<u8>)>;

/// What the files of a batch hold, in the order in which they are ingested.
fn content(engine: &MemoryEngine, ssts: &[SstFile]) -> Content {
    let mut all = Vec::new();
    for sst in ssts {
        let cf = EngineCf::from(sst.cf);
        engine.ingest(cf, std::slice::from_ref(&sst.path)).unwrap();
        let pairs = engine.scan(cf, &[], &[]).map(Result::unwrap);
        let pairs: Vec<_> = pairs
            .map(|(k, v)| (sst.cf, k[1..].to_vec(), v.to_vec()))
            .collect();
        let inside = pairs
            .iter()
            .filter(|(_, key, _)| key >= &sst.first && key <= &sst.last);
        let inside: Vec<_> = inside.cloned().collect();
        assert_eq!(inside.len() as u64, sst.entries);
        all.extend(inside);
    }
    all
}

fn options(dir: &Path, engine: &MemoryEngine, sst_bytes: u64, batch_bytes: u64) -> CutOptions {
    CutOptions {
        factory: Arc::new(engine.clone()),
        random: Arc::new(SystemRandom),
        dir: dir.to_owned(),
        sst_bytes,
        batch_bytes,
    }
}

fn cut_all(cutter: &mut Cutter<'_>, regions: &RegionTable) -> Vec<Batch> {
    let mut batches = Vec::new();
    while let Some(batch) = cutter.next_batch(regions).unwrap() {
        batches.push(batch);
    }
    batches
}

fn user_key(versioned: &[u8]) -> &[u8] {
    &versioned[..versioned.len() - 8]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_hold_every_record_once_inside_of_their_region_and_whole_keys_only(
        keys in keys(),
        splits in splits(),
        spills in any::<bool>(),
        (sst_bytes, batch_bytes) in (1u64..400, 1u64..400),
    ) {
        let (dir, engine) = (tempfile::tempdir().unwrap(), MemoryEngine::default());
        let records = sorted(&keys, dir.path(), if spills { 1 } else { 1 << 20 });
        let regions = table(&splits);
        let mut cutter =
            Cutter::new(&records, options(dir.path(), &engine, sst_bytes, batch_bytes)).unwrap();
        let batches = cut_all(&mut cutter, &regions);
        let (tally, duplicates) = cutter.tally();
        let long = keys.values().flat_map(|v| v.values()).filter(|long| **long).count();
        let versions = keys.values().map(BTreeMap::len).sum::<usize>();
        assert_eq!(tally.records as usize, versions + long);
        assert_eq!((tally.unreferenced as usize, duplicates), (versions - long, 0));
        let mut last: Option<Vec<u8>> = None;
        let mut found = 0;
        for batch in &batches {
            assert!(batch.ssts.is_sorted_by_key(|sst| sst.cf), "values come first");
            for (_, key, _) in content(&MemoryEngine::clone(&engine), &batch.ssts) {
                assert!(batch.region.range.contains(user_key(&key)));
                assert!(batch.range().contains(user_key(&key)));
                assert!(last.as_deref().is_none_or(|last| last < user_key(&key)), "a divided key");
                found += 1;
            }
            last = Some(batch.last.clone());
        }
        assert_eq!(found as u64, tally.records);
    }

    #[test]
    fn a_batch_that_is_cut_again_for_other_regions_holds_the_same_records(
        keys in keys(),
        (before, after) in (splits(), splits()),
        spills in any::<bool>(),
        batch_bytes in 1u64..2_000,
    ) {
        let (dir, engine) = (tempfile::tempdir().unwrap(), MemoryEngine::default());
        let records = sorted(&keys, dir.path(), if spills { 1 } else { 1 << 20 });
        let options = |engine: &MemoryEngine| options(dir.path(), engine, 300, batch_bytes);
        let mut cutter = Cutter::new(&records, options(&engine)).unwrap();
        for batch in cut_all(&mut cutter, &table(&before)) {
            let mut wanted = content(&engine, &batch.ssts);
            let (fresh, regions) = (MemoryEngine::default(), table(&after));
            let mut again = Cutter::again(&records, options(&fresh), &batch).unwrap();
            let mut found = Vec::new();
            for part in cut_all(&mut again, &regions) {
                for (_, key, _) in content(&fresh, &part.ssts) {
                    assert!(part.region.range.contains(user_key(&key)));
                }
                found.extend(content_again(&fresh, &part.ssts));
            }
            wanted.sort();
            found.sort();
            assert_eq!(found, wanted);
        }
    }
}

/// [`content`] of files that the engine has taken already.
fn content_again(engine: &MemoryEngine, ssts: &[SstFile]) -> Content {
    let mut all = Vec::new();
    for sst in ssts {
        let pairs = engine
            .scan(EngineCf::from(sst.cf), &[], &[])
            .map(Result::unwrap);
        let pairs = pairs.map(|(k, v)| (sst.cf, k[1..].to_vec(), v.to_vec()));
        all.extend(pairs.filter(|(_, key, _)| key >= &sst.first && key <= &sst.last));
    }
    all
}

fn failure(fill: impl FnOnce(&mut Sorter, &mut Sorter), regions: &RegionTable) -> CutError {
    let (dir, engine) = (tempfile::tempdir().unwrap(), MemoryEngine::default());
    let budget = MemoryBudget::new(64 << 20);
    let sorter = |name| Sorter::new(dir.path(), name, SortOptions::default(), budget.nothing());
    let (mut default, mut write) = (sorter("default"), sorter("write"));
    fill(&mut default, &mut write);
    let records = SortedRecords {
        default: default.finish().unwrap(),
        write: write.finish().unwrap(),
    };
    let mut cutter = Cutter::new(&records, options(dir.path(), &engine, 100, 100)).unwrap();
    loop {
        match cutter.next_batch(regions) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no failure"),
            Err(error) => return error,
        }
    }
}

#[test]
fn a_reference_without_its_value_is_damage_that_names_key_and_start() {
    let fill = |default: &mut Sorter, _: &mut Sorter| {
        default
            .push(&versioned(b"k", 7), Tag::Value, b"of another ts")
            .unwrap();
        default
            .push(&versioned(b"k", 9), Tag::Reference, b"")
            .unwrap();
    };
    let error = failure(fill, &table(&[]));
    assert!(error.is_damage() && error.class() == Class::Permanent);
    let CutError::MissingValue { user_key, start_ts } = error else {
        panic!("{error}");
    };
    assert_eq!((user_key.as_str(), start_ts), ("6B", 9));
}

#[test]
fn two_records_of_one_version_are_damage_in_either_column_family() {
    for cf in [Cf::Default, Cf::Write] {
        let fill = |default: &mut Sorter, write: &mut Sorter| {
            let sorter = match cf {
                Cf::Default => default,
                Cf::Write => write,
            };
            if cf == Cf::Default {
                sorter
                    .push(&versioned(b"k", 9), Tag::Reference, b"")
                    .unwrap();
            }
            sorter
                .push(&versioned(b"k", 9), Tag::Value, b"one")
                .unwrap();
            sorter
                .push(&versioned(b"k", 9), Tag::Value, b"other")
                .unwrap();
        };
        let error = failure(fill, &table(&[]));
        assert!(error.is_damage());
        let CutError::Conflict {
            cf: of,
            user_key,
            ts,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((of, user_key.as_str(), ts), (cf, "6B", 9));
    }
}

#[test]
fn a_key_without_a_region_asks_for_a_refresh() {
    let mut regions = RegionTable::default();
    let lower = TargetRegion {
        range: EncodedRange::new(Bytes::new(), EncodedKey::encode(b"m").into_bytes()),
        handle: Arc::new(()),
    };
    let known = lower.range.clone();
    regions.replace(&known, vec![lower]).unwrap();
    let fill = |_: &mut Sorter, write: &mut Sorter| {
        for key in [b"a", b"z"] {
            write
                .push(&versioned(key, 9), Tag::Value, b"record")
                .unwrap();
        }
    };
    let error = failure(fill, &regions);
    assert_eq!(error.class(), Class::Refresh);
    let key = hex::encode_upper(EncodedKey::encode(b"z").as_bytes());
    assert!(error.to_string().ends_with(&key), "{error}");
}
