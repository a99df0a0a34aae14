//! One slice, one zstd frame: no more, no less.
//!
//! TiKV's restore stops after the first frame of a slice, so a second one would be lost; its
//! decoder and BR's refuse windows above 2^27. The frame is therefore walked block by block
//! ([`FrameShape::read`]) before libzstd sees it: that proves where it ends, and bounds what it
//! can decode to, before anything is allocated. Format: RFC 8878 §3.1.1. Called by
//! [`crate::slice`].

use zstd::zstd_safe::{self, CParameter};

use crate::Class;

/// Level of every frame we write ("fastest" of TiKV's encoder).
pub(crate) const LEVEL: i32 = 1;
/// Largest window (log2) that stock readers accept.
const MAX_WINDOW_LOG: u32 = 27;
const FRAME_MAGIC: u32 = 0xFD2F_B528;
/// The low four bits of a skippable frame's magic are free.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// Most bytes that one block decodes to.
const MAX_BLOCK: u64 = 128 << 10;

/// Why bytes are not the one frame that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// libzstd failed.
    #[error("zstd: {0}")]
    Zstd(&'static str),
    /// Not the start of a frame.
    #[error("not a zstd frame: magic number {0:#010x}")]
    NotAFrame(u32),
    /// A skippable frame carries no data; readers stop behind it.
    #[error("a skippable zstd frame instead of a data frame")]
    Skippable,
    /// The bytes end inside the frame.
    #[error("zstd frame ends inside its {0}")]
    Truncated(&'static str),
    /// A header field that no writer of the format sets.
    #[error("zstd frame header: {0}")]
    Header(&'static str),
    /// The decoder would need a larger window than stock readers allow.
    #[error("zstd window of {0} bytes is above the limit of 2^{MAX_WINDOW_LOG}")]
    Window(u64),
    /// Bytes behind the frame: a second frame, or garbage.
    #[error("{0} bytes after the zstd frame, a slice is exactly one frame")]
    Trailing(usize),
    /// The frame decodes to another length than its metadata says.
    #[error("zstd frame does not decode to the {expected} bytes of its metadata")]
    Length {
        /// Length in the metadata.
        expected: u64,
    },
}

impl CompressError {
    /// Damaged bytes stay damaged.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

pub(crate) fn zstd_error(code: usize) -> CompressError {
    CompressError::Zstd(zstd_safe::get_error_name(code))
}

/// Compresses `plain` into exactly one frame without content size and checksum, as TiKV writes it.
pub fn compress(plain: &[u8]) -> Result<Vec<u8>, CompressError> {
    let mut context = zstd_safe::CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(LEVEL),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
    ] {
        context.set_parameter(parameter).map_err(zstd_error)?;
    }
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    context.compress2(&mut out, plain).map_err(zstd_error)?;
    out.shrink_to_fit();
    Ok(out)
}

/// Decompresses `stored`, which must be exactly one frame of exactly `expected_len` bytes. Allocates
/// at most `expected_len`, and never more than the frame's blocks can decode to.
pub fn decompress(stored: &[u8], expected_len: u64) -> Result<Vec<u8>, CompressError> {
    let length = CompressError::Length {
        expected: expected_len,
    };
    let shape = FrameShape::read(stored)?;
    if shape.len != stored.len() {
        return Err(CompressError::Trailing(stored.len() - shape.len));
    }
    if expected_len > shape.max_plain {
        return Err(length);
    }
    let Ok(capacity) = usize::try_from(expected_len) else {
        return Err(length);
    };
    let mut context = zstd_safe::DCtx::create();
    // The vector's capacity may be larger than asked for, so its length is compared as well.
    let mut out = Vec::with_capacity(capacity);
    match context.decompress(&mut out, stored) {
        Ok(written) if written as u64 == expected_len => Ok(out),
        Ok(_) => Err(length),
        Err(code) => match zstd_error(code) {
            CompressError::Zstd("Destination buffer is too small") => Err(length),
            other => Err(other),
        },
    }
}

/// What the headers of a frame say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameShape {
    /// Bytes from the magic number to the last block or checksum.
    len: usize,
    /// Most bytes that the blocks can decode to.
    max_plain: u64,
}

impl FrameShape {
    fn read(stored: &[u8]) -> Result<Self, CompressError> {
        let mut cursor = Cursor(stored);
        let magic = cursor.number(4, "magic number")? as u32;
        match magic {
            FRAME_MAGIC => {}
            m if m & 0xFFFF_FFF0 == SKIPPABLE_MAGIC => return Err(CompressError::Skippable),
            other => return Err(CompressError::NotAFrame(other)),
        }
        let descriptor = cursor.number(1, "descriptor")?;
        if descriptor & 0b1000 != 0 {
            return Err(CompressError::Header("reserved bit is set"));
        }
        if descriptor & 0b11 != 0 {
            return Err(CompressError::Header("asks for a dictionary"));
        }
        let single_segment = descriptor & 0b10_0000 != 0;
        let window_byte = match single_segment {
            true => None,
            false => Some(cursor.number(1, "window descriptor")?),
        };
        let content_size = match (descriptor >> 6, single_segment) {
            (0, false) => None,
            (0, true) => Some(cursor.number(1, "content size")?),
            (1, _) => Some(cursor.number(2, "content size")? + 256),
            (2, _) => Some(cursor.number(4, "content size")?),
            _ => Some(cursor.number(8, "content size")?),
        };
        let window = match window_byte {
            Some(byte) => {
                let base = 1u64 << (10 + (byte >> 3));
                base + base / 8 * (byte & 7)
            }
            None => content_size.unwrap_or_default(),
        };
        if window > 1 << MAX_WINDOW_LOG {
            return Err(CompressError::Window(window));
        }
        let max_plain = cursor.blocks(window.min(MAX_BLOCK))?;
        if descriptor & 0b100 != 0 {
            cursor.take(4, "checksum")?;
        }
        Ok(FrameShape {
            len: stored.len() - cursor.0.len(),
            max_plain,
        })
    }
}

/// The bytes of the frame that are still to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], CompressError> {
        let (head, tail) = self
            .0
            .split_at_checked(len)
            .ok_or(CompressError::Truncated(what))?;
        self.0 = tail;
        Ok(head)
    }

    /// A little-endian number of at most 8 bytes.
    fn number(&mut self, len: usize, what: &'static str) -> Result<u64, CompressError> {
        let bytes = self.take(len, what)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Walks all blocks; the most bytes that they can decode to.
    fn blocks(&mut self, max_block: u64) -> Result<u64, CompressError> {
        let mut max_plain = 0u64;
        loop {
            let header = self.number(3, "block header")?;
            let (last, kind, size) = (header & 1 == 1, header >> 1 & 3, header >> 3);
            let (stored, plain) = match kind {
                0 => (size, size),
                1 => (1, size),
                2 => (size, max_block),
                _ => return Err(CompressError::Header("reserved block type")),
            };
            self.take(stored as usize, "block")?;
            max_plain += plain;
            if last {
                return Ok(max_plain);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(plain: &[u8]) -> Vec<u8> {
        compress(plain).unwrap()
    }

    fn mixed(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i / 7) as u8).collect()
    }

    /// Magic, no single segment, the given window byte, then raw blocks.
    fn hand_made(window: u8, blocks: &[u8]) -> Vec<u8> {
        let mut out = vec![0x28, 0xB5, 0x2F, 0xFD, 0, window];
        out.extend(blocks);
        out
    }

    #[test]
    fn frames_of_all_sizes_decode_to_what_was_compressed() {
        for len in [0, 1, 255, 256, 65_791, 131_072, 131_073, 3 << 20] {
            let plain = mixed(len);
            let stored = frame(&plain);
            assert_eq!(decompress(&stored, len as u64).unwrap(), plain);
        }
    }

    #[test]
    fn a_frame_carries_neither_content_size_nor_checksum_nor_dictionary() {
        for len in [0, 100, 1 << 20] {
            let stored = frame(&mixed(len));
            assert_eq!(stored[4], 0, "frame header descriptor");
        }
    }

    #[test]
    fn frames_of_streaming_and_checksummed_encoders_are_accepted() {
        let plain = mixed(300_000);
        let streamed = zstd::stream::encode_all(&plain[..], 3).unwrap();
        assert_eq!(decompress(&streamed, 300_000).unwrap(), plain);
        let mut encoder = zstd::bulk::Compressor::new(1).unwrap();
        encoder
            .set_parameter(CParameter::ChecksumFlag(true))
            .unwrap();
        let stored = encoder.compress(&plain).unwrap();
        assert_eq!(decompress(&stored, 300_000).unwrap(), plain);
        let mut damaged = stored.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(decompress(&damaged, 300_000).is_err());
    }

    #[test]
    fn anything_but_exactly_one_frame_is_refused() {
        let one = frame(b"hello");
        let twice = [one.clone(), one.clone()].concat();
        assert_eq!(
            decompress(&twice, 10).unwrap_err(),
            CompressError::Trailing(one.len())
        );
        let trailing = [&one[..], &[0]].concat();
        assert_eq!(
            decompress(&trailing, 5).unwrap_err(),
            CompressError::Trailing(1)
        );
        let skippable = [0x5A, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 7];
        assert_eq!(
            decompress(&skippable, 0).unwrap_err(),
            CompressError::Skippable
        );
        let before = [&skippable[..], &one].concat();
        assert_eq!(
            decompress(&before, 5).unwrap_err(),
            CompressError::Skippable
        );
        let behind = [&one[..], &skippable].concat();
        assert_eq!(
            decompress(&behind, 5).unwrap_err(),
            CompressError::Trailing(9)
        );
        assert_eq!(
            decompress(b"", 0).unwrap_err(),
            CompressError::Truncated("magic number")
        );
        assert!(matches!(
            decompress(b"hello", 5),
            Err(CompressError::NotAFrame(_))
        ));
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        let stored = frame(&mixed(1000));
        for cut in 0..stored.len() {
            assert!(decompress(&stored[..cut], 1000).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_of_another_length_than_expected_is_refused_in_both_directions() {
        let stored = frame(&mixed(1000));
        for wrong in [0, 999, 1001, 1 << 17, u64::MAX] {
            assert_eq!(
                decompress(&stored, wrong).unwrap_err(),
                CompressError::Length { expected: wrong }
            );
        }
    }

    #[test]
    fn windows_above_the_limit_of_stock_readers_are_refused() {
        let raw = [0x09, 0, 0, b'x'];
        let window_of = |log: u8, eighths: u8| (log - 10) << 3 | eighths;
        assert_eq!(
            decompress(&hand_made(window_of(27, 0), &raw), 1).unwrap(),
            b"x"
        );
        for (log, eighths) in [(27, 1), (28, 0), (41, 7)] {
            let refused = decompress(&hand_made(window_of(log, eighths), &raw), 1);
            assert!(matches!(refused, Err(CompressError::Window(_))));
        }
        // Single segment: the content size is the window.
        let mut single = vec![0x28, 0xB5, 0x2F, 0xFD, 0b1110_0000];
        single.extend(((1u64 << 27) + 1).to_le_bytes());
        single.extend(raw);
        assert!(matches!(
            decompress(&single, 1),
            Err(CompressError::Window(_))
        ));
    }

    #[test]
    fn dictionaries_reserved_bits_and_reserved_blocks_are_refused() {
        for descriptor in [0b1u8, 0b10, 0b11, 0b1000] {
            let mut bytes = hand_made(0, &[1, 0, 0]);
            bytes[4] = descriptor;
            assert!(matches!(
                decompress(&bytes, 0),
                Err(CompressError::Header(_))
            ));
        }
        let reserved = hand_made(0, &[0b111, 0, 0]);
        assert!(matches!(
            decompress(&reserved, 0),
            Err(CompressError::Header(_))
        ));
    }

    /// 4 bytes that decode to 128 KiB each: the worst ratio the format has.
    #[test]
    fn a_bomb_is_refused_before_its_output_is_allocated() {
        let rle = |last: u32| (last | 1 << 1 | (128 << 10) << 3).to_le_bytes();
        let mut blocks = Vec::new();
        for i in 0..1000u32 {
            blocks.extend(&rle(u32::from(i == 999))[..3]);
            blocks.push(0);
        }
        let bomb = hand_made(7 << 3, &blocks);
        let max_plain = FrameShape::read(&bomb).unwrap().max_plain;
        assert_eq!(max_plain, 1000 << 17);
        for expected in [10, max_plain + 1] {
            assert_eq!(
                decompress(&bomb, expected).unwrap_err(),
                CompressError::Length { expected }
            );
        }
        assert_eq!(
            decompress(&bomb, max_plain).unwrap().len() as u64,
            max_plain
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_bytes_make_the_decoder_panic_or_return_another_length(
            tail in any::<Vec<u8>>(), with_magic in any::<bool>(), expected in 0..300u64,
        ) {
            let mut stored = if with_magic { FRAME_MAGIC.to_le_bytes().to_vec() } else { vec![] };
            stored.extend(tail);
            if let Ok(plain) = decompress(&stored, expected) {
                prop_assert_eq!(plain.len() as u64, expected);
            }
        }

        #[test]
        fn the_walked_shape_agrees_with_libzstd(plain in any::<Vec<u8>>(), level in 1..10i32) {
            let stored = zstd::bulk::compress(&plain, level).unwrap();
            let shape = FrameShape::read(&stored).unwrap();
            prop_assert_eq!(shape.len, zstd_safe::find_frame_compressed_size(&stored).unwrap());
            prop_assert!(shape.max_plain >= plain.len() as u64);
            prop_assert_eq!(decompress(&stored, plain.len() as u64).unwrap(), plain);
        }
    }
}
