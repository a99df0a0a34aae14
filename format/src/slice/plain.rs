//! The plaintext of a slice in chunks: small at first, so that ten thousand slices of a few records
//! cost little, and never copied when it grows.

use crate::record::put_record;

/// Size of the first chunk. Each further one is as large as all before it together, up to
/// [`LAST_CHUNK`].
const FIRST_CHUNK: usize = 1 << 10;
/// Size of all chunks of a large slice.
const LAST_CHUNK: usize = 64 << 10;

/// Framed records.
#[derive(Default)]
pub(super) struct PlainBuffer {
    chunks: Vec<Vec<u8>>,
    held: usize,
}

impl PlainBuffer {
    /// Appends one record, over the end of a chunk where it does not fit.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        put_record(key, value, |part| self.put(part));
    }

    fn put(&mut self, mut part: &[u8]) {
        loop {
            if let Some(chunk) = self.chunks.last_mut() {
                let room = chunk.capacity() - chunk.len();
                if part.len() <= room {
                    chunk.extend_from_slice(part);
                    return;
                }
                let (fits, rest) = part.split_at(room);
                chunk.extend_from_slice(fits);
                part = rest;
            }
            let size = self.held.clamp(FIRST_CHUNK, LAST_CHUNK);
            self.chunks.push(Vec::with_capacity(size));
            self.held += size;
        }
    }

    /// Bytes allocated.
    pub(super) fn held_bytes(&self) -> usize {
        self.held + self.chunks.capacity() * size_of::<Vec<u8>>()
    }

    /// The chunks in order; taking one frees those before it.
    pub(super) fn into_chunks(self) -> impl Iterator<Item = Vec<u8>> {
        self.chunks.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::append_record;

    #[test]
    fn a_slice_of_one_small_record_holds_one_small_chunk() {
        let mut plain = PlainBuffer::default();
        assert_eq!(plain.held_bytes(), 0);
        plain.push(b"key", b"value");
        assert!(
            plain.held_bytes() < FIRST_CHUNK + 128,
            "{}",
            plain.held_bytes()
        );
    }

    #[test]
    fn what_is_held_is_at_most_twice_the_records_and_a_chunk_more_when_large() {
        let mut plain = PlainBuffer::default();
        let mut len = 0;
        for _ in 0..4000 {
            plain.push(&[1; 30], &[2; 62]);
            len += 100;
            let bound = (2 * len).min(len + LAST_CHUNK) + FIRST_CHUNK + 2048;
            assert!(plain.held_bytes() <= bound, "{len}: {}", plain.held_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_chunks_joined_are_the_record_stream(
            lens in proptest::collection::vec((0usize..200, 0usize..5_000), 0..200),
            large in 0usize..300_000,
        ) {
            let (mut plain, mut stream) = (PlainBuffer::default(), Vec::new());
            for (n, (key, value)) in lens.into_iter().chain([(5, large), (1, 1)]).enumerate() {
                let (key, value) = (vec![n as u8; key], vec![!n as u8; value]);
                plain.push(&key, &value);
                append_record(&mut stream, &key, &value).unwrap();
            }
            let chunks: Vec<_> = plain.into_chunks().collect();
            prop_assert!(chunks.iter().all(|chunk| chunk.capacity() <= LAST_CHUNK));
            prop_assert_eq!(chunks.concat(), stream);
        }
    }
}
