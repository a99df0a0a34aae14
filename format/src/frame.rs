//! Writing frames with one zstd context after another's work, at once or piece by piece: the writer
//! behind every slice.
//!
//! A context costs about 1.4 MB, so it is made once and used for many frames; who owns how many is
//! up to the observer. The plaintext is hashed on its way in, while it is in cache. Output comes as
//! pieces of exactly their size, so that what is kept is what is counted.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, compress_bound};

use crate::compress::{CompressError, LEVEL, zstd_error};

/// Size of the output buffer, and so of all pieces of a frame but the last, if it was written in
/// parts.
pub const FRAME_PIECE: usize = 128 << 10;
/// Longest plaintext that is compressed at once.
pub const AT_ONCE: usize = (1 << 20) + (64 << 10);

/// A frame that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// SHA-256 of the plaintext.
    pub sha256: [u8; 32],
    /// The frame's bytes, in order.
    pub pieces: Vec<Bytes>,
}

/// Buffers for plaintext that is compressed at once: then libzstd neither copies it nor looks for
/// matches across the ends of a ring buffer. Good for any number of frames.
pub struct Scratch {
    plain: Vec<u8>,
    out: Vec<u8>,
}

impl Scratch {
    /// What one holds, in bytes.
    pub const MEMORY: usize = 2 * AT_ONCE + AT_ONCE / 128;

    /// Empty buffers.
    pub fn new() -> Self {
        Scratch {
            plain: Vec::with_capacity(AT_ONCE),
            out: Vec::with_capacity(compress_bound(AT_ONCE)),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes one frame after the other, each without content size and checksum, as TiKV writes it.
pub struct FrameEncoder {
    context: CCtx<'static>,
    sha256: Sha256,
    out: Vec<u8>,
    pieces: Vec<Bytes>,
}

impl FrameEncoder {
    /// What one holds between frames and at most while it writes one, besides the pieces, in
    /// bytes; checked by a test against what libzstd says.
    pub const MEMORY: usize = (1400 << 10) + FRAME_PIECE;

    /// A context of the level that all frames are written with.
    pub fn new() -> Result<Self, CompressError> {
        let mut context = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(LEVEL),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ] {
            context.set_parameter(parameter).map_err(zstd_error)?;
        }
        Ok(FrameEncoder {
            context,
            sha256: Sha256::new(),
            out: Vec::with_capacity(FRAME_PIECE),
            pieces: Vec::new(),
        })
    }

    /// Begins a frame of exactly `plain_len` bytes; one that was not finished is forgotten.
    pub fn begin(&mut self, plain_len: u64) -> Result<(), CompressError> {
        self.sha256 = Sha256::new();
        self.out.clear();
        self.pieces.clear();
        let reset = self.context.reset(ResetDirective::SessionOnly);
        reset.map_err(zstd_error)?;
        let pledge = self.context.set_pledged_src_size(Some(plain_len));
        pledge.map(drop).map_err(zstd_error)
    }

    /// Adds plaintext to the frame.
    pub fn write(&mut self, plain: &[u8]) -> Result<(), CompressError> {
        self.sha256.update(plain);
        let mut input = InBuffer::around(plain);
        while input.pos < plain.len() {
            self.step(|context, out| context.compress_stream(out, &mut input))?;
        }
        Ok(())
    }

    /// One frame of at most [`AT_ONCE`] bytes in `chunks`, which are freed one by one.
    pub fn frame_at_once(
        &mut self,
        scratch: &mut Scratch,
        chunks: impl Iterator<Item = Vec<u8>>,
    ) -> Result<Frame, CompressError> {
        let Scratch { plain, out } = scratch;
        plain.clear();
        chunks.for_each(|chunk| plain.extend_from_slice(&chunk));
        out.clear();
        out.reserve(compress_bound(plain.len()));
        let reset = self.context.reset(ResetDirective::SessionOnly);
        reset.map_err(zstd_error)?;
        self.context.compress2(out, plain).map_err(zstd_error)?;
        Ok(Frame {
            sha256: Sha256::digest(&plain).into(),
            pieces: vec![Bytes::copy_from_slice(out)],
        })
    }

    /// Ends the frame.
    pub fn finish(&mut self) -> Result<Frame, CompressError> {
        while self.step(|context, out| context.end_stream(out))? > 0 {}
        self.cut();
        Ok(Frame {
            sha256: self.sha256.finalize_reset().into(),
            pieces: std::mem::take(&mut self.pieces),
        })
    }

    /// Lets libzstd write into what is left of the output buffer.
    fn step(
        &mut self,
        work: impl FnOnce(
            &mut CCtx<'static>,
            &mut OutBuffer<'_, Vec<u8>>,
        ) -> zstd::zstd_safe::SafeResult,
    ) -> Result<usize, CompressError> {
        let written = self.out.len();
        let mut out = OutBuffer::around_pos(&mut self.out, written);
        let left = work(&mut self.context, &mut out).map_err(zstd_error)?;
        if self.out.len() == self.out.capacity() {
            self.cut();
        }
        Ok(left)
    }

    /// Makes a piece of what is in the output buffer.
    fn cut(&mut self) {
        if !self.out.is_empty() {
            self.pieces.push(Bytes::copy_from_slice(&self.out));
            self.out.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::compress::{compress, decompress};

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn frames_of_one_context_do_not_depend_on_those_before() {
        let mut encoder = FrameEncoder::new().unwrap();
        let long = noise(3 * FRAME_PIECE);
        encoder.begin(5000).unwrap();
        encoder.write(&long[..1000]).unwrap();
        for plain in [&b""[..], b"short", &long, b"short"] {
            encoder.begin(plain.len() as u64).unwrap();
            encoder.write(plain).unwrap();
            let frame = encoder.finish().unwrap();
            assert_eq!(frame.sha256[..], Sha256::digest(plain)[..]);
            let (last, full) = frame.pieces.split_last().unwrap();
            assert!(full.iter().all(|piece| piece.len() == FRAME_PIECE));
            assert!(!last.is_empty());
            let stored = frame.pieces.concat();
            assert_eq!(decompress(&stored, plain.len() as u64).unwrap(), plain);
        }
    }

    #[test]
    fn a_frame_written_at_once_is_the_same_as_of_libzstd_alone_and_holds_no_more_than_is_said() {
        let mut encoder = FrameEncoder::new().unwrap();
        let mut scratch = Scratch::new();
        let (noise, text) = (noise(AT_ONCE), vec![b'x'; AT_ONCE]);
        for len in [0, 1, 70_000, AT_ONCE] {
            for plain in [&noise[..len], &text[..len]] {
                // What was begun before is forgotten.
                encoder.begin(7).unwrap();
                encoder.write(b"left").unwrap();
                let chunks = plain.chunks(64 << 10).map(<[u8]>::to_vec);
                let frame = encoder.frame_at_once(&mut scratch, chunks).unwrap();
                assert_eq!(frame.sha256[..], Sha256::digest(plain)[..]);
                assert_eq!(frame.pieces.concat(), compress(plain).unwrap());
                let holds = scratch.plain.capacity() + scratch.out.capacity();
                assert!(holds <= Scratch::MEMORY, "{holds}");
                let holds = encoder.context.sizeof() + encoder.out.capacity();
                assert!(holds <= FrameEncoder::MEMORY, "{holds}");
            }
        }
    }

    #[test]
    fn a_frame_of_a_known_length_is_about_as_small_as_one_compressed_at_once() {
        let plain: Vec<u8> = (0..20_000u32)
            .flat_map(|n| format!("row {n} of table t, ").into_bytes())
            .collect();
        let mut encoder = FrameEncoder::new().unwrap();
        for len in [2_000, 60_000, plain.len()] {
            let plain = &plain[..len];
            encoder.begin(len as u64).unwrap();
            for chunk in plain.chunks(777) {
                encoder.write(chunk).unwrap();
            }
            let stored = encoder.finish().unwrap().pieces.concat().len();
            let at_once = compress(plain).unwrap().len();
            assert!(stored <= at_once + at_once / 20 + 16, "{stored} {at_once}");
        }
    }

    #[test]
    fn a_pledge_that_is_not_kept_is_an_error_and_the_next_frame_is_good() {
        let mut encoder = FrameEncoder::new().unwrap();
        encoder.begin(10).unwrap();
        let kept = encoder.write(b"short").and_then(|()| encoder.finish());
        assert!(kept.is_err());
        encoder.begin(5).unwrap();
        encoder.write(b"short").unwrap();
        let stored = encoder.finish().unwrap().pieces.concat();
        assert_eq!(decompress(&stored, 5).unwrap(), b"short");
    }

    #[test]
    fn a_context_holds_no_more_than_is_said() {
        let mut encoder = FrameEncoder::new().unwrap();
        let plain = noise(4 << 20);
        for _ in 0..3 {
            encoder.begin(plain.len() as u64).unwrap();
            encoder.write(&plain).unwrap();
            encoder.finish().unwrap();
            let holds = encoder.context.sizeof() + encoder.out.capacity();
            assert!(holds <= FrameEncoder::MEMORY, "{holds}");
            assert!(holds > FrameEncoder::MEMORY / 3, "{holds} is far less");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_plaintext_in_any_pieces_comes_back(
            parts in proptest::collection::vec((0usize..70_000, any::<bool>()), 0..8),
        ) {
            let random = noise(70_000);
            let parts: Vec<Vec<u8>> = parts.into_iter()
                .map(|(len, noisy)| if noisy { random[..len].to_vec() } else { vec![7; len] })
                .collect();
            let plain = parts.concat();
            let mut encoder = FrameEncoder::new().unwrap();
            encoder.begin(plain.len() as u64).unwrap();
            for part in &parts {
                encoder.write(part).unwrap();
            }
            let frame = encoder.finish().unwrap();
            let stored = frame.pieces.concat();
            prop_assert_eq!(decompress(&stored, plain.len() as u64).unwrap(), plain);
        }
    }
}
