//! One budget for everything: a storage that stands still, a full disk, damaged temporary files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_budget::spill::SpillDir;
use pitr_format::meta::decode_metadata;
use pitr_format::record::RecordIter;
use pitr_format::slice::verify_slice;
use pitr_format::{Cf, EncodedKey, EncodedRange, KvRecord, OpKind, Ts};
use pitr_observer::{
    Env, FlushError, Flusher, FlusherConfig, Generation, Observer, ObserverConfig, ObserverHandle,
    SendError, SourceEvent,
};
use pitr_storage::{SharedStorage, open_url};

use crate::support::{batch, env, region, resolved, started};

const STORE: u64 = 9;
const MIB: u64 = 1 << 20;

/// An observer of 20 regions with its environment.
struct Bed {
    env: Env,
    observer: ObserverHandle,
    /// Rows sent, and their bytes.
    rows: u64,
    bytes: u64,
}

impl Bed {
    async fn new(memory: u64, spill: Option<(&Path, u64)>) -> Self {
        let mut env = Env {
            budget: MemoryBudget::new(memory),
            ..env()
        };
        if let Some((path, quota)) = spill {
            env = env.with_spill(SpillDir::open(path, quota).unwrap());
        }
        let config = ObserverConfig {
            queue_events: 64,
            ..ObserverConfig::default()
        };
        let observer = Observer::start(config, env.clone(), [EncodedRange::ALL]).unwrap();
        for sub in 1..=20 {
            let event = started(sub, region(sub, EncodedRange::ALL), 1);
            observer.send(event).await.unwrap();
        }
        Bed {
            env,
            observer,
            rows: 0,
            bytes: 0,
        }
    }

    /// The next 50 rows of about 800 bytes; every fourth byte is noise.
    fn next_batch(&mut self) -> SourceEvent {
        let records: Vec<KvRecord> = (0..50).map(|n| self.row(n)).collect();
        self.bytes += records
            .iter()
            .map(|record| (record.key.len() + record.value.len()) as u64)
            .sum::<u64>();
        batch(self.rows / 50 % 20 + 1, records)
    }

    fn row(&self, n: u64) -> KvRecord {
        let ts = self.rows + n + 2;
        let mut noise = ts.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value: Bytes = (0..800u32)
            .map(|at| {
                noise = noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if at % 4 == 0 {
                    (noise >> 56) as u8
                } else {
                    at as u8
                }
            })
            .collect();
        KvRecord {
            cf: Cf::Default,
            op: OpKind::Put,
            key: EncodedKey::encode(&ts.to_be_bytes())
                .at(Ts::new(ts))
                .into_bytes(),
            value,
        }
    }

    /// Sends batches until `bytes` were taken or nothing was for three seconds; whether all were.
    async fn feed(&mut self, bytes: u64) -> bool {
        let until = self.bytes + bytes;
        while self.bytes < until {
            let before = self.bytes;
            let event = self.next_batch();
            let sending = self.observer.send(event);
            if tokio::time::timeout(Duration::from_secs(3), sending)
                .await
                .is_err()
            {
                self.bytes = before;
                return false;
            }
            self.rows += 50;
        }
        true
    }

    async fn seal(&self) -> Generation {
        for sub in 1..=20 {
            let event = resolved(sub, self.rows + 1);
            self.observer.send(event).await.unwrap();
        }
        self.observer.seal().await.unwrap()
    }

    async fn flusher(&self, storage: &SharedStorage) -> Flusher {
        let config = FlusherConfig {
            merge_limit: 8 * MIB,
            ..FlusherConfig::new(STORE)
        };
        Flusher::open(Arc::clone(storage), config, &self.env)
            .await
            .unwrap()
    }
}

/// Rows in the archive, every slice proven; their ts must be 2, 3, 4… without a gap.
async fn rows_in(storage: &SharedStorage) -> u64 {
    let mut seen = Vec::new();
    for object in storage.list("v1/backupmeta/").await.unwrap() {
        let meta = decode_metadata(&storage.get(&object.path).await.unwrap()).unwrap();
        for group in &meta.file_groups {
            let body = storage.get(&group.path).await.unwrap();
            assert_eq!(body.len() as u64, group.length);
            for info in &group.data_files_info {
                let end = (info.range_offset + info.range_length) as usize;
                let stored = &body[info.range_offset as usize..end];
                let plain = verify_slice(info, stored, 1 << 30).unwrap();
                for record in RecordIter::new(&plain) {
                    let key = record.unwrap().0;
                    seen.push(pitr_format::key::split_versioned(key).unwrap().1.get());
                }
            }
        }
    }
    seen.sort_unstable();
    assert!(seen.iter().zip(2..).all(|(seen, due)| *seen == due));
    seen.len() as u64
}

fn spill_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|ext| ext == "spill"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_many_times_the_budget_wait_for_a_storage_that_stands_still() {
    let temp = tempfile::tempdir().unwrap();
    let mut bed = Bed::new(32 * MIB, Some((temp.path(), 400 * MIB))).await;
    let storage = open_url("memory://").unwrap();
    assert!(bed.feed(16 * MIB).await);
    // Sealed, and its flush does not end.
    let mut first = bed.seal().await;
    assert!(bed.feed(200 * MIB).await, "stuck at {} bytes", bed.bytes);
    assert!(bed.env.budget.peak() <= 32 * MIB);
    assert!(bed.env.metrics.temp_bytes.get() > 50 * MIB as i64);
    let mut flusher = bed.flusher(&storage).await;
    flusher.flush(&mut first, Ts::new(1)).await.unwrap();
    let mut second = bed.seal().await;
    flusher.flush(&mut second, Ts::new(2)).await.unwrap();
    assert!(
        bed.env.budget.peak() <= 32 * MIB,
        "{}",
        bed.env.budget.peak()
    );
    assert_eq!(rows_in(&storage).await, bed.rows);
    assert_eq!(bed.rows / 50 * 50, bed.rows);
    drop(bed.seal().await);
    assert_eq!(bed.env.spill.as_ref().unwrap().used(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_events_until_a_flush_made_room() {
    let temp = tempfile::tempdir().unwrap();
    let mut bed = Bed::new(8 * MIB, Some((temp.path(), 4 * MIB))).await;
    let storage = open_url("memory://").unwrap();
    let mut flusher = bed.flusher(&storage).await;
    for round in 1..=3u64 {
        assert!(!bed.feed(100 * MIB).await, "nothing fills it");
        assert!(bed.env.budget.peak() <= 8 * MIB);
        assert!(bed.observer.is_starved());
        let used = bed.env.spill.as_ref().unwrap().used();
        assert!((2 * MIB..=4 * MIB).contains(&used), "{used}");
        assert_eq!(bed.observer.newest_subscription(), Some(20));
        let event = bed.next_batch();
        bed.bytes = 0;
        assert!(matches!(
            bed.observer.try_send(event),
            Err(SendError::Full(_))
        ));
        let mut generation = bed.seal().await;
        flusher
            .flush(&mut generation, Ts::new(round))
            .await
            .unwrap();
        assert_eq!(rows_in(&storage).await, bed.rows);
    }
    bed.observer
        .send(SourceEvent::Ended { sub: 20 })
        .await
        .unwrap();
    assert_eq!(bed.observer.newest_subscription(), Some(19));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_temporary_files_the_budget_still_holds() {
    let mut bed = Bed::new(8 * MIB, None).await;
    assert!(!bed.feed(100 * MIB).await);
    assert!(bed.env.budget.peak() <= 8 * MIB);
    let storage = open_url("memory://").unwrap();
    let mut generation = bed.seal().await;
    let mut flusher = bed.flusher(&storage).await;
    flusher.flush(&mut generation, Ts::new(1)).await.unwrap();
    assert_eq!(rows_in(&storage).await, bed.rows);
    assert!(bed.feed(MIB).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_temporary_file_ends_the_generation_and_never_reaches_the_archive() {
    for cut in [false, true] {
        let temp = tempfile::tempdir().unwrap();
        let mut bed = Bed::new(8 * MIB, Some((temp.path(), 100 * MIB))).await;
        assert!(bed.feed(30 * MIB).await);
        let mut generation = bed.seal().await;
        let files = spill_files(temp.path());
        let largest = files
            .iter()
            .max_by_key(|path| fs::metadata(path).unwrap().len());
        let mut bytes = fs::read(largest.unwrap()).unwrap();
        if cut {
            bytes.truncate(bytes.len() / 2);
        } else {
            let at = bytes.len() / 2;
            bytes[at] ^= 0x10;
        }
        fs::write(largest.unwrap(), bytes).unwrap();
        let storage = open_url("memory://").unwrap();
        let mut flusher = bed.flusher(&storage).await;
        for _ in 0..2 {
            let error = flusher
                .flush(&mut generation, Ts::new(1))
                .await
                .unwrap_err();
            assert!(
                matches!(error, FlushError::Spill { generation: 1, .. }),
                "{error}"
            );
            assert_eq!(error.class(), pitr_format::Class::Permanent);
        }
        assert!(storage.list("v1/backupmeta/").await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_leaves_temporary_files_only_until_the_next_start() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("0000000003.spill"), b"of a dead process").unwrap();
    let mut bed = Bed::new(8 * MIB, Some((temp.path(), 100 * MIB))).await;
    assert!(spill_files(temp.path()).is_empty());
    assert!(bed.feed(20 * MIB).await);
    let generation = bed.seal().await;
    assert!(!spill_files(temp.path()).is_empty());
    drop((bed, generation));
    for _ in 0..100 {
        if spill_files(temp.path()).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the workers keep their files");
}
