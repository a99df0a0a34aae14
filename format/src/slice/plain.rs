//! The plaintext of a slice in chunks: small at first, so that ten thousand slices of a few records
//! cost little, and never copied when it grows.

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
    /// Appends one framed record, over the end of a chunk where it does not fit.
    #[inline]
    pub(super) fn push(&mut self, framed: &[u8]) {
        match self.chunks.last_mut() {
            Some(chunk) if framed.len() <= chunk.capacity() - chunk.len() => {
                chunk.extend_from_slice(framed);
            }
            _ => self.push_over(framed),
        }
    }

    #[cold]
    fn push_over(&mut self, mut framed: &[u8]) {
        while !framed.is_empty() {
            let room = match self.chunks.last_mut() {
                Some(chunk) => {
                    let room = framed.len().min(chunk.capacity() - chunk.len());
                    chunk.extend_from_slice(&framed[..room]);
                    room
                }
                None => 0,
            };
            framed = &framed[room..];
            if !framed.is_empty() {
                let size = self.held.clamp(FIRST_CHUNK, LAST_CHUNK);
                self.chunks.push(Vec::with_capacity(size));
                self.held += size;
            }
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
        plain.push(b"a framed record");
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
            plain.push(&[1; 100]);
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
                let at = stream.len();
                append_record(&mut stream, &key, &value).unwrap();
                plain.push(&stream[at..]);
            }
            let chunks: Vec<_> = plain.into_chunks().collect();
            prop_assert!(chunks.iter().all(|chunk| chunk.capacity() <= LAST_CHUNK));
            prop_assert_eq!(chunks.concat(), stream);
        }
    }
}
