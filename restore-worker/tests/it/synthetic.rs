//! Small archives in memory, one flush after the other.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::backup_meta::{self, LogBackupMeta};
use pitr_format::meta::{build_group, build_metadata, encode_metadata};
use pitr_format::object_name::{self, MetaName};
use pitr_format::slice::{SliceBuilder, SliceId};
use pitr_format::write_cf::WriteRecord;
use pitr_format::{Cf, EncodedKey, KvRecord, OpKind, RecordBatch, Ts};
use pitr_proto::backup::Metadata;
use pitr_restore_worker::{Archive, Env};
use pitr_storage::SharedStorage;

/// Checkpoint of a synthetic archive, unless another one is asked for.
pub const END: u64 = 1_000;

pub fn record(cf: Cf, op: OpKind, key: &[u8], ts: u64, value: impl Into<Bytes>) -> KvRecord {
    let key = EncodedKey::encode(key).at(Ts::new(ts)).into_bytes();
    KvRecord {
        cf,
        op,
        key,
        value: value.into(),
    }
}

/// A write record that carries its value.
pub fn short(key: &[u8], start: u64, commit: u64, value: &'static str) -> KvRecord {
    let write = WriteRecord::put(Ts::new(start), Some(Bytes::from(value)));
    record(Cf::Write, OpKind::Put, key, commit, write.to_bytes())
}

/// A write record whose value is in `default`.
pub fn long(key: &[u8], start: u64, commit: u64) -> KvRecord {
    let write = WriteRecord::put(Ts::new(start), None);
    record(Cf::Write, OpKind::Put, key, commit, write.to_bytes())
}

pub fn value(key: &[u8], start: u64, value: &'static str) -> KvRecord {
    record(Cf::Default, OpKind::Put, key, start, value)
}

pub struct Synthetic {
    pub storage: SharedStorage,
    flushes: u64,
}

impl Synthetic {
    /// An archive of a log that began at `start`.
    pub async fn new(start: u64) -> Synthetic {
        Synthetic::until(start, END).await
    }

    /// The same, complete up to `end`.
    pub async fn until(start: u64, end: u64) -> Synthetic {
        let storage = pitr_storage::open_url("memory://").unwrap();
        let meta = backup_meta::encode(&LogBackupMeta {
            cluster_id: 1,
            cluster_version: String::new(),
            start_ts: Ts::new(start),
            backup_schema_version: 1,
        });
        storage
            .put(object_name::BACKUP_META, meta.into())
            .await
            .unwrap();
        let checkpoint = Bytes::copy_from_slice(&end.to_le_bytes());
        storage
            .put(&object_name::checkpoint_path(1), checkpoint.into())
            .await
            .unwrap();
        Synthetic {
            storage,
            flushes: 0,
        }
    }

    /// One flush: an object with a slice per column family and kind. `edit` may change the
    /// metadata before it is named and written; the name of the `.meta` object.
    pub async fn flush_with(
        &mut self,
        records: &[KvRecord],
        edit: impl FnOnce(&mut Metadata),
    ) -> String {
        self.flushes += 1;
        let mut slices: BTreeMap<(Cf, OpKind), SliceBuilder> = BTreeMap::new();
        for record in records {
            let (cf, op) = (record.cf, record.op);
            let id = SliceId {
                table_id: 0,
                region_id: 7,
                cf,
                op,
                is_meta: false,
            };
            slices
                .entry((cf, op))
                .or_insert_with(|| SliceBuilder::new(id))
                .append(RecordBatch::of([record]).unwrap().iter().next().unwrap())
                .unwrap();
        }
        let (mut object, mut infos) = (Vec::new(), Vec::new());
        for slice in slices.into_values() {
            let sealed = slice.seal().unwrap();
            object.extend_from_slice(&sealed.stored);
            infos.push(sealed.info);
        }
        let path = format!("v1/20260101/00/1/1-{}.log", self.flushes);
        self.storage.put(&path, object.into()).await.unwrap();
        let mut metadata = build_metadata(1, Ts::ZERO, vec![build_group(path, infos)]);
        edit(&mut metadata);
        let name = MetaName::of_flush(Ts::new(10_000 + self.flushes), &metadata).write();
        self.storage
            .put(&name, encode_metadata(&metadata).into())
            .await
            .unwrap();
        name
    }

    pub async fn flush(&mut self, records: &[KvRecord]) -> String {
        self.flush_with(records, |_| {}).await
    }

    pub async fn open(&self) -> Archive {
        Archive::open(self.storage.clone(), Env::default())
            .await
            .unwrap()
    }
}
