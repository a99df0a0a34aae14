//! Proving that stored bytes are the slice that its metadata describes.
//!
//! The order of checks keeps the cost of hostile bytes low: lengths and caps first, then one
//! decompression bounded by the declared length, then hash, then the records. Bounds in the
//! metadata must *contain* the records: readers skip by them, so wider ones only cost time.

use pitr_proto::backup::{CompressionType, DataFileInfo};
use sha2::{Digest as _, Sha256};

use crate::compress::{CompressError, decompress};
use crate::digest::Crc64Xor;
use crate::key::split_versioned;
use crate::record::{RecordError, RecordIter};
use crate::write_cf::{WriteError, start_ts_of};
use crate::{Cf, Class, KeyError};

/// Why stored bytes are not the slice of the metadata. The caller adds object and offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// The metadata asks for something this build cannot read.
    #[error("slice uses {0}, which is not supported")]
    Unsupported(&'static str),
    /// Neither `default` nor `write`.
    #[error("slice of unknown column family {0:?}")]
    UnknownCf(String),
    /// Too few or too many bytes were fetched: the object is shorter than its metadata says.
    #[error("slice has {found} stored bytes, its metadata says {expected}")]
    StoredLength {
        /// `range_length` of the metadata.
        expected: u64,
        /// Bytes at hand.
        found: u64,
    },
    /// The declared plaintext is above the caller's memory limit.
    #[error("slice of {length} bytes is above the limit of {limit}: raise the memory limit")]
    TooLarge {
        /// `length` of the metadata.
        length: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// Not exactly one frame of the declared length.
    #[error("slice does not decompress: {0}")]
    Compress(#[from] CompressError),
    /// Uncompressed bytes of another length than declared.
    #[error("slice has {found} plaintext bytes, its metadata says {expected}")]
    PlainLength {
        /// `length` of the metadata.
        expected: u64,
        /// Bytes at hand.
        found: u64,
    },
    /// The hash of the plaintext differs.
    #[error("slice has SHA-256 {found}, its metadata says {expected}")]
    Sha256 {
        /// Hex of the metadata's hash.
        expected: String,
        /// Hex of the hash of the bytes.
        found: String,
    },
    /// The plaintext is no record stream.
    #[error("slice: {0}")]
    Record(#[from] RecordError),
    /// A key without ts.
    #[error("slice record {index}: {source}")]
    Key {
        /// Number of the record, from 0.
        index: u64,
        /// What is wrong.
        source: KeyError,
    },
    /// A write record without start ts.
    #[error("slice record {index}: {source}")]
    Write {
        /// Number of the record, from 0.
        index: u64,
        /// What is wrong.
        source: WriteError,
    },
    /// A record lies outside what the metadata declares, so readers could skip it wrongly.
    #[error("slice record {index} has a {what} outside the bounds of the metadata")]
    OutOfBounds {
        /// Number of the record, from 0.
        index: u64,
        /// `ts`, `key` or `start ts`.
        what: &'static str,
    },
    /// The number of records differs.
    #[error("slice has {found} records, its metadata says {expected}")]
    Count {
        /// `number_of_entries` of the metadata.
        expected: i64,
        /// Records read.
        found: u64,
    },
    /// The XOR of the records' CRCs differs.
    #[error("slice has crc64xor {found:016x}, its metadata says {expected:016x}")]
    Crc64Xor {
        /// `crc64xor` of the metadata.
        expected: u64,
        /// Computed value.
        found: u64,
    },
}

impl SliceError {
    /// All of them are damage, a missing feature or a limit: repeating cannot help.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// The plaintext of a slice, after every check that its metadata allows. `stored` are exactly the
/// bytes `[range_offset, range_offset + range_length)` of the object (the whole object where
/// `range_length` is 0, as in the first generation of the format); `limit` caps the plaintext.
///
/// A `crc64xor` of 0 means that the writer did not record one, as early releases did not.
pub fn verify_slice(info: &DataFileInfo, stored: &[u8], limit: u64) -> Result<Vec<u8>, SliceError> {
    if info.file_encryption_info.is_some() {
        return Err(SliceError::Unsupported("encryption"));
    }
    let found = stored.len() as u64;
    if info.range_length != 0 && info.range_length != found {
        return Err(SliceError::StoredLength {
            expected: info.range_length,
            found,
        });
    }
    let length = info.length;
    if length > limit {
        return Err(SliceError::TooLarge { length, limit });
    }
    let plain = match CompressionType::try_from(info.compression_type) {
        Ok(CompressionType::Zstd) => decompress(stored, length)?,
        Ok(CompressionType::Unknown) if found == length => stored.to_vec(),
        Ok(CompressionType::Unknown) => {
            return Err(SliceError::PlainLength {
                expected: length,
                found,
            });
        }
        Ok(CompressionType::Lz4) => return Err(SliceError::Unsupported("LZ4 compression")),
        Ok(CompressionType::Snappy) => return Err(SliceError::Unsupported("Snappy compression")),
        Err(_) => return Err(SliceError::Unsupported("an unknown compression")),
    };
    let hash: [u8; 32] = Sha256::digest(&plain).into();
    if info.sha256[..] != hash {
        return Err(SliceError::Sha256 {
            expected: hex::encode(&info.sha256),
            found: hex::encode(hash),
        });
    }
    verify_records(info, &plain)?;
    Ok(plain)
}

fn verify_records(info: &DataFileInfo, plain: &[u8]) -> Result<(), SliceError> {
    let cf = Cf::parse(&info.cf).ok_or_else(|| SliceError::UnknownCf(info.cf.clone()))?;
    let mut crc64xor = Crc64Xor::default();
    let mut index = 0;
    for record in RecordIter::new(plain) {
        let (key, value) = record?;
        let (_, ts) = split_versioned(key).map_err(|source| SliceError::Key { index, source })?;
        let outside = |what| Err(SliceError::OutOfBounds { index, what });
        if ts.get() < info.min_ts || ts.get() > info.max_ts {
            return outside("ts");
        }
        if key < &info.start_key[..] || key > &info.end_key[..] {
            return outside("key");
        }
        if cf == Cf::Write && !value.is_empty() {
            let start_ts =
                start_ts_of(value).map_err(|source| SliceError::Write { index, source })?;
            if start_ts.get().max(1) < info.min_begin_ts_in_default_cf {
                return outside("start ts");
            }
        }
        crc64xor.add(key, value);
        index += 1;
    }
    if i64::try_from(index) != Ok(info.number_of_entries) {
        return Err(SliceError::Count {
            expected: info.number_of_entries,
            found: index,
        });
    }
    if info.crc64xor != 0 && info.crc64xor != crc64xor.get() {
        return Err(SliceError::Crc64Xor {
            expected: info.crc64xor,
            found: crc64xor.get(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::slice::{SealedSlice, SliceBuilder, SliceId};
    use crate::write_cf::WriteRecord;
    use crate::{EncodedKey, KvRecord, OpKind, RecordBatch, Ts};

    const LIMIT: u64 = 1 << 20;

    /// A write-CF slice of `n` keys with values of `value_len` bytes.
    fn sample(n: u64, value_len: usize) -> SealedSlice {
        let mut builder = SliceBuilder::new(SliceId {
            table_id: 0,
            region_id: 2,
            cf: Cf::Write,
            op: OpKind::Put,
            is_meta: false,
        });
        for i in 0..n {
            let value = Bytes::from(vec![i as u8; value_len]);
            let record = KvRecord {
                cf: Cf::Write,
                op: OpKind::Put,
                key: EncodedKey::encode(format!("key{}", i * 7919 % n).as_bytes())
                    .at(Ts::new(1000 + i))
                    .into_bytes(),
                value: WriteRecord::put(Ts::new(900 + i), Some(value)).to_bytes(),
            };
            builder
                .append(RecordBatch::of([&record]).unwrap().iter().next().unwrap())
                .unwrap();
        }
        builder.seal().unwrap()
    }

    /// The error for metadata that was changed by `change`.
    fn refused(change: impl FnOnce(&mut DataFileInfo)) -> SliceError {
        let mut slice = sample(50, 20);
        change(&mut slice.info);
        verify_slice(&slice.info, &slice.stored, LIMIT).unwrap_err()
    }

    #[test]
    fn a_sealed_slice_verifies_to_the_plaintext_of_its_records() {
        let slice = sample(50, 20);
        let plain = verify_slice(&slice.info, &slice.stored, LIMIT).unwrap();
        assert_eq!(plain.len() as u64, slice.info.length);
        assert_eq!(RecordIter::new(&plain).count(), 50);
    }

    #[test]
    fn every_field_of_the_metadata_that_lies_is_named() {
        use SliceError::*;
        assert!(matches!(
            refused(|i| i.range_length += 1),
            StoredLength { .. }
        ));
        assert!(matches!(refused(|i| i.length = LIMIT + 1), TooLarge { .. }));
        assert!(matches!(refused(|i| i.length += 1), Compress(_)));
        assert!(matches!(refused(|i| i.length -= 1), Compress(_)));
        assert!(matches!(
            refused(|i| i.sha256 = Bytes::from(vec![0; 32])),
            Sha256 { .. }
        ));
        assert!(matches!(
            refused(|i| i.sha256 = Bytes::new()),
            Sha256 { .. }
        ));
        assert!(matches!(
            refused(|i| i.number_of_entries += 1),
            Count { .. }
        ));
        assert!(matches!(
            refused(|i| i.number_of_entries = -1),
            Count { .. }
        ));
        assert!(matches!(refused(|i| i.crc64xor ^= 1), Crc64Xor { .. }));
        assert!(matches!(
            refused(|i| i.cf = "lock".to_owned()),
            UnknownCf(_)
        ));
        for compression in [1, 2, 77] {
            let error = refused(|i| i.compression_type = compression);
            assert!(matches!(error, Unsupported(_)));
        }
        let encrypted = refused(|i| i.file_encryption_info = Some(Default::default()));
        assert_eq!(encrypted, Unsupported("encryption"));
    }

    #[test]
    fn bounds_that_exclude_a_record_are_refused_and_wider_ones_accepted() {
        let outside = |change: fn(&mut DataFileInfo)| match refused(change) {
            SliceError::OutOfBounds { what, .. } => what,
            other => panic!("{other}"),
        };
        assert_eq!(outside(|i| i.min_ts += 1), "ts");
        assert_eq!(outside(|i| i.max_ts -= 1), "ts");
        assert_eq!(
            outside(|i| i.start_key = [&i.start_key[..], b"\0"].concat().into()),
            "key"
        );
        assert_eq!(outside(|i| i.end_key.truncate(i.end_key.len() - 1)), "key");
        assert_eq!(outside(|i| i.min_begin_ts_in_default_cf += 1), "start ts");
        let mut wider = sample(50, 20);
        wider.info.min_ts -= 1;
        wider.info.max_ts += 1;
        wider.info.start_key = Bytes::new();
        wider.info.end_key = Bytes::from(vec![0xFF; 40]);
        wider.info.min_begin_ts_in_default_cf = 0;
        verify_slice(&wider.info, &wider.stored, LIMIT).unwrap();
    }

    /// What the first generation of the format looks like: plain, whole object, no `crc64xor`.
    #[test]
    fn an_uncompressed_whole_object_without_crc_is_accepted_but_still_hashed() {
        let slice = sample(5, 5);
        let plain = verify_slice(&slice.info, &slice.stored, LIMIT).unwrap();
        let info = DataFileInfo {
            compression_type: 0,
            range_length: 0,
            crc64xor: 0,
            ..slice.info
        };
        assert_eq!(verify_slice(&info, &plain, LIMIT).unwrap(), plain);
        for at in 0..plain.len() {
            let mut damaged = plain.clone();
            damaged[at] ^= 0x10;
            assert!(verify_slice(&info, &damaged, LIMIT).is_err());
        }
        assert!(matches!(
            verify_slice(&info, &plain[1..], LIMIT),
            Err(SliceError::PlainLength { .. })
        ));
    }

    #[test]
    fn every_flipped_bit_of_the_stored_bytes_is_refused_or_changes_nothing() {
        let slice = sample(30, 9);
        let plain = verify_slice(&slice.info, &slice.stored, LIMIT).unwrap();
        for at in 0..slice.stored.len() {
            for bit in 0..8 {
                let mut damaged = slice.stored.to_vec();
                damaged[at] ^= 1 << bit;
                // For example a larger window than needed: another frame of the same bytes.
                if let Ok(same) = verify_slice(&slice.info, &damaged, LIMIT) {
                    assert_eq!(same, plain, "byte {at} bit {bit}");
                }
            }
        }
        for cut in 0..slice.stored.len() {
            verify_slice(&slice.info, &slice.stored[..cut], LIMIT).unwrap_err();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_mutated_byte_of_a_slice_is_refused_or_provably_identical(
            n in 1..40u64, value_len in 0..200usize, at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let slice = sample(n, value_len);
            let plain = verify_slice(&slice.info, &slice.stored, LIMIT).unwrap();
            let mut damaged = slice.stored.to_vec();
            let at = at.index(damaged.len());
            damaged[at] = byte;
            if let Ok(same) = verify_slice(&slice.info, &damaged, LIMIT) {
                prop_assert_eq!(same, plain);
            }
        }

        /// Hostile bytes whose hash the hostile metadata declares correctly.
        #[test]
        fn no_bytes_with_a_fitting_hash_make_the_record_checks_panic(
            plain in proptest::collection::vec(prop_oneof![Just(0u8), Just(9), any::<u8>()], 0..60),
            cf in prop_oneof![Just("write"), Just("default")],
        ) {
            let info = DataFileInfo {
                length: plain.len() as u64,
                sha256: sha2::Sha256::digest(&plain).to_vec().into(),
                max_ts: u64::MAX,
                end_key: Bytes::from(vec![0xFF; 80]),
                cf: cf.to_owned(),
                ..DataFileInfo::default()
            };
            let _ = verify_slice(&info, &plain, LIMIT);
        }
    }
}
