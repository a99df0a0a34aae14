//! Random histories, logged in random order into random slices, against what their transactions say
//! by the rules of the format alone: every version that was committed in the window comes back, byte
//! by byte, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedKey, EncodedRange, KvRecord, OpKind, Ts};
use pitr_restore_worker::engine::EngineCf;
use pitr_restore_worker::rewrite::Rewrite;
use pitr_restore_worker::target::EngineTarget;
use pitr_restore_worker::{Env, Report, RestoreOptions, Window, plan, restore};
use proptest::prelude::*;

use super::golden::Pairs;
use super::memory_engine::MemoryEngine;
use super::synthetic::{Synthetic, record};

/// What one transaction did to one key.
#[derive(Clone, Debug)]
enum Deed {
    Short(Vec<u8>),
    Long(Vec<u8>),
    Delete,
    /// Locked and nothing changed.
    Lock,
    /// Prewritten with a long value, then rolled back, and the value cleaned up.
    Rollback(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Event {
    key: Vec<u8>,
    start: u64,
    /// Of a rollback, the start again.
    commit: u64,
    deed: Deed,
}

/// A history and how it was logged.
#[derive(Clone, Debug)]
struct Story {
    events: Vec<Event>,
    /// For every record: the flush it went to, and the flush that had it again, if any.
    flushes: Vec<(usize, Option<usize>)>,
    /// Reorders the records of each flush.
    shuffle: u64,
}

const FLUSHES: usize = 4;
const BEGIN: u64 = 10;

fn key() -> impl Strategy<Value = Vec<u8>> {
    let ordinary = prop::collection::vec(prop::sample::select(b"ab\x00\xff".to_vec()), 0..10);
    // Around the groups of 8 bytes of the encoding.
    let long = (0usize..3, 7usize..18).prop_map(|(byte, len)| vec![b"a\x00\xff"[byte]; len]);
    prop_oneof![3 => ordinary, 1 => long]
}

fn deed() -> impl Strategy<Value = Deed> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    prop_oneof![
        4 => bytes(20).prop_map(Deed::Short),
        3 => prop::collection::vec(any::<u8>(), 1..400).prop_map(Deed::Long),
        2 => Just(Deed::Delete),
        1 => Just(Deed::Lock),
        1 => prop::collection::vec(any::<u8>(), 1..300).prop_map(Deed::Rollback),
    ]
}

fn story() -> impl Strategy<Value = Story> {
    let keys = prop::collection::btree_set(key(), 1..12);
    let deeds = prop::collection::vec((any::<prop::sample::Index>(), deed(), 1u64..60), 0..60);
    let flushes = prop::collection::vec((0..FLUSHES, prop::option::weighted(0.2, 0..FLUSHES)), 180);
    (keys, deeds, flushes, any::<u64>()).prop_map(|(keys, deeds, flushes, shuffle)| {
        let keys: Vec<_> = keys.into_iter().collect();
        let mut events = Vec::new();
        for (number, (key, deed, length)) in deeds.into_iter().enumerate() {
            // Commits are 10 apart, and a start lies up to 60 before: transactions overlap.
            let commit = BEGIN + 10 * (number as u64 + 1);
            let start = commit.saturating_sub(length).max(1);
            // No two transactions begin or end at the same time.
            let start = if start % 10 == 0 { start - 1 } else { start };
            let rolled_back = matches!(deed, Deed::Rollback(_));
            events.push(Event {
                key: keys[key.index(keys.len())].clone(),
                start: start * 100 + number as u64,
                commit: if rolled_back {
                    start * 100 + number as u64
                } else {
                    commit * 100
                },
                deed,
            });
        }
        Story {
            events,
            flushes,
            shuffle,
        }
    })
}

impl Event {
    fn write_record(&self) -> WriteRecord {
        let start = Ts::new(self.start);
        match &self.deed {
            Deed::Short(value) => WriteRecord::put(start, Some(Bytes::copy_from_slice(value))),
            Deed::Long(_) => WriteRecord::put(start, None),
            Deed::Delete => WriteRecord::delete(start),
            Deed::Lock => WriteRecord {
                kind: WriteType::Lock,
                ..WriteRecord::delete(start)
            },
            Deed::Rollback(_) => WriteRecord {
                kind: WriteType::Rollback,
                ..WriteRecord::delete(start)
            },
        }
    }

    /// What the store wrote, in the order of writing.
    fn log(&self) -> Vec<KvRecord> {
        let write = self.write_record().to_bytes();
        let write = record(Cf::Write, OpKind::Put, &self.key, self.commit, write);
        let value = |bytes: &[u8]| {
            let bytes = Bytes::copy_from_slice(bytes);
            record(Cf::Default, OpKind::Put, &self.key, self.start, bytes)
        };
        match &self.deed {
            Deed::Long(bytes) => vec![value(bytes), write],
            Deed::Rollback(bytes) => {
                let gone = record(Cf::Default, OpKind::Delete, &self.key, self.start, "");
                vec![value(bytes), write, gone]
            }
            _ => vec![write],
        }
    }
}

impl Story {
    /// The log as an archive; the same record may be in several flushes.
    async fn archive(&self) -> Synthetic {
        let mut flushes: Vec<Vec<KvRecord>> = vec![Vec::new(); FLUSHES];
        let mut places = self.flushes.iter().cycle();
        for logged in self.events.iter().flat_map(Event::log) {
            let (first, again) = places.next().unwrap();
            flushes[*first].push(logged.clone());
            if let Some(again) = again {
                flushes[*again].push(marked(&logged));
            }
        }
        let mut archive = Synthetic::until(BEGIN, u64::MAX - 1).await;
        let mut seed = self.shuffle;
        for mut records in flushes {
            for at in (1..records.len()).rev() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                records.swap(at, (seed >> 33) as usize % (at + 1));
            }
            if !records.is_empty() {
                archive.flush(&records).await;
            }
        }
        archive
    }

    /// What was committed in (start, restored] below `prefix`, with that prefix exchanged: records,
    /// without column family prefix `z`.
    fn committed(&self, start: u64, restored: u64, rename: &Rename) -> Records {
        let mut records = Records::new();
        for event in &self.events {
            let data = matches!(event.deed, Deed::Short(_) | Deed::Long(_) | Deed::Delete);
            let inside = start < event.commit && event.commit <= restored;
            let Some(key) = rename.key(&event.key).filter(|_| data && inside) else {
                continue;
            };
            let versioned = |ts| EncodedKey::encode(&key).at(Ts::new(ts)).as_bytes().to_vec();
            let write = event.write_record().to_bytes().to_vec();
            records.insert((EngineCf::Write, versioned(event.commit)), write);
            if let Deed::Long(value) = &event.deed {
                records.insert((EngineCf::Default, versioned(event.start)), value.clone());
            }
        }
        records
    }

    /// What a reader sees at `ts` of what was committed behind `start`.
    fn visible(&self, start: u64, ts: u64) -> Pairs {
        let mut seen = BTreeMap::new();
        // In the order of commits: later ones replace earlier ones.
        for event in &self.events {
            if start < event.commit && event.commit <= ts {
                match &event.deed {
                    Deed::Short(value) | Deed::Long(value) => {
                        seen.insert(event.key.clone(), value.clone());
                    }
                    Deed::Delete => {
                        seen.remove(&event.key);
                    }
                    Deed::Lock | Deed::Rollback(_) => {}
                }
            }
        }
        seen
    }

    fn commits(&self) -> Vec<u64> {
        self.events.iter().map(|event| event.commit).collect()
    }
}

type Records = BTreeMap<(EngineCf, Vec<u8>), Vec<u8>>;

/// A write record that a rollback of the same ts has marked since; others as they are.
fn marked(logged: &KvRecord) -> KvRecord {
    let mut again = logged.clone();
    if let Ok(mut write) = WriteRecord::parse(&logged.value)
        && logged.cf == Cf::Write
        && matches!(write.kind, WriteType::Put | WriteType::Delete)
    {
        write.overlapped_rollback = true;
        write.gc_fence = Some(Ts::ZERO);
        again.value = write.to_bytes();
    }
    again
}

#[derive(Clone, Debug, Default)]
struct Rename {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Rename {
    fn key(&self, key: &[u8]) -> Option<Vec<u8>> {
        let rest = key.strip_prefix(&self.old[..])?;
        Some([&self.new[..], rest].concat())
    }
}

/// How a restore is bounded: none of it may show in the result.
#[derive(Clone, Debug)]
struct Bounds {
    sort_memory: usize,
    sst_bytes: u64,
    batch_bytes: u64,
    splits: Vec<Vec<u8>>,
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let splits = prop::collection::btree_set(key(), 0..4);
    let small = prop::sample::select(vec![1u64, 300, 1 << 20]);
    (any::<bool>(), small.clone(), small, splits).prop_map(
        |(spills, sst_bytes, batch_bytes, splits)| Bounds {
            sort_memory: if spills { 2 } else { 64 << 20 },
            sst_bytes,
            batch_bytes,
            splits: splits.into_iter().filter(|key| !key.is_empty()).collect(),
        },
    )
}

fn window(start: u64, restored: u64, ranges: Vec<EncodedRange>) -> Window {
    Window {
        start: Some(Ts::new(start)),
        restored: Ts::new(restored),
        ranges,
        log_only: true,
    }
}

async fn restored(
    archive: &Synthetic,
    window: &Window,
    bounds: &Bounds,
    rename: &Rename,
) -> (MemoryEngine, Report) {
    let dir = tempfile::tempdir().unwrap();
    let (engine, env) = (MemoryEngine::default(), Env::default());
    let budget = Arc::clone(&env.budget);
    let splits: Vec<Bytes> = bounds
        .splits
        .iter()
        .map(|key| EncodedKey::encode(key).into_bytes())
        .collect();
    let spawner = Arc::clone(&env.spawner);
    let target = EngineTarget::with_splits(Arc::new(engine.clone()), spawner, &splits);
    let plan = plan(&archive.open().await, window).await.unwrap();
    let mut options = RestoreOptions::new(dir.path(), Arc::new(engine.clone()), env);
    options.sort_memory = bounds.sort_memory;
    options.sst_bytes = bounds.sst_bytes;
    options.batch_bytes = bounds.batch_bytes;
    if !rename.old.is_empty() || !rename.new.is_empty() {
        options.rewrite = Rewrite::prefix(rename.old.clone(), rename.new.clone());
    }
    let storage = archive.storage.clone();
    let report = restore(&plan, storage, &target, options, Arc::default()).await;
    let report = report.unwrap();
    drop(plan);
    assert_eq!(budget.used(), 0, "all memory is given back");
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "all temporary files are gone");
    (engine, report)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_restored_is_exactly_what_was_committed_in_the_window(
        story in story(),
        bounds in bounds(),
        from in 0u64..700,
        length in 0u64..700,
    ) {
        let (start, to) = ((BEGIN + from) * 100, (BEGIN + from + length) * 100);
        run(async {
            let archive = story.archive().await;
            let none = Rename::default();
            let (engine, report) =
                restored(&archive, &window(start, to, vec![]), &bounds, &none).await;
            let wanted = story.committed(start, to, &none);
            assert_eq!(engine.records(), wanted);
            assert_eq!(report.written as usize, wanted.len());
            let left_out = report.filtered.total() + report.duplicates;
            assert_eq!(report.read, report.written + left_out, "{report}");
        });
    }

    #[test]
    fn a_reader_at_any_time_sees_what_a_reader_of_the_store_saw(
        story in story(),
        bounds in bounds(),
    ) {
        run(async {
            let archive = story.archive().await;
            let begin = window(BEGIN, u64::MAX - 1, vec![]);
            let (engine, report) = restored(&archive, &begin, &bounds, &Rename::default()).await;
            let end = engine.visible(u64::MAX - 1);
            assert_eq!(report.expected_scan.count() as usize, end.len());
            for commit in story.commits() {
                for ts in [commit - 1, commit] {
                    assert_eq!(engine.visible(ts), story.visible(BEGIN, ts), "at {ts}");
                }
            }
        });
    }

    #[test]
    fn a_renamed_prefix_takes_all_keys_below_it_along_and_no_other(
        story in story(),
        bounds in bounds(),
        old in key(),
        new in key(),
    ) {
        run(async {
            let archive = story.archive().await;
            let rename = Rename { old, new };
            let all = window(BEGIN, u64::MAX - 1, vec![]);
            let (engine, report) = restored(&archive, &all, &bounds, &rename).await;
            let wanted = story.committed(BEGIN, u64::MAX - 1, &rename);
            assert_eq!(engine.records(), wanted);
            let into = Rewrite::prefix(rename.old.clone(), rename.new.clone())
                .target_range(&EncodedRange::ALL);
            let lost = wanted.keys().find(|(_, key)| !into.contains(&key[..key.len() - 8]));
            assert_eq!(lost, None, "all of it lands in the range that must be empty before");
            assert_eq!(report.written as usize, wanted.len());
        });
    }

    #[test]
    fn ranges_cut_out_whole_keys(
        story in story(),
        bounds in bounds(),
        ends in prop::collection::btree_set(key(), 1..5),
    ) {
        run(async {
            let archive = story.archive().await;
            let ends: Vec<_> = ends.into_iter().collect();
            let encoded = |key: &Vec<u8>| EncodedKey::encode(key).into_bytes();
            let ranges = ends.chunks(2).map(|ends| {
                let end = ends.get(1).map_or(Bytes::new(), encoded);
                EncodedRange::new(encoded(&ends[0]), end)
            });
            let within = |key: &[u8]| ends.chunks(2).any(|ends| {
                &ends[0][..] <= key && ends.get(1).is_none_or(|end| key < &end[..])
            });
            let all = window(BEGIN, u64::MAX - 1, ranges.collect());
            let (engine, _) = restored(&archive, &all, &bounds, &Rename::default()).await;
            let mut story = story;
            story.events.retain(|event| within(&event.key));
            let wanted = story.committed(BEGIN, u64::MAX - 1, &Rename::default());
            assert_eq!(engine.records(), wanted);
        });
    }

    #[test]
    fn two_restores_of_neighbouring_windows_are_one_restore_of_both(
        story in story(),
        bounds in bounds(),
        cut in 0u64..700,
    ) {
        run(async {
            let archive = story.archive().await;
            let none = Rename::default();
            let (from, cut, to) = (BEGIN, (BEGIN + cut) * 100, u64::MAX - 1);
            let (lower, _) = restored(&archive, &window(from, cut, vec![]), &bounds, &none).await;
            let (upper, _) = restored(&archive, &window(cut, to, vec![]), &bounds, &none).await;
            let (whole, _) = restored(&archive, &window(from, to, vec![]), &bounds, &none).await;
            let mut joined = lower.records();
            for (record, value) in upper.records() {
                assert_eq!(joined.insert(record, value), None, "no record is in both");
            }
            assert_eq!(joined, whole.records());
        });
    }
}
