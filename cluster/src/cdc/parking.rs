//! Queued records on disk.
//!
//! Small batches are collected into one extent; until it is full it stays in memory, so at most
//! [`EXTENT`] bytes and one batch of the queue are not on disk. A batch that does not fit any
//! more is refused and stays with the caller. Used by [`super::queue`], under its lock.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use pitr_budget::spill::{Extent, SpillDir, SpillError, SpillFile};
use pitr_format::{Cf, KvRecord, OpKind};

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
    pub fn park(&mut self, records: &[KvRecord]) -> Option<Parked> {
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
        for record in records {
            encode(record, bytes);
        }
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
    pub fn read(self) -> Result<Vec<KvRecord>, ParkingError> {
        let mut place = self.lot.0.lock();
        if let Place::Disk(extent) = &*place {
            *place = Place::Read(extent.read()?);
        }
        let mut bytes = match &*place {
            Place::Open(bytes) => Bytes::copy_from_slice(cut(bytes, &self.range)?),
            // The batch must not keep the others in memory.
            Place::Read(bytes) => Bytes::copy_from_slice(cut(bytes, &self.range)?),
            Place::Disk(_) => return Err(ParkingError::Cut),
        };
        drop(place);
        let mut records = Vec::new();
        while bytes.has_remaining() {
            records.push(decode(&mut bytes).ok_or(ParkingError::Cut)?);
        }
        Ok(records)
    }
}

fn cut<'a>(bytes: &'a [u8], range: &Range<usize>) -> Result<&'a [u8], ParkingError> {
    bytes.get(range.clone()).ok_or(ParkingError::Cut)
}

fn encode(record: &KvRecord, out: &mut Vec<u8>) {
    out.reserve(10 + record.size());
    out.put_u8(u8::from(record.cf == Cf::Default));
    out.put_u8(u8::from(record.op == OpKind::Delete));
    out.put_u32_le(record.key.len() as u32);
    out.put_u32_le(record.value.len() as u32);
    out.put_slice(&record.key);
    out.put_slice(&record.value);
}

fn decode(bytes: &mut Bytes) -> Option<KvRecord> {
    if bytes.remaining() < 10 {
        return None;
    }
    let cf = match bytes.get_u8() {
        1 => Cf::Default,
        _ => Cf::Write,
    };
    let op = match bytes.get_u8() {
        1 => OpKind::Delete,
        _ => OpKind::Put,
    };
    let (key, value) = (bytes.get_u32_le() as usize, bytes.get_u32_le() as usize);
    if bytes.remaining() < key + value {
        return None;
    }
    Some(KvRecord {
        cf,
        op,
        key: bytes.split_to(key),
        value: bytes.split_to(value),
    })
}

#[cfg(test)]
#[path = "parking_tests.rs"]
mod tests;
