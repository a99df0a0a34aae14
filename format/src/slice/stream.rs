//! A large slice that is compressed while it grows.
//!
//! Only compressed pieces and one small buffer stay in memory, however long the slice gets. It
//! owns a zstd context for that time and gives it back at the end.

use super::SliceId;
use super::build::EncodedSlice;
use super::facts::{SliceBuildError, SliceFacts};
use super::plain::PlainBuffer;
use crate::compress::CompressError;
use crate::frame::FrameEncoder;
use crate::record::put_record;
use crate::{KvRecord, Ts};

/// Plaintext that is compressed at a time: small enough for the cache, large enough that a call
/// of libzstd does not show.
const STAGE: usize = 32 << 10;

/// Collects the records of one slice and compresses them on the way.
pub struct SliceStream {
    facts: SliceFacts,
    encoder: FrameEncoder,
    stage: Vec<u8>,
    /// What went wrong in a frame that can therefore not be finished; told at the end, because
    /// records of the past are lost and not the one that was appended.
    broken: Option<CompressError>,
}

impl SliceStream {
    pub(super) fn begin(facts: SliceFacts, plain: PlainBuffer, encoder: FrameEncoder) -> Self {
        let mut stream = SliceStream {
            facts,
            encoder,
            stage: Vec::with_capacity(STAGE),
            broken: None,
        };
        stream.run(|encoder| encoder.begin(None));
        for chunk in plain.into_chunks() {
            stream.run(|encoder| encoder.write(&chunk));
        }
        stream
    }

    /// What the records have in common.
    pub fn id(&self) -> &SliceId {
        &self.facts.id
    }

    /// Plaintext bytes so far.
    pub fn plain_len(&self) -> usize {
        self.facts.plain_len()
    }

    /// Bytes allocated besides the stream itself and its encoder's [`FrameEncoder::MEMORY`].
    pub fn held_bytes(&self) -> usize {
        self.stage.capacity() + self.encoder.stored_len() + self.facts.held_bytes()
    }

    /// Notes the resolved ts of the region at the time of a batch; the largest one is kept.
    pub fn note_resolved(&mut self, resolved_ts: Ts) {
        self.facts.note_resolved(resolved_ts);
    }

    /// Appends one record; on an error the slice is unchanged.
    pub fn append(&mut self, record: &KvRecord) -> Result<(), SliceBuildError> {
        let admitted = self.facts.admit(record)?;
        put_record(&record.key, &record.value, |part| self.put(part));
        self.facts.note(record, &admitted);
        Ok(())
    }

    fn put(&mut self, part: &[u8]) {
        if self.stage.len() + part.len() > STAGE {
            let stage = std::mem::take(&mut self.stage);
            self.run(|encoder| encoder.write(&stage));
            self.stage = stage;
            self.stage.clear();
        }
        match part.len() > STAGE {
            true => self.run(|encoder| encoder.write(part)),
            false => self.stage.extend_from_slice(part),
        }
    }

    fn run(&mut self, work: impl FnOnce(&mut FrameEncoder) -> Result<(), CompressError>) {
        if self.broken.is_none() {
            self.broken = work(&mut self.encoder).err();
        }
    }

    /// Ends the slice. The encoder comes back in any case.
    pub fn finish(mut self) -> (Result<EncodedSlice, SliceBuildError>, FrameEncoder) {
        let stage = std::mem::take(&mut self.stage);
        self.run(|encoder| encoder.write(&stage));
        let mut encoder = self.encoder;
        let result = match self.broken {
            Some(error) => Err(error.into()),
            None => encoder
                .finish()
                .map(|frame| EncodedSlice::new(self.facts, frame))
                .map_err(SliceBuildError::from),
        };
        (result, encoder)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::{SliceBuilder, verify_slice};
    use super::*;
    use crate::{Cf, EncodedKey, OpKind};

    fn record(n: u64, value: usize) -> KvRecord {
        KvRecord {
            cf: Cf::Default,
            op: OpKind::Put,
            key: EncodedKey::encode(&n.wrapping_mul(77).to_be_bytes())
                .at(Ts::new(n + 1))
                .into_bytes(),
            value: Bytes::from(vec![n as u8; value]),
        }
    }

    fn builder() -> SliceBuilder {
        SliceBuilder::new(SliceId {
            table_id: 1,
            region_id: 2,
            cf: Cf::Default,
            op: OpKind::Put,
            is_meta: false,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_slice_that_turned_into_a_stream_anywhere_tells_the_same_of_the_same_records(
            values in proptest::collection::vec(prop_oneof![0usize..300, 0usize..90_000], 1..40),
            turn in 0usize..40,
        ) {
            let records: Vec<_> = values.iter().enumerate()
                .map(|(n, value)| record(n as u64, *value)).collect();
            let (head, tail) = records.split_at(turn.min(records.len()));
            let (mut simple, mut turned) = (builder(), builder());
            for record in head {
                simple.append(record).unwrap();
                turned.append(record).unwrap();
            }
            let mut stream = turned.into_stream(FrameEncoder::new().unwrap());
            for record in tail {
                simple.append(record).unwrap();
                stream.append(record).unwrap();
                stream.note_resolved(Ts::new(7));
                simple.note_resolved(Ts::new(7));
            }
            prop_assert_eq!(stream.plain_len(), simple.plain_len());
            let simple = simple.seal().unwrap();
            let (streamed, mut encoder) = stream.finish();
            let streamed = streamed.unwrap();
            let stored = streamed.pieces.concat();
            prop_assert_eq!(streamed.info.range_length, stored.len() as u64);
            let plain = verify_slice(&streamed.info, &stored, 1 << 30).unwrap();
            prop_assert_eq!(plain, verify_slice(&simple.info, &simple.stored, 1 << 30).unwrap());
            let mut info = streamed.info;
            info.range_length = simple.info.range_length;
            prop_assert_eq!(info, simple.info);
            // The context is as good as new.
            let mut next = builder();
            next.append(&record(1, 5)).unwrap();
            let next = next.encode(&mut encoder).unwrap();
            verify_slice(&next.info, &next.pieces.concat(), 1 << 20).unwrap();
        }
    }

    #[test]
    fn memory_of_a_stream_is_what_compression_left_and_one_buffer() {
        let mut stream = builder().into_stream(FrameEncoder::new().unwrap());
        for n in 0..3000 {
            stream.append(&record(n, 1000)).unwrap();
        }
        assert!(stream.plain_len() > 3_000_000);
        assert!(stream.held_bytes() < 300_000, "{}", stream.held_bytes());
    }

    #[test]
    fn a_refused_record_leaves_the_stream_as_it_was() {
        let mut stream = builder().into_stream(FrameEncoder::new().unwrap());
        stream.append(&record(1, 10)).unwrap();
        let mut refused = record(2, 10);
        refused.cf = Cf::Write;
        stream.append(&refused).unwrap_err();
        let streamed = stream.finish().0.unwrap();
        let mut simple = builder();
        simple.append(&record(1, 10)).unwrap();
        assert_eq!(streamed.info.crc64xor, simple.seal().unwrap().info.crc64xor);
        assert_eq!(streamed.info.number_of_entries, 1);
    }
}
