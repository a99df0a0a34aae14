//! Entries in memory, in chunks, so that their size is known exactly and nothing is moved when
//! more arrive. Used by the sorter before a spill and as the only run of a small restore.

use std::cmp::Ordering;

use super::{Duplicates, EntryRef, Tag};

const CHUNK: usize = 1 << 20;

/// Where an entry lies. 32-bit numbers are enough: a record comes out of a slice, which is shorter.
#[derive(Clone, Copy)]
struct Slot {
    /// The 8 bytes of the key behind what all keys have in common, big-endian: most comparisons
    /// end here, without a look at the key. Set by [`Buffer::sort`].
    lead: u64,
    chunk: u32,
    offset: u32,
    key_len: u32,
    value_len: u32,
    tag: Tag,
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
            lead: 0,
            chunk: at as u32,
            offset: chunk.len() as u32,
            key_len: key.len() as u32,
            value_len: value.len() as u32,
            tag,
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

    pub(super) fn get(&self, index: usize) -> Option<EntryRef<'_>> {
        self.slots.get(index).map(|slot| entry(&self.chunks, slot))
    }

    /// Orders the entries and drops repetitions.
    pub(super) fn sort(&mut self) -> Duplicates {
        let common = self.common_prefix();
        let Buffer { chunks, slots, .. } = self;
        for slot in slots.iter_mut() {
            slot.lead = lead(&entry(chunks, slot).key[common..]);
        }
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

    /// Bytes that all keys begin with.
    fn common_prefix(&self) -> usize {
        let mut keys = self.slots.iter().map(|slot| entry(&self.chunks, slot).key);
        let Some(first) = keys.next() else {
            return 0;
        };
        keys.fold(first.len(), |common, key| {
            if key.starts_with(&first[..common]) {
                return common;
            }
            let equal = first[..common].iter().zip(key).take_while(|(a, b)| a == b);
            equal.count()
        })
    }
}

/// The first 8 bytes as a number that orders like them; missing ones count as 0, so that equal
/// numbers decide nothing.
fn lead(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut bytes = [0; 8];
            bytes[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(bytes)
        }
    }
}

fn entry<'a>(chunks: &'a [Vec<u8>], slot: &Slot) -> EntryRef<'a> {
    let chunk = &chunks[slot.chunk as usize][slot.offset as usize..];
    let (key, rest) = chunk.split_at(slot.key_len as usize);
    EntryRef {
        key,
        tag: slot.tag,
        value: &rest[..slot.value_len as usize],
    }
}

fn compare(chunks: &[Vec<u8>], a: &Slot, b: &Slot) -> Ordering {
    let leads = a.lead.cmp(&b.lead);
    leads.then_with(|| entry(chunks, a).cmp(&entry(chunks, b)))
}
