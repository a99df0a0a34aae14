//! What is known of a slice while its records pass by: counts, checksum, bounds of ts and keys.
//!
//! The records themselves may be in memory, compressed or on disk by then, so nothing here refers
//! to their bytes; smallest and largest key are copies. No allocation per record.

use bytes::Bytes;
use pitr_proto::backup::{CompressionType, DataFileInfo, FileType};

use super::SliceId;
use crate::compress::CompressError;
use crate::digest::Crc64Xor;
use crate::key::split_versioned;
use crate::record::{MAX_STREAM_LEN, RecordError};
use crate::write_cf::{WriteError, start_ts_of};
use crate::{Cf, Class, KeyError, OpKind, RecordRef, Ts};

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

/// Timestamps of a record that was looked at.
pub(super) struct Admitted {
    ts: Ts,
    start_ts: Option<Ts>,
}

/// Everything that `DataFileInfo` tells of the records. Private to the slice writers.
pub(super) struct SliceFacts {
    pub(super) id: SliceId,
    plain_len: u64,
    crc64xor: Crc64Xor,
    resolved_ts: Ts,
    count: i64,
    min_ts: Ts,
    max_ts: Ts,
    /// Smallest start ts in a write record; none in `default` and among deletes.
    min_start_ts: Option<Ts>,
    min_key: Vec<u8>,
    max_key: Vec<u8>,
}

impl SliceFacts {
    pub(super) fn new(id: SliceId) -> Self {
        SliceFacts {
            id,
            plain_len: 0,
            crc64xor: Crc64Xor::default(),
            resolved_ts: Ts::ZERO,
            count: 0,
            min_ts: Ts::MAX,
            max_ts: Ts::ZERO,
            min_start_ts: None,
            min_key: Vec::new(),
            max_key: Vec::new(),
        }
    }

    pub(super) fn plain_len(&self) -> usize {
        self.plain_len as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes allocated.
    pub(super) fn held_bytes(&self) -> usize {
        self.min_key.capacity() + self.max_key.capacity()
    }

    pub(super) fn note_resolved(&mut self, resolved_ts: Ts) {
        self.resolved_ts = self.resolved_ts.max(resolved_ts);
    }

    /// Whether the record may be appended. Changes nothing.
    #[inline]
    pub(super) fn admit(&self, record: &RecordRef<'_>) -> Result<Admitted, SliceBuildError> {
        let RecordRef {
            cf, op, key, value, ..
        } = record;
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
        let framed = record.framed.len();
        if framed > MAX_STREAM_LEN.saturating_sub(self.plain_len()) {
            return Err(SliceBuildError::Record(RecordError::StreamFull {
                stream: self.plain_len(),
                record: framed,
            }));
        }
        Ok(Admitted { ts, start_ts })
    }

    /// Counts a record that was admitted and written.
    #[inline]
    pub(super) fn note(&mut self, record: &RecordRef<'_>, admitted: &Admitted) {
        let Admitted { ts, start_ts } = *admitted;
        let key = record.key;
        self.crc64xor.add(key, record.value);
        self.plain_len += record.framed.len() as u64;
        self.count += 1;
        self.min_ts = self.min_ts.min(ts);
        self.max_ts = self.max_ts.max(ts);
        self.min_start_ts = match (self.min_start_ts, start_ts) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let first = self.count == 1;
        if first || key < &self.min_key[..] {
            replace(&mut self.min_key, key);
        }
        if first || key > &self.max_key[..] {
            replace(&mut self.max_key, key);
        }
    }

    /// 0 means "unknown" to readers and stops them from skipping anything, so it is never given.
    pub(super) fn min_begin_ts(&self) -> Ts {
        self.min_start_ts.unwrap_or(self.min_ts).max(Ts::new(1))
    }

    /// The metadata: see [`super::SealedSlice::info`].
    pub(super) fn into_info(self, sha256: &[u8; 32], stored_len: u64) -> DataFileInfo {
        let min_begin_ts = self.min_begin_ts();
        let file_type = match self.id.op {
            OpKind::Put => FileType::Put,
            OpKind::Delete => FileType::Delete,
        };
        DataFileInfo {
            sha256: Bytes::copy_from_slice(sha256),
            number_of_entries: self.count,
            min_ts: self.min_ts.get(),
            max_ts: self.max_ts.get(),
            resolved_ts: self.resolved_ts.get(),
            region_id: self.id.region_id as i64,
            start_key: self.min_key.into(),
            end_key: self.max_key.into(),
            cf: self.id.cf.as_str().to_owned(),
            r#type: file_type.into(),
            is_meta: self.id.is_meta,
            table_id: self.id.table_id,
            length: self.plain_len,
            min_begin_ts_in_default_cf: min_begin_ts.get(),
            range_length: stored_len,
            compression_type: CompressionType::Zstd.into(),
            crc64xor: self.crc64xor.get(),
            ..DataFileInfo::default()
        }
    }
}

/// Copies `key` over the old one; allocates only when it is longer than all before.
fn replace(old: &mut Vec<u8>, key: &[u8]) {
    old.clear();
    old.extend_from_slice(key);
}
