//! Rows to send, a reader of what was written, and a PD that can be out of order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use pitr_format::meta::decode_metadata;
use pitr_format::record::RecordIter;
use pitr_format::slice::verify_slice;
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, Class, EncodedKey, EncodedRange, KvRecord, OpKind, RecordBatch, Ts};
use pitr_observer::{
    Env, FlushTable, ProgressSink, RegionMeta, ShardCore, SinkError, SourceEvent, SubId, TaskRanges,
};
use pitr_proto::backup::Metadata;
use pitr_storage::{SharedStorage, Storage};
use prometheus::Registry;

pub const NO_LIMIT: u64 = 1 << 30;

/// The environment of an ordinary process, with a registry of its own.
pub fn env() -> Env {
    Env::with_registry(&Registry::new(), 1 << 30).unwrap()
}

pub fn core(slice_limit: u64) -> ShardCore {
    let ranges = Arc::new(TaskRanges::new([EncodedRange::ALL]));
    ShardCore::new(ranges, slice_limit, env())
}

pub fn bound(raw: &[u8]) -> bytes::Bytes {
    EncodedKey::encode(raw).into_bytes()
}

pub fn region(id: u64, range: EncodedRange) -> RegionMeta {
    RegionMeta {
        id,
        conf_ver: 1,
        version: 5,
        range,
    }
}

/// A put committed at `ts`, as the write record that the log holds.
pub fn row(key: &[u8], ts: u64) -> KvRecord {
    let short = key[..key.len().min(255)].to_vec();
    let value = WriteRecord::put(Ts::new(ts - 1), Some(short.into()));
    KvRecord {
        cf: Cf::Write,
        op: OpKind::Put,
        key: EncodedKey::encode(key).at(Ts::new(ts)).into_bytes(),
        value: value.to_bytes(),
    }
}

pub fn started(sub: SubId, region: RegionMeta, checkpoint_ts: u64) -> SourceEvent {
    SourceEvent::Started {
        sub,
        region,
        checkpoint_ts: Ts::new(checkpoint_ts),
    }
}

pub fn batch(sub: SubId, records: Vec<KvRecord>) -> SourceEvent {
    let records = RecordBatch::of(&records).unwrap();
    SourceEvent::Batch { sub, records }
}

pub fn resolved(sub: SubId, ts: u64) -> SourceEvent {
    let ts = Ts::new(ts);
    SourceEvent::Resolved { sub, ts }
}

/// Everything a reader finds, after checking every slice against its metadata.
#[derive(Default)]
pub struct Archive {
    pub metas: Vec<(String, Metadata)>,
    pub records: Vec<KvRecord>,
    pub unreferenced: Vec<String>,
}

impl Archive {
    pub async fn read(storage: &SharedStorage) -> Self {
        let mut archive = Archive::default();
        let mut referenced = BTreeSet::new();
        for object in storage.list("v1/backupmeta/").await.unwrap() {
            let meta = decode_metadata(&storage.get(&object.path).await.unwrap()).unwrap();
            for group in &meta.file_groups {
                referenced.insert(group.path.clone());
                let body = storage.get(&group.path).await.unwrap();
                assert_eq!(body.len() as u64, group.length, "{}", group.path);
                for info in &group.data_files_info {
                    let end = info.range_offset + info.range_length;
                    let stored = &body[info.range_offset as usize..end as usize];
                    let plain = verify_slice(info, stored, NO_LIMIT).unwrap();
                    for record in RecordIter::new(&plain) {
                        let (key, value) = record.unwrap();
                        archive.records.push(KvRecord {
                            cf: Cf::parse(&info.cf).unwrap(),
                            op: if info.r#type == 1 {
                                OpKind::Put
                            } else {
                                OpKind::Delete
                            },
                            key: key.to_vec().into(),
                            value: value.to_vec().into(),
                        });
                    }
                }
            }
            archive.metas.push((object.path, meta));
        }
        for object in storage.list("v1/").await.unwrap() {
            if object.path.ends_with(".log") && !referenced.contains(&object.path) {
                archive.unreferenced.push(object.path);
            }
        }
        archive
    }

    /// Timestamps of all rows, ascending.
    pub fn row_ts(&self) -> Vec<u64> {
        let ts = |r: &KvRecord| pitr_format::key::split_versioned(&r.key).unwrap().1;
        let mut all: Vec<_> = self.records.iter().map(|r| ts(r).get()).collect();
        all.sort_unstable();
        all
    }
}

/// A PD that remembers what it was told, in order, and refuses while told to.
#[derive(Default)]
pub struct FakePd {
    pub refuse_global: AtomicBool,
    pub refuse_storage: AtomicBool,
    pub told: Mutex<Vec<(&'static str, u64)>>,
    pub tables: Mutex<Vec<FlushTable>>,
    /// A coordinator of several stores.
    pub answers_later: AtomicBool,
    /// Set by "another coordinator".
    pub floor: Mutex<u64>,
}

impl FakePd {
    fn answer(&self, refuse: &AtomicBool, what: &'static str, ts: Ts) -> Result<(), SinkError> {
        if refuse.load(Ordering::SeqCst) {
            return Err(SinkError::new(Class::Retry, "refused"));
        }
        self.told.lock().push((what, ts.get()));
        Ok(())
    }
}

#[async_trait]
impl ProgressSink for FakePd {
    async fn tell(&self, table: &FlushTable) -> Result<Option<Ts>, SinkError> {
        let ts = table.checkpoint;
        self.answer(&self.refuse_global, "global", ts)?;
        self.tables.lock().push(table.clone());
        let merges_others = self.answers_later.load(Ordering::SeqCst);
        Ok((!merges_others).then(|| ts.max(Ts::new(*self.floor.lock()))))
    }

    async fn set_storage_checkpoint(&self, ts: Ts) -> Result<(), SinkError> {
        self.answer(&self.refuse_storage, "storage", ts)
    }
}

/// The store's checkpoint object, 0 without one.
pub async fn checkpoint_object(storage: &dyn Storage, store_id: u64) -> u64 {
    let path = format!("v1/global_checkpoint/{store_id}.ts");
    match storage.get(&path).await {
        Ok(bytes) => u64::from_le_bytes(bytes[..].try_into().unwrap()),
        Err(error) if error.is_not_found() => 0,
        Err(error) => panic!("{error}"),
    }
}
