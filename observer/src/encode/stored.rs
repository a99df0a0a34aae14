//! A slice on its way: closed, then stored in memory or in a temporary file.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::Reservation;
use pitr_budget::spill::{Extent, SpillError, SpillFile};
use pitr_format::slice::{EncodedSlice, SliceBuildError, SliceBuilder, SliceId};
use pitr_proto::backup::DataFileInfo;

use super::tools::Tools;

/// What the metadata of one stored slice takes in memory, until its generation is durable: the
/// description in the slice and again in the meta, keys, and the bookkeeping around it.
const FACTS_BYTES: u64 = 1536;

/// A slice that gets no more records.
pub(crate) struct Closed {
    pub slice: SliceBuilder,
    /// For everything that the slice holds.
    pub held: Option<Reservation>,
}

impl Closed {
    /// Compresses the slice and keeps it in memory.
    pub fn store(self, tools: &mut Tools) -> Result<StoredSlice, SliceBuildError> {
        let encoded = tools.encode(self.slice)?;
        Ok(StoredSlice::new(encoded, self.held))
    }
}

/// A finished slice of a generation: its metadata and where its bytes are.
pub struct StoredSlice {
    /// What the records have in common.
    pub id: SliceId,
    /// All fields that are known before the slice is merged into an object, see
    /// [`EncodedSlice::info`].
    pub info: DataFileInfo,
    pub(crate) body: Arc<Body>,
    /// For id and info.
    _facts: Option<Reservation>,
}

impl StoredSlice {
    /// Keeps `encoded` in memory; `held` shrinks to what that takes.
    fn new(encoded: EncodedSlice, mut held: Option<Reservation>) -> Self {
        let EncodedSlice { id, info, pieces } = encoded;
        let facts = held.as_mut().map(|held| {
            held.shrink_to(info.range_length + FACTS_BYTES);
            held.split(FACTS_BYTES)
        });
        StoredSlice {
            id,
            body: Arc::new(Body {
                len: info.range_length,
                place: Mutex::new(Place::Memory(Arc::new(Pieces {
                    pieces,
                    _held: held,
                }))),
            }),
            info,
            _facts: facts,
        }
    }
}

/// The stored bytes of a slice, wherever they are.
pub(crate) struct Body {
    len: u64,
    place: Mutex<Place>,
}

#[derive(Clone)]
pub(crate) enum Place {
    Memory(Arc<Pieces>),
    Disk(Extent),
}

/// Stored bytes in memory. Clones are counted by their `Arc`, so that nothing is called free that
/// an upload still reads.
pub(crate) struct Pieces {
    pub pieces: Vec<Bytes>,
    _held: Option<Reservation>,
}

impl Body {
    /// Where the bytes are now. What is returned stays readable for as long as it is kept.
    pub fn place(&self) -> Place {
        self.place.lock().clone()
    }

    /// Moves the bytes to the end of `file`, unless they are on disk or being uploaded. Returns
    /// how many bytes left the memory.
    pub fn spill(&self, file: &mut SpillFile) -> Result<u64, SpillError> {
        let Place::Memory(pieces) = self.place() else {
            return Ok(0);
        };
        // The place and this function.
        if Arc::strong_count(&pieces) > 2 {
            return Ok(0);
        }
        let parts = pieces.pieces.iter().map(|piece| &piece[..]);
        let extent = file.append_parts(parts)?;
        *self.place.lock() = Place::Disk(extent);
        Ok(self.len)
    }

    /// Whether the bytes are in memory.
    pub fn in_memory(&self) -> bool {
        matches!(*self.place.lock(), Place::Memory(_))
    }
}
