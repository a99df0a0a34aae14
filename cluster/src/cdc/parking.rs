//! Queued records on disk.
//!
//! Small batches are collected into one extent; until it is full it stays in memory, so at most
//! [`EXTENT`] bytes and one batch of the queue are not on disk. A batch that does not fit any
//! more is refused and stays with the caller. Used by [`super::queue`], under its lock.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::spill::{Extent, SpillDir, SpillError, SpillFile};
use pitr_format::RecordBatch;

/// Records go to disk in extents of about this size.
const EXTENT: usize = 64 << 10;
/// A file takes no more extents from here on, so that what was read frees its disk space.
const FILE: u64 = 64 << 20;

/// Where batches go.
pub(super) struct Parking {
    dir: Option<Arc<SpillDir>>,
    file: Option<SpillFile>,
    open: Arc<Lot>,
}

/// Batches that share an extent.
struct Lot(Mutex<Place>);

enum Place {
    /// Not full yet.
    Open(Vec<u8>),
    Disk(Extent),
    /// Read back, for the batches that are still to come.
    Read(Bytes),
}

/// One batch on disk.
pub(super) struct Parked {
    lot: Arc<Lot>,
    range: Range<usize>,
}

/// Bytes that came back are not those that were written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParkingError {
    #[error(transparent)]
    Spill(#[from] SpillError),
    #[error("a batch in a temporary file is cut")]
    Cut,
}

impl Parking {
    pub fn new(dir: Option<Arc<SpillDir>>) -> Self {
        Parking {
            dir,
            file: None,
            open: Lot::open(),
        }
    }

    /// Takes a copy of the records; `None` if it cannot.
    pub fn park(&mut self, records: &RecordBatch) -> Option<Parked> {
        self.dir.as_ref()?;
        let full = |place: &Place| match place {
            Place::Open(bytes) => bytes.len() >= EXTENT,
            Place::Disk(_) | Place::Read(_) => true,
        };
        // One that could not be written stays in memory, is tried again, and nothing joins it.
        if full(&self.open.0.lock()) {
            if let Err(error) = self.write() {
                tracing::debug!(%error, "no room on disk for queued changes");
                return None;
            }
            self.open = Lot::open();
        }
        let lot = self.open.clone();
        let mut place = lot.0.lock();
        let Place::Open(bytes) = &mut *place else {
            return None;
        };
        let start = bytes.len();
        encode(records, bytes);
        let range = start..bytes.len();
        let full = bytes.len() >= EXTENT;
        drop(place);
        if full && self.write().is_ok() {
            self.open = Lot::open();
        }
        Some(Parked { lot, range })
    }

    /// Writes the open lot, if it is open.
    fn write(&mut self) -> Result<(), SpillError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let mut place = self.open.0.lock();
        let Place::Open(bytes) = &*place else {
            return Ok(());
        };
        if self.file.as_ref().is_none_or(|file| file.len() >= FILE) {
            self.file = None;
            self.file = Some(dir.create()?);
        }
        if let Some(file) = &mut self.file {
            *place = Place::Disk(file.append(bytes)?);
        }
        Ok(())
    }
}

impl Lot {
    fn open() -> Arc<Self> {
        Arc::new(Lot(Mutex::new(Place::Open(Vec::new()))))
    }
}

impl Parked {
    /// The records again.
    pub fn read(self) -> Result<RecordBatch, ParkingError> {
        let mut place = self.lot.0.lock();
        if let Place::Disk(extent) = &*place {
            *place = Place::Read(extent.read()?);
        }
        let bytes = match &*place {
            Place::Open(bytes) => bytes.get(self.range),
            Place::Read(bytes) => bytes.get(self.range),
            Place::Disk(_) => None,
        };
        // Copies, so that the batch does not keep the others in memory.
        bytes.and_then(decode).ok_or(ParkingError::Cut)
    }
}

/// The number of records, then the parts of the batch.
fn encode(records: &RecordBatch, out: &mut Vec<u8>) {
    let (kinds, plain) = records.parts();
    out.reserve(size_of::<u64>() + kinds.len() + plain.len());
    out.extend_from_slice(&(kinds.len() as u64).to_le_bytes());
    out.extend_from_slice(kinds);
    out.extend_from_slice(plain);
}

fn decode(bytes: &[u8]) -> Option<RecordBatch> {
    let (count, parts) = bytes.split_first_chunk()?;
    let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
    let (kinds, plain) = parts.split_at_checked(count)?;
    RecordBatch::from_parts(kinds.to_vec(), plain.to_vec())
}

#[cfg(test)]
#[path = "parking_tests.rs"]
mod tests;
