//! Entries in memory, in chunks, so that their size is known exactly and nothing is moved when
//! more arrive. Used by the sorter before a spill and as the only run of a small restore.

use std::cmp::Ordering;

use super::{Duplicates, Tag};

const CHUNK: usize = 1 << 20;

#[derive(Clone, Copy)]
struct Slot {
    chunk: u32,
    tag: Tag,
    offset: usize,
    key_len: usize,
    value_len: usize,
}

/// Unordered until [`Buffer::sort`].
#[derive(Default)]
pub(super) struct Buffer {
    chunks: Vec<Vec<u8>>,
    slots: Vec<Slot>,
    allocated: usize,
}

impl Buffer {
    pub(super) fn push(&mut self, key: &[u8], tag: Tag, value: &[u8]) {
        let capacity = self.growth(key.len() + value.len());
        if capacity > 0 {
            self.allocated += capacity;
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let at = self.chunks.len() - 1;
        let chunk = &mut self.chunks[at];
        self.slots.push(Slot {
            chunk: at as u32,
            tag,
            offset: chunk.len(),
            key_len: key.len(),
            value_len: value.len(),
        });
        chunk.extend_from_slice(key);
        chunk.extend_from_slice(value);
    }

    /// Size of the chunk that `need` more bytes make necessary; 0 if they fit.
    fn growth(&self, need: usize) -> usize {
        let fits = |chunk: &Vec<u8>| chunk.capacity() - chunk.len() >= need;
        match self.chunks.last().is_some_and(fits) {
            true => 0,
            false => need.max(CHUNK),
        }
    }

    /// Bytes allocated once an entry of `need` bytes is added. The list of entries doubles.
    pub(super) fn memory_with(&self, need: usize) -> usize {
        let more_slots = match self.slots.len() < self.slots.capacity() {
            true => 0,
            false => self.slots.capacity().max(4),
        };
        self.memory() + self.growth(need) + more_slots * size_of::<Slot>()
    }

    /// Bytes allocated.
    fn memory(&self) -> usize {
        self.allocated + self.slots.capacity() * size_of::<Slot>()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<(&[u8], Tag, &[u8])> {
        self.slots.get(index).map(|slot| entry(&self.chunks, slot))
    }

    /// Orders the entries and drops repetitions.
    pub(super) fn sort(&mut self) -> Duplicates {
        let Buffer { chunks, slots, .. } = self;
        slots.sort_unstable_by(|a, b| compare(chunks, a, b));
        let mut duplicates = Duplicates::default();
        slots.dedup_by(|later, earlier| {
            let equal = compare(chunks, later, earlier).is_eq();
            if equal {
                duplicates.count(later.tag);
            }
            equal
        });
        duplicates
    }
}

fn entry<'a>(chunks: &'a [Vec<u8>], slot: &Slot) -> (&'a [u8], Tag, &'a [u8]) {
    let chunk = &chunks[slot.chunk as usize][slot.offset..];
    let (key, rest) = chunk.split_at(slot.key_len);
    (key, slot.tag, &rest[..slot.value_len])
}

fn compare(chunks: &[Vec<u8>], a: &Slot, b: &Slot) -> Ordering {
    entry(chunks, a).cmp(&entry(chunks, b))
}
