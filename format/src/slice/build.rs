//! Writing a slice: frame, checksum and statistics in one pass while the bytes are in cache, hash
//! and compression at the seal. Owned by one observer shard at a time; no locks, and no allocation
//! per record apart from the growth of the one plaintext buffer.

use std::ops::Range;

use bytes::Bytes;
use pitr_proto::backup::{CompressionType, DataFileInfo, FileType};
use sha2::{Digest as _, Sha256};

use super::SliceId;
use crate::compress::{CompressError, compress};
use crate::digest::Crc64Xor;
use crate::key::split_versioned;
use crate::record::{RecordError, append_record};
use crate::write_cf::{WriteError, start_ts_of};
use crate::{Cf, Class, KeyError, KvRecord, OpKind, Ts};

/// Why a record was not appended or a slice not sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SliceBuildError {
    /// A record of another column family or operation.
    #[error("a {op:?} of CF {cf} was appended to slice {id:?}")]
    Misplaced {
        /// The slice.
        id: SliceId,
        /// Column family of the record.
        cf: Cf,
        /// Operation of the record.
        op: OpKind,
    },
    /// A delete carries a value.
    #[error("a delete record carries a value of {0} bytes")]
    DeleteWithValue(usize),
    /// The key has no ts.
    #[error("record key: {0}")]
    Key(#[from] KeyError),
    /// The value of a write record has no start ts.
    #[error("record value: {0}")]
    Write(#[from] WriteError),
    /// The slice is full.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Nothing was appended: there is no slice to seal.
    #[error("a slice without records cannot be sealed")]
    Empty,
    /// Compression failed.
    #[error("slice cannot be compressed: {0}")]
    Compress(#[from] CompressError),
}

impl SliceBuildError {
    /// The same record fails the same way again.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// What the slice's metadata is computed from.
struct Stats {
    count: i64,
    min_ts: Ts,
    max_ts: Ts,
    /// Smallest start ts in a write record; none in `default` and among deletes.
    min_start_ts: Option<Ts>,
    /// Where the smallest and largest versioned keys lie in the plaintext.
    min_key: Range<usize>,
    max_key: Range<usize>,
}

/// Collects the records of one slice.
pub struct SliceBuilder {
    id: SliceId,
    plain: Vec<u8>,
    crc64xor: Crc64Xor,
    resolved_ts: Ts,
    stats: Option<Stats>,
}

/// A finished slice: metadata and the bytes to store.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedSlice {
    /// What the records have in common.
    pub id: SliceId,
    /// All fields that are known before the slice is merged into an object: `path` stays empty,
    /// `range_offset` is set by [`crate::meta::build_group`], the region fields by the flush.
    pub info: DataFileInfo,
    /// One zstd frame.
    pub stored: Bytes,
    /// Same as `info.min_begin_ts_in_default_cf`.
    pub min_begin_ts: Ts,
}

impl SliceBuilder {
    /// An empty slice.
    pub fn new(id: SliceId) -> Self {
        SliceBuilder {
            id,
            plain: Vec::new(),
            crc64xor: Crc64Xor::default(),
            resolved_ts: Ts::ZERO,
            stats: None,
        }
    }

    /// What the records have in common.
    pub fn id(&self) -> &SliceId {
        &self.id
    }

    /// Plaintext bytes so far.
    pub fn plain_len(&self) -> usize {
        self.plain.len()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.stats.is_none()
    }

    /// Smallest start ts that a later reader must not lose, see
    /// `DataFileInfo.min_begin_ts_in_default_cf`; none while empty.
    pub fn min_begin_ts(&self) -> Option<Ts> {
        self.stats.as_ref().map(Stats::min_begin_ts)
    }

    /// Notes the resolved ts of the region at the time of a batch; the largest one is kept.
    pub fn note_resolved(&mut self, resolved_ts: Ts) {
        self.resolved_ts = self.resolved_ts.max(resolved_ts);
    }

    /// Appends one record; on an error the slice is unchanged.
    pub fn append(&mut self, record: &KvRecord) -> Result<(), SliceBuildError> {
        let KvRecord { cf, op, key, value } = record;
        if (*cf, *op) != (self.id.cf, self.id.op) {
            return Err(SliceBuildError::Misplaced {
                id: self.id,
                cf: *cf,
                op: *op,
            });
        }
        if *op == OpKind::Delete && !value.is_empty() {
            return Err(SliceBuildError::DeleteWithValue(value.len()));
        }
        let (_, ts) = split_versioned(key)?;
        let start_ts = match cf {
            Cf::Write if !value.is_empty() => Some(start_ts_of(value)?),
            _ => None,
        };
        let key_at = self.plain.len() + 4;
        append_record(&mut self.plain, key, value)?;
        self.crc64xor.add(key, value);
        let key_range = key_at..key_at + key.len();
        match &mut self.stats {
            Some(stats) => stats.add(&self.plain, key_range, ts, start_ts),
            None => {
                self.stats = Some(Stats {
                    count: 1,
                    min_ts: ts,
                    max_ts: ts,
                    min_start_ts: start_ts,
                    min_key: key_range.clone(),
                    max_key: key_range,
                });
            }
        }
        Ok(())
    }

    /// Hashes and compresses the records and computes their metadata.
    pub fn seal(self) -> Result<SealedSlice, SliceBuildError> {
        let stats = self.stats.ok_or(SliceBuildError::Empty)?;
        let stored = Bytes::from(compress(&self.plain)?);
        let min_begin_ts = stats.min_begin_ts();
        let file_type = match self.id.op {
            OpKind::Put => FileType::Put,
            OpKind::Delete => FileType::Delete,
        };
        let info = DataFileInfo {
            sha256: Sha256::digest(&self.plain).to_vec().into(),
            number_of_entries: stats.count,
            min_ts: stats.min_ts.get(),
            max_ts: stats.max_ts.get(),
            resolved_ts: self.resolved_ts.get(),
            region_id: self.id.region_id as i64,
            start_key: Bytes::copy_from_slice(&self.plain[stats.min_key]),
            end_key: Bytes::copy_from_slice(&self.plain[stats.max_key]),
            cf: self.id.cf.as_str().to_owned(),
            r#type: file_type.into(),
            is_meta: self.id.is_meta,
            table_id: self.id.table_id,
            length: self.plain.len() as u64,
            min_begin_ts_in_default_cf: min_begin_ts.get(),
            range_length: stored.len() as u64,
            compression_type: CompressionType::Zstd.into(),
            crc64xor: self.crc64xor.get(),
            ..DataFileInfo::default()
        };
        Ok(SealedSlice {
            id: self.id,
            info,
            stored,
            min_begin_ts,
        })
    }
}

impl Stats {
    fn add(&mut self, plain: &[u8], key: Range<usize>, ts: Ts, start_ts: Option<Ts>) {
        self.count += 1;
        self.min_ts = self.min_ts.min(ts);
        self.max_ts = self.max_ts.max(ts);
        self.min_start_ts = match (self.min_start_ts, start_ts) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if plain[key.clone()] < plain[self.min_key.clone()] {
            self.min_key = key;
        } else if plain[key.clone()] > plain[self.max_key.clone()] {
            self.max_key = key;
        }
    }

    /// 0 means "unknown" to readers and stops them from skipping anything, so it is never given.
    fn min_begin_ts(&self) -> Ts {
        self.min_start_ts.unwrap_or(self.min_ts).max(Ts::new(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EncodedKey;
    use crate::write_cf::WriteRecord;

    fn id(cf: Cf, op: OpKind) -> SliceId {
        SliceId {
            table_id: 7,
            region_id: 42,
            cf,
            op,
            is_meta: false,
        }
    }

    fn record(cf: Cf, op: OpKind, key: &[u8], ts: u64, value: Bytes) -> KvRecord {
        KvRecord {
            cf,
            op,
            key: EncodedKey::encode(key).at(Ts::new(ts)).into_bytes(),
            value,
        }
    }

    fn put(key: &[u8], start: u64, commit: u64) -> KvRecord {
        let value = WriteRecord::put(Ts::new(start), Some("v".into())).to_bytes();
        record(Cf::Write, OpKind::Put, key, commit, value)
    }

    fn sealed(id: SliceId, records: &[KvRecord]) -> SealedSlice {
        let mut builder = SliceBuilder::new(id);
        for record in records {
            builder.append(record).unwrap();
        }
        builder.seal().unwrap()
    }

    #[test]
    fn the_metadata_of_write_records_covers_keys_commit_and_start_ts() {
        let records = [put(b"b", 30, 40), put(b"c", 10, 50), put(b"a", 20, 25)];
        let mut builder = SliceBuilder::new(id(Cf::Write, OpKind::Put));
        for record in &records {
            builder.append(record).unwrap();
        }
        builder.note_resolved(Ts::new(9));
        builder.note_resolved(Ts::new(5));
        let plain_len = builder.plain_len() as u64;
        let slice = builder.seal().unwrap();
        let info = &slice.info;
        assert_eq!(info.number_of_entries, 3);
        assert_eq!((info.min_ts, info.max_ts), (25, 50));
        assert_eq!(info.min_begin_ts_in_default_cf, 10);
        assert_eq!(slice.min_begin_ts, Ts::new(10));
        assert_eq!(info.resolved_ts, 9);
        assert_eq!(
            (info.region_id, info.table_id, info.is_meta),
            (42, 7, false)
        );
        assert_eq!(info.start_key, records[2].key);
        assert_eq!(info.end_key, records[1].key);
        assert_eq!((info.cf.as_str(), info.r#type()), ("write", FileType::Put));
        assert_eq!(info.length, plain_len);
        assert_eq!(info.range_length, slice.stored.len() as u64);
        assert_eq!(info.compression_type(), CompressionType::Zstd);
        assert_eq!((info.range_offset, info.path.as_str()), (0, ""));
    }

    #[test]
    fn of_one_user_key_the_newest_version_is_the_smallest_key() {
        let records = [put(b"k", 1, 2), put(b"k", 8, 9), put(b"k", 4, 5)];
        let slice = sealed(id(Cf::Write, OpKind::Put), &records);
        assert_eq!(slice.info.start_key, records[1].key);
        assert_eq!(slice.info.end_key, records[0].key);
    }

    #[test]
    fn without_start_ts_the_begin_ts_is_the_smallest_ts_and_never_zero() {
        let value = Bytes::from(vec![b'x'; 300]);
        let long = |ts| record(Cf::Default, OpKind::Put, b"k", ts, value.clone());
        let default = sealed(id(Cf::Default, OpKind::Put), &[long(12), long(11)]);
        assert_eq!(default.info.min_begin_ts_in_default_cf, 11);
        let delete = |ts| record(Cf::Write, OpKind::Delete, b"k", ts, Bytes::new());
        let deletes = sealed(id(Cf::Write, OpKind::Delete), &[delete(5), delete(6)]);
        assert_eq!(deletes.info.min_begin_ts_in_default_cf, 5);
        assert_eq!(deletes.info.r#type(), FileType::Delete);
        let zero = sealed(id(Cf::Write, OpKind::Delete), &[delete(0)]);
        assert_eq!(zero.info.min_begin_ts_in_default_cf, 1);
    }

    #[test]
    fn a_refused_record_leaves_the_slice_as_it_was() {
        let good = put(b"k", 1, 2);
        let mut builder = SliceBuilder::new(id(Cf::Write, OpKind::Put));
        builder.append(&good).unwrap();
        let with = |key: &[u8], value: &'static [u8]| KvRecord {
            key: Bytes::copy_from_slice(key),
            value: Bytes::from_static(value),
            ..good.clone()
        };
        let refused = [
            record(Cf::Default, OpKind::Put, b"k", 1, Bytes::new()),
            record(Cf::Write, OpKind::Delete, b"k", 1, Bytes::new()),
            with(b"short", b"P\x01"),
            with(&good.key, b"?"),
            with(&good.key, b"P"),
        ];
        for record in &refused {
            builder.append(record).unwrap_err();
        }
        let plain_sealed = sealed(id(Cf::Write, OpKind::Put), &[good]);
        assert_eq!(builder.seal().unwrap(), plain_sealed);
    }

    #[test]
    fn deletes_with_values_and_empty_slices_are_refused() {
        let mut builder = SliceBuilder::new(id(Cf::Default, OpKind::Delete));
        let delete = record(Cf::Default, OpKind::Delete, b"k", 1, "v".into());
        assert_eq!(
            builder.append(&delete),
            Err(SliceBuildError::DeleteWithValue(1))
        );
        assert!(builder.is_empty() && builder.min_begin_ts().is_none());
        assert_eq!(builder.seal(), Err(SliceBuildError::Empty));
    }
}
