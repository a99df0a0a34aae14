//! Writing a slice: frame, checksum and statistics in one pass while the bytes are in cache, hash
//! and compression at the seal. Owned by one observer shard at a time; no locks, and no allocation
//! per record apart from the chunks of the plaintext.

use bytes::Bytes;
use pitr_proto::backup::DataFileInfo;

use super::SliceId;
use super::facts::{SliceBuildError, SliceFacts};
use super::plain::PlainBuffer;
use crate::frame::{AT_ONCE, Frame, FrameEncoder, Scratch};
use crate::{RecordRef, Ts};

/// Collects the records of one slice as plaintext.
pub struct SliceBuilder {
    facts: SliceFacts,
    plain: PlainBuffer,
}

/// A finished slice: metadata and the bytes to store, in pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedSlice {
    /// What the records have in common.
    pub id: SliceId,
    /// All fields that are known before the slice is merged into an object: `path` stays empty,
    /// `range_offset` is set by [`crate::meta::build_group`], the region fields by the flush.
    pub info: DataFileInfo,
    /// One zstd frame.
    pub pieces: Vec<Bytes>,
}

/// A finished slice whose stored bytes are in one piece.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedSlice {
    /// What the records have in common.
    pub id: SliceId,
    /// See [`EncodedSlice::info`].
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
            facts: SliceFacts::new(id),
            plain: PlainBuffer::default(),
        }
    }

    /// What the records have in common.
    pub fn id(&self) -> &SliceId {
        &self.facts.id
    }

    /// Plaintext bytes so far.
    #[inline]
    pub fn plain_len(&self) -> usize {
        self.facts.plain_len()
    }

    /// Bytes allocated besides the builder itself.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        self.plain.held_bytes() + self.facts.held_bytes()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// Smallest start ts that a later reader must not lose, see
    /// `DataFileInfo.min_begin_ts_in_default_cf`; none while empty.
    pub fn min_begin_ts(&self) -> Option<Ts> {
        (!self.is_empty()).then(|| self.facts.min_begin_ts())
    }

    /// Notes the resolved ts of the region at the time of a batch; the largest one is kept.
    #[inline]
    pub fn note_resolved(&mut self, resolved_ts: Ts) {
        self.facts.note_resolved(resolved_ts);
    }

    /// Appends one record; on an error the slice is unchanged.
    #[inline]
    pub fn append(&mut self, record: RecordRef<'_>) -> Result<(), SliceBuildError> {
        let admitted = self.facts.admit(&record)?;
        self.plain.push(record.framed);
        self.facts.note(&record, &admitted);
        Ok(())
    }

    /// Hashes and compresses the records with an encoder of its own: for those who have a slice
    /// now and then.
    pub fn seal(self) -> Result<SealedSlice, SliceBuildError> {
        let min_begin_ts = self.facts.min_begin_ts();
        let EncodedSlice { id, info, pieces } = self.encode(&mut FrameEncoder::new()?, None)?;
        Ok(SealedSlice {
            id,
            info,
            stored: match <[Bytes; 1]>::try_from(pieces) {
                Ok([only]) => only,
                Err(pieces) => pieces.concat().into(),
            },
            min_begin_ts,
        })
    }

    /// Hashes and compresses the records, at once if there is a `scratch` and they fit into it.
    /// Memory does not grow on the way: chunks are freed as pieces come into being.
    pub fn encode(
        self,
        encoder: &mut FrameEncoder,
        scratch: Option<&mut Scratch>,
    ) -> Result<EncodedSlice, SliceBuildError> {
        if self.is_empty() {
            return Err(SliceBuildError::Empty);
        }
        if let Some(scratch) = scratch
            && self.plain_len() <= AT_ONCE
        {
            let frame = encoder.frame_at_once(scratch, self.plain.into_chunks())?;
            return Ok(EncodedSlice::new(self.facts, frame));
        }
        encoder.begin(self.plain_len() as u64)?;
        for chunk in self.plain.into_chunks() {
            encoder.write(&chunk)?;
        }
        Ok(EncodedSlice::new(self.facts, encoder.finish()?))
    }
}

impl EncodedSlice {
    fn new(facts: SliceFacts, frame: Frame) -> Self {
        let Frame { sha256, pieces } = frame;
        let stored_len = pieces.iter().map(|piece| piece.len() as u64).sum();
        EncodedSlice {
            id: facts.id,
            info: facts.into_info(&sha256, stored_len),
            pieces,
        }
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::{CompressionType, FileType};

    use super::*;
    use crate::write_cf::WriteRecord;
    use crate::{Cf, EncodedKey, KvRecord, OpKind, RecordBatch};

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
            builder
                .append(RecordBatch::of([record]).unwrap().iter().next().unwrap())
                .unwrap();
        }
        builder.seal().unwrap()
    }

    #[test]
    fn the_metadata_of_write_records_covers_keys_commit_and_start_ts() {
        let records = [put(b"b", 30, 40), put(b"c", 10, 50), put(b"a", 20, 25)];
        let mut builder = SliceBuilder::new(id(Cf::Write, OpKind::Put));
        for record in &records {
            builder
                .append(RecordBatch::of([record]).unwrap().iter().next().unwrap())
                .unwrap();
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
        builder
            .append(RecordBatch::of([&good]).unwrap().iter().next().unwrap())
            .unwrap();
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
            builder
                .append(RecordBatch::of([record]).unwrap().iter().next().unwrap())
                .unwrap_err();
        }
        let plain_sealed = sealed(id(Cf::Write, OpKind::Put), &[good]);
        assert_eq!(builder.seal().unwrap(), plain_sealed);
    }

    #[test]
    fn deletes_with_values_and_empty_slices_are_refused() {
        let mut builder = SliceBuilder::new(id(Cf::Default, OpKind::Delete));
        let delete = record(Cf::Default, OpKind::Delete, b"k", 1, "v".into());
        assert_eq!(
            builder.append(RecordBatch::of([&delete]).unwrap().iter().next().unwrap()),
            Err(SliceBuildError::DeleteWithValue(1))
        );
        assert!(builder.is_empty() && builder.min_begin_ts().is_none());
        assert_eq!(builder.seal(), Err(SliceBuildError::Empty));
    }
}
