//! The record stream inside a slice: `u32 LE key length, key, u32 LE value length, value`,
//! repeated to the end, without header, footer or padding.
//!
//! Source: tikv/tikv `components/tikv_util/src/codec/stream_event.rs`; the limit is that of BR's
//! reader, which keeps positions in 32 bits (`br/pkg/stream/decode_kv.go`). Written by
//! [`crate::slice::SliceBuilder`], read by everything that opens a slice.

use crate::Class;

/// Bytes that the two length fields of a record take.
pub const RECORD_OVERHEAD: usize = 8;
/// Largest plaintext of a slice: readers keep positions in 32 bits.
pub const MAX_STREAM_LEN: usize = u32::MAX as usize;

/// Why a record cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The stream would pass 4 GiB - 1 with this record: seal it and start another.
    #[error(
        "record of {record} bytes does not fit: the stream holds {stream} of at most {MAX_STREAM_LEN} bytes"
    )]
    StreamFull {
        /// Bytes in the stream.
        stream: usize,
        /// Bytes of the record with its length fields.
        record: usize,
    },
    /// The stream ends inside a record.
    #[error("record at byte {offset} ends inside its {part}")]
    Truncated {
        /// Where the record starts.
        offset: usize,
        /// Which part is cut.
        part: &'static str,
    },
}

impl RecordError {
    /// A full stream and damaged bytes both stay as they are.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// Appends one record; on an error `stream` is unchanged.
pub fn append_record(stream: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
    let record = key
        .len()
        .saturating_add(value.len())
        .saturating_add(RECORD_OVERHEAD);
    if record > MAX_STREAM_LEN.saturating_sub(stream.len()) {
        return Err(RecordError::StreamFull {
            stream: stream.len(),
            record,
        });
    }
    stream.reserve(record);
    // Both casts are exact: a record is shorter than the 32-bit limit of the stream.
    for part in [key, value] {
        stream.extend_from_slice(&(part.len() as u32).to_le_bytes());
        stream.extend_from_slice(part);
    }
    Ok(())
}

/// Iterates over `(key, value)` of a record stream; ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    stream: &'a [u8],
    offset: usize,
}

impl<'a> RecordIter<'a> {
    /// Starts at the first byte of a slice's plaintext.
    pub fn new(stream: &'a [u8]) -> Self {
        RecordIter { stream, offset: 0 }
    }

    /// Offset of the next record.
    pub fn offset(&self) -> usize {
        self.offset
    }

    fn part(&self, at: usize, names: [&'static str; 2]) -> Result<&'a [u8], RecordError> {
        let cut = |part| RecordError::Truncated {
            offset: self.offset,
            part,
        };
        let rest = self.stream.get(at..).unwrap_or_default();
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(cut(names[0]))?;
        rest.get(..u32::from_le_bytes(*len) as usize)
            .ok_or(cut(names[1]))
    }

    fn read(&self) -> Result<(&'a [u8], &'a [u8]), RecordError> {
        let key = self.part(self.offset, ["key length", "key"])?;
        let value = self.part(self.offset + 4 + key.len(), ["value length", "value"])?;
        Ok((key, value))
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.stream.len() {
            return None;
        }
        let record = self.read();
        self.offset = match &record {
            Ok((key, value)) => self.offset + RECORD_OVERHEAD + key.len() + value.len(),
            Err(_) => self.stream.len(),
        };
        Some(record)
    }
}

impl std::iter::FusedIterator for RecordIter<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Pair = (Vec<u8>, Vec<u8>);

    fn write(pairs: &[Pair]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (key, value) in pairs {
            append_record(&mut stream, key, value).unwrap();
        }
        stream
    }

    fn read(stream: &[u8]) -> Result<Vec<Pair>, RecordError> {
        RecordIter::new(stream)
            .map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec())))
            .collect()
    }

    #[test]
    fn a_record_is_two_little_endian_lengths_each_before_its_bytes() {
        let stream = write(&[(b"key".to_vec(), b"v".to_vec()), (b"k".to_vec(), vec![])]);
        assert_eq!(
            hex::encode(stream),
            "030000006b65790100000076010000006b00000000"
        );
        assert_eq!(read(b"").unwrap(), vec![]);
    }

    #[test]
    fn a_stream_cut_anywhere_inside_a_record_is_an_error_and_then_ends() {
        let first = write(&[(b"a".to_vec(), b"1".to_vec())]).len();
        let stream = write(&[
            (b"a".to_vec(), b"1".to_vec()),
            (b"bc".to_vec(), b"22".to_vec()),
        ]);
        for cut in (0..stream.len()).filter(|cut| *cut != 0 && *cut != first) {
            let mut iter = RecordIter::new(&stream[..cut]);
            let errors = iter.by_ref().filter(Result::is_err).count();
            assert_eq!((errors, iter.next()), (1, None), "cut at {cut}");
        }
    }

    #[test]
    fn the_error_names_the_record_and_the_part() {
        let mut stream = write(&[(b"a".to_vec(), b"1".to_vec())]);
        stream.extend([255, 255, 255, 255, 0]);
        assert_eq!(
            read(&stream).unwrap_err(),
            RecordError::Truncated {
                offset: 10,
                part: "key"
            }
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_records_survive_a_round_trip(
            pairs in proptest::collection::vec(any::<Pair>(), 0..20),
        ) {
            prop_assert_eq!(read(&write(&pairs)).unwrap(), pairs);
        }

        #[test]
        fn any_bytes_are_read_to_their_end_without_a_panic(stream in any::<Vec<u8>>()) {
            let mut iter = RecordIter::new(&stream);
            prop_assert!(iter.by_ref().count() <= stream.len() / RECORD_OVERHEAD + 1);
            prop_assert_eq!(iter.offset(), stream.len());
        }
    }
}
