//! The bytes of an object that is to be written: pieces in memory and pieces of temp files, in
//! order, so that an object which was spilled to disk is never held in memory as a whole.
//!
//! Invariants: the length is known before the first byte is read; a payload can be read as often as
//! a retry needs; a file segment is read by position (`pread`), so several readers share one handle;
//! it is read in pieces of at most [`MAX_PIECE`] bytes. Made by the observer's upload and by
//! everyone who writes small objects (`Bytes` turns into a payload without a copy), read by the
//! backends on blocking threads.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// No read of a file segment is larger, nor is any piece that [`Payload::pieces`] gives out.
pub const MAX_PIECE: u64 = 1 << 20;

/// At most this many bytes of file segments are in memory at once, per object under way.
pub const MAX_BUFFERED: u64 = 16 << 20;

/// A run of bytes of an object.
#[derive(Clone)]
pub enum Segment {
    /// Bytes that are in memory already.
    Memory(Bytes),
    /// Bytes of a file that does not change while the payload lives.
    File {
        /// The open file; shared, read by position.
        file: Arc<File>,
        /// First byte and the one after the last.
        range: Range<u64>,
    },
}

impl Segment {
    /// Bytes in this segment; a reversed range has none.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { range, .. } => range.end.saturating_sub(range.start),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of it at `within`, which lies inside of it; a file's part is read.
    fn read(&self, within: Range<u64>) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(within.start as usize..within.end as usize)),
            Self::File { file, range } => {
                let mut buffer = BytesMut::zeroed((within.end - within.start) as usize);
                file.read_exact_at(&mut buffer, range.start + within.start)?;
                Ok(buffer.freeze())
            }
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(f, "memory({} bytes)", bytes.len()),
            Self::File { range, .. } => write!(f, "file({range:?})"),
        }
    }
}

/// Whether a write may still take effect.
#[derive(Clone)]
struct Permit(Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("permit")
    }
}

/// The bytes of an object, in order. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    segments: Arc<[Segment]>,
    len: u64,
    permit: Option<Permit>,
}

impl Payload {
    /// Joins segments, in order.
    pub fn new(segments: Vec<Segment>) -> Self {
        let len = segments.iter().map(Segment::len).sum();
        Self {
            segments: segments.into(),
            len,
            permit: None,
        }
    }

    /// The object may appear only while `permitted` says so. A backend asks at the last moment,
    /// when all bytes are where they belong and one step makes them the object: what was permitted
    /// when a write began need not be when it ends.
    pub fn only_while(self, permitted: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            permit: Some(Permit(Arc::new(permitted))),
            ..self
        }
    }

    /// To be asked right before the step that makes the object visible.
    pub(crate) fn check_permit(&self) -> io::Result<()> {
        match &self.permit {
            Some(Permit(permitted)) if !permitted() => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the time in which this write was permitted is over",
            )),
            _ => Ok(()),
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the object will be empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What a `put` of it allocates at most, in bytes, beside the segments that are in memory
    /// already: to be reserved by the caller before it calls.
    pub fn memory(&self) -> u64 {
        self.file_bytes().min(MAX_BUFFERED)
    }

    /// Bytes that lie in files.
    pub fn file_bytes(&self) -> u64 {
        let files = self.segments.iter();
        files
            .filter(|segment| matches!(segment, Segment::File { .. }))
            .map(Segment::len)
            .sum()
    }

    /// The bytes of `range`, cut at the end of the payload, one piece after the other; each has
    /// at most [`MAX_PIECE`] bytes. Memory is not copied. Blocks where it reads a file.
    pub fn pieces(&self, range: Range<u64>) -> Pieces<'_> {
        Pieces {
            segments: &self.segments,
            begin: 0,
            next: range.start,
            end: range.end.min(self.len),
        }
    }

    /// The whole object in one buffer: for backends that keep it in memory anyway. Blocks where
    /// it reads a file.
    pub fn collect(&self) -> io::Result<Bytes> {
        if let [Segment::Memory(only)] = &self.segments[..] {
            return Ok(only.clone());
        }
        let mut all = BytesMut::with_capacity(self.len as usize);
        for piece in self.pieces(0..self.len) {
            all.extend_from_slice(&piece?);
        }
        Ok(all.freeze())
    }
}

/// See [`Payload::pieces`].
pub struct Pieces<'a> {
    segments: &'a [Segment],
    /// Where the first of `segments` begins in the payload.
    begin: u64,
    next: u64,
    end: u64,
}

impl Iterator for Pieces<'_> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let segment = loop {
            let (first, rest) = self.segments.split_first()?;
            if self.next < self.begin + first.len() {
                break first;
            }
            self.begin += first.len();
            self.segments = rest;
        };
        let stop = (self.begin + segment.len())
            .min(self.end)
            .min(self.next + MAX_PIECE);
        let piece = segment.read(self.next - self.begin..stop - self.begin);
        // After an error there is nothing more to give.
        self.next = if piece.is_ok() { stop } else { self.end };
        Some(piece)
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::new(vec![Segment::Memory(bytes)])
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl From<&'static str> for Payload {
    fn from(text: &'static str) -> Self {
        text.as_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file_of(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn joined(payload: &Payload, range: Range<u64>) -> Vec<u8> {
        let pieces: io::Result<Vec<_>> = payload.pieces(range).collect();
        pieces.unwrap().concat()
    }

    #[test]
    fn memory_and_files_are_read_in_the_order_given() {
        let file = file_of(b"..files..");
        let payload = Payload::new(vec![
            Segment::Memory(Bytes::from_static(b"one ")),
            Segment::File {
                file: Arc::clone(&file),
                range: 2..7,
            },
            Segment::Memory(Bytes::new()),
            Segment::File { file, range: 3..3 },
            Segment::Memory(Bytes::from_static(b" end")),
        ]);
        assert_eq!((payload.len(), payload.file_bytes()), (13, 5));
        assert_eq!(payload.collect().unwrap(), "one files end");
        assert_eq!(payload.collect().unwrap(), "one files end", "read again");
        assert_eq!(joined(&payload, 2..6), b"e fi");
    }

    #[test]
    fn pieces_are_bounded_and_memory_is_not_copied() {
        let bytes = Bytes::from(vec![7; (MAX_PIECE * 2 + 3) as usize]);
        let payload = Payload::new(vec![
            Segment::Memory(bytes.clone()),
            Segment::File {
                file: file_of(&bytes),
                range: 0..bytes.len() as u64,
            },
        ]);
        let pieces: Vec<_> = payload
            .pieces(0..u64::MAX)
            .map(|piece| piece.unwrap())
            .collect();
        let sizes: Vec<_> = pieces.iter().map(|piece| piece.len() as u64).collect();
        assert_eq!(sizes, [MAX_PIECE, MAX_PIECE, 3, MAX_PIECE, MAX_PIECE, 3]);
        assert_eq!(pieces[1].as_ptr(), bytes[MAX_PIECE as usize..].as_ptr());
        assert_eq!(payload.memory(), MAX_PIECE * 2 + 3);
        assert_eq!(Payload::from(bytes).memory(), 0);
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error_and_not_a_shorter_object() {
        let payload = Payload::new(vec![
            Segment::File {
                file: file_of(b"short"),
                range: 0..9,
            },
            Segment::Memory(Bytes::from_static(b"rest")),
        ]);
        let error = payload.collect().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(payload.pieces(0..13).count(), 1, "nothing after the error");
    }

    proptest! {
        #[test]
        fn any_range_of_any_payload_is_that_range_of_the_whole(
            parts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
            start in 0u64..150,
            len in 0u64..150,
        ) {
            let whole: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            let payload = Payload::new(parts.into_iter().map(|(on_disk, bytes)| if on_disk {
                Segment::File { range: 0..bytes.len() as u64, file: file_of(&bytes) }
            } else {
                Segment::Memory(bytes.into())
            }).collect());
            prop_assert_eq!(payload.collect().unwrap(), &whole);
            let expected: Vec<u8> = whole.iter().copied().skip(start as usize).take(len as usize).collect();
            prop_assert_eq!(joined(&payload, start..start + len), expected);
        }
    }
}
