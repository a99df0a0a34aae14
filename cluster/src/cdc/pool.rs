//! Memory and disk for the rows of unfinished transactions of one stream.
//!
//! Rows of one event are kept together in a [`Block`]: their keys, which stay in memory because
//! commits are matched by key, and their values, which can move to a temporary file. Everything
//! is reserved from the daemon's budget before it is allocated and given back when it is dropped,
//! whoever drops it. When the pool's share of the budget is full the oldest values move to disk,
//! many at a time; when that is impossible the caller gets [`NoRoom`] and gives a subscription
//! back. Used by [`super::prewrites`] and [`super::matcher`], on the reader's task.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::spill::{Extent, SpillDir, SpillError, SpillFile};
use pitr_budget::{MemoryBudget, Reservation};

/// Values of a block below this stay in memory: the entry on disk would not be smaller.
const MIN_SPILL: usize = 128;
/// Values go to disk in extents of at least this size, if there are that many; a value is read
/// back with its whole extent, so that damage is found.
const EXTENT: usize = 64 << 10;
/// Values that one call for room moves to disk at least.
const BATCH: usize = 1 << 20;
/// A file takes no more extents from here on, so that finished transactions free their disk space.
const FILE: u64 = 64 << 20;
/// Memory of a block besides its keys and values.
const BLOCK_OVERHEAD: usize = 192;
/// Dead blocks at the head of the list of candidates are looked for from this length on.
const SWEEP: usize = 1024;

/// The rows of unfinished transactions fit neither into memory nor onto disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unfinished transactions do not fit: {0}")]
pub struct NoRoom(pub(super) String);

/// Bytes of the pool: reserved from the budget and counted in its gauge.
#[derive(Debug)]
pub(super) struct Room {
    reserved: Reservation,
    gauge: Arc<AtomicU64>,
}

impl Room {
    pub fn shrink_to(&mut self, bytes: usize) {
        let before = self.reserved.bytes();
        self.reserved.shrink_to(bytes as u64);
        let freed = before - self.reserved.bytes();
        self.gauge.fetch_sub(freed, Ordering::Relaxed);
    }

    /// Splits off `bytes`, which it has.
    fn split(&mut self, bytes: usize) -> Room {
        Room {
            reserved: self.reserved.split(bytes as u64),
            gauge: self.gauge.clone(),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = self.reserved.bytes();
        self.gauge.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A range inside a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub at: u32,
    pub len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        let at = self.at as usize;
        at..at + self.len as usize
    }
}

/// Lays out a buffer before its bytes are copied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    len: usize,
}

impl Layout {
    /// A place for `len` bytes behind all others.
    pub fn place(&mut self, len: usize) -> Span {
        let span = Span {
            at: self.len as u32,
            len: len as u32,
        };
        self.len += len;
        span
    }
}

/// Kept rows of one event.
#[derive(Debug)]
pub(super) struct Block {
    keys: Box<[u8]>,
    values: Mutex<Values>,
    values_len: usize,
    _room: Room,
}

#[derive(Debug)]
enum Values {
    /// Gives its bytes back to the pool when the last slice of it is dropped.
    Memory(Bytes),
    Disk {
        extent: Arc<Extent>,
        offset: usize,
    },
}

impl Block {
    #[inline]
    pub fn key(&self, span: Span) -> &[u8] {
        self.keys.get(span.range()).unwrap_or_default()
    }
}

struct Owned {
    bytes: Box<[u8]>,
    _room: Room,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    budget: Arc<MemoryBudget>,
    spill: Option<Arc<SpillDir>>,
    /// Most bytes in memory.
    limit: u64,
    gauge: Arc<AtomicU64>,
    /// Blocks whose values can go to disk, oldest first.
    candidates: VecDeque<Weak<Block>>,
    /// Length of `candidates` at which the dead among them are dropped.
    sweep_at: usize,
    file: Option<SpillFile>,
    /// The extent that was read last.
    window: Option<(Arc<Extent>, Bytes)>,
}

impl Pool {
    pub fn new(budget: Arc<MemoryBudget>, spill: Option<Arc<SpillDir>>, limit: u64) -> Self {
        Pool {
            budget,
            spill,
            limit,
            gauge: Arc::default(),
            candidates: VecDeque::new(),
            sweep_at: SWEEP,
            file: None,
            window: None,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        self.gauge.load(Ordering::Relaxed)
    }

    /// A room of 0 bytes.
    pub fn nothing(&self) -> Room {
        Room {
            reserved: self.budget.nothing(),
            gauge: self.gauge.clone(),
        }
    }

    /// Lets `room` grow by `more` bytes; moves values to disk if it must.
    pub fn grow(&mut self, room: &mut Room, more: usize) -> Result<(), NoRoom> {
        let more = more as u64;
        loop {
            let used = self.bytes();
            // As with the budget, one thing of any size is accepted when nothing else is kept.
            let fits = used == 0 || used + more <= self.limit;
            if fits && room.reserved.try_grow(more) {
                self.gauge.fetch_add(more, Ordering::Relaxed);
                return Ok(());
            }
            let moved = self.move_out().map_err(|error| NoRoom(error.to_string()))?;
            if moved == 0 {
                return Err(NoRoom(match fits {
                    true => format!("the memory budget of {} bytes is used", self.budget.limit()),
                    false => format!("{used} of {} bytes are used", self.limit),
                }));
            }
        }
    }

    /// Reserves and allocates what was laid out, and keeps the keys and values that `fill` copies
    /// there.
    pub fn keep(
        &mut self,
        keys: Layout,
        values: Layout,
        fill: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>),
    ) -> Result<Arc<Block>, NoRoom> {
        let mut room = self.nothing();
        let (keys, values) = (keys.len, values.len);
        self.grow(&mut room, BLOCK_OVERHEAD + keys + values)?;
        let of_values = room.split(values);
        let (mut of_key, mut of_value) = (Vec::with_capacity(keys), Vec::with_capacity(values));
        fill(&mut of_key, &mut of_value);
        debug_assert_eq!((of_key.len(), of_value.len()), (keys, values));
        let block = Arc::new(Block {
            keys: of_key.into_boxed_slice(),
            values: Mutex::new(Values::Memory(Bytes::from_owner(Owned {
                bytes: of_value.into_boxed_slice(),
                _room: of_values,
            }))),
            values_len: values,
            _room: room,
        });
        if self.spill.is_some() && values >= MIN_SPILL {
            self.sweep();
            self.candidates.push_back(Arc::downgrade(&block));
        }
        Ok(block)
    }

    /// A value; shares the block's memory if it is in memory, else appends it to `buffer`.
    pub fn value(
        &mut self,
        block: &Block,
        span: Span,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Bytes>, SpillError> {
        let (extent, offset) = match &*block.values.lock() {
            Values::Memory(bytes) => return Ok(Some(bytes.slice(span.range()))),
            Values::Disk { extent, offset } => (extent.clone(), *offset),
        };
        let bytes = match &self.window {
            Some((known, bytes)) if Arc::ptr_eq(known, &extent) => bytes.clone(),
            _ => {
                self.window = None;
                let bytes = extent.read()?;
                self.window = Some((extent.clone(), bytes.clone()));
                bytes
            }
        };
        let range = span.range();
        // Never less than the value: an empty one in its place would pass for the truth.
        let inside = bytes.get(offset + range.start..offset + range.end);
        buffer.extend_from_slice(inside.ok_or_else(|| extent.damaged())?);
        Ok(None)
    }

    /// Moves the oldest values to disk; how many bytes.
    fn move_out(&mut self) -> Result<usize, SpillError> {
        let mut moved = 0;
        while moved < BATCH {
            let mut blocks = Vec::new();
            let mut bytes = 0;
            while bytes < EXTENT
                && let Some(candidate) = self.candidates.pop_front()
            {
                if let Some(block) = candidate.upgrade() {
                    bytes += block.values_len;
                    blocks.push(block);
                }
            }
            if blocks.is_empty() {
                break;
            }
            if let Err(error) = self.write(&blocks) {
                for block in blocks.iter().rev() {
                    self.candidates.push_front(Arc::downgrade(block));
                }
                return match moved {
                    0 => Err(error),
                    _ => Ok(moved),
                };
            }
            moved += bytes;
        }
        Ok(moved)
    }

    fn write(&mut self, blocks: &[Arc<Block>]) -> Result<(), SpillError> {
        let Some(dir) = &self.spill else {
            return Ok(());
        };
        let mut parts = Vec::with_capacity(blocks.len());
        let mut moved = Vec::with_capacity(blocks.len());
        for block in blocks {
            if let Values::Memory(bytes) = &*block.values.lock() {
                parts.push(bytes.clone());
                moved.push(block);
            }
        }
        if self.file.as_ref().is_none_or(|file| file.len() >= FILE) {
            self.file = None;
            self.file = Some(dir.create()?);
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let extent = Arc::new(file.append_parts(parts.iter().map(|part| &part[..]))?);
        let mut offset = 0;
        for (block, part) in moved.into_iter().zip(&parts) {
            *block.values.lock() = Values::Disk {
                extent: extent.clone(),
                offset,
            };
            offset += part.len();
        }
        Ok(())
    }

    /// Drops dead candidates now and then, so that a long-lived one does not keep them.
    fn sweep(&mut self) {
        while self
            .candidates
            .front()
            .is_some_and(|block| block.strong_count() == 0)
        {
            self.candidates.pop_front();
        }
        if self.candidates.len() >= self.sweep_at {
            self.candidates.retain(|block| block.strong_count() > 0);
            self.sweep_at = SWEEP.max(self.candidates.len() * 2);
        }
    }

    /// After the last subscription: nothing is kept, so nothing has to stay open.
    pub fn rest(&mut self) {
        self.candidates.clear();
        self.file = None;
        self.window = None;
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
