//! The table of rows that wait for their commit, of one subscription: found by key and start ts.
//!
//! An entry is small and of one size; key and value lie in blocks of the pool. The table's own
//! memory is reserved before it grows. Owned by [`super::matcher`].

use std::hash::BuildHasher as _;
use std::mem::size_of;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use pitr_budget::spill::SpillError;
use pitr_format::Ts;

use super::pool::{Block, NoRoom, Pool, Room, Span};

/// A table of up to this many places is not shrunk: one transaction after the other would widen it
/// again.
const SMALL: usize = 128;

/// What a prewrite left.
#[derive(Debug)]
pub(super) struct Entry {
    pub block: Arc<Block>,
    pub key: Span,
    pub value: Span,
    pub start_ts: Ts,
    pub generation: u64,
    /// Another value came for the same version before the end of the scan.
    pub doubtful: bool,
}

impl Entry {
    /// The value: shared, or appended to `buffer`.
    pub fn value(
        &self,
        pool: &mut Pool,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Bytes>, SpillError> {
        pool.value(&self.block, self.value, buffer)
    }

    #[inline]
    fn is(&self, key: &[u8]) -> bool {
        self.block.key(self.key) == key
    }

    fn size(&self) -> usize {
        size_of::<Entry>() + (self.key.len + self.value.len) as usize
    }
}

/// Entries of one subscription.
#[derive(Debug)]
pub(super) struct Prewrites {
    table: HashTable<Entry>,
    hasher: RandomState,
    room: Room,
    /// Bytes of entries, in memory or on disk.
    held: usize,
}

impl Prewrites {
    pub fn new(pool: &Pool) -> Self {
        Prewrites {
            table: HashTable::new(),
            hasher: RandomState::default(),
            room: pool.nothing(),
            held: 0,
        }
    }

    /// Bytes of entries, in memory or on disk.
    pub fn held(&self) -> usize {
        self.held
    }

    pub fn find(&mut self, key: &[u8], start_ts: Ts) -> Option<&mut Entry> {
        let is = |entry: &Entry| entry.start_ts == start_ts && entry.is(key);
        self.table.find_mut(self.hasher.hash_one(key), is)
    }

    /// Adds an entry for `key`, or gives it back if its transaction has one already. If it is to be
    /// `alone`, the entries of other transactions for the key are dropped. After an error it is not
    /// added.
    pub fn add(
        &mut self,
        key: &[u8],
        entry: Entry,
        alone: bool,
        pool: &mut Pool,
    ) -> Result<Option<Entry>, NoRoom> {
        if self.table.len() == self.table.capacity() {
            self.widen(pool)?;
        }
        let hasher = &self.hasher;
        let hash = hasher.hash_one(key);
        let hash_of = |entry: &Entry| hasher.hash_one(entry.block.key(entry.key));
        let start_ts = entry.start_ts;
        let is = |old: &Entry| (alone || old.start_ts == start_ts) && old.is(key);
        loop {
            match self.table.entry(hash, is, hash_of) {
                Place::Vacant(place) => {
                    self.held += entry.size();
                    place.insert(entry);
                    return Ok(None);
                }
                Place::Occupied(old) if old.get().start_ts == start_ts => break,
                Place::Occupied(old) => {
                    let (old, _) = old.remove();
                    self.held -= old.size();
                }
            }
        }
        if alone {
            self.forget_others(key, start_ts);
        }
        Ok(Some(entry))
    }

    /// Puts an entry in the place of the one that its transaction has for the key.
    pub fn replace(&mut self, key: &[u8], entry: Entry) {
        let Some(old) = self.find(key, entry.start_ts) else {
            return;
        };
        let (before, after) = (old.size(), entry.size());
        *old = entry;
        self.held = self.held + after - before;
    }

    pub fn take(&mut self, key: &[u8], start_ts: Ts) -> Option<Entry> {
        let is = |entry: &Entry| entry.start_ts == start_ts && entry.is(key);
        let hash = self.hasher.hash_one(key);
        let (entry, _) = self.table.find_entry(hash, is).ok()?.remove();
        self.held -= entry.size();
        self.narrow();
        Some(entry)
    }

    fn forget_others(&mut self, key: &[u8], start_ts: Ts) {
        let hash = self.hasher.hash_one(key);
        let other = |entry: &Entry| entry.start_ts != start_ts && entry.is(key);
        while let Ok(found) = self.table.find_entry(hash, other) {
            let (entry, _) = found.remove();
            self.held -= entry.size();
        }
        self.narrow();
    }

    /// Doubles the table. Old and new exist together for a moment: both are reserved.
    fn widen(&mut self, pool: &mut Pool) -> Result<(), NoRoom> {
        let wanted = (self.table.len() * 2).max(4);
        // Power of two above 8/7 of the capacity, and one control byte each.
        let buckets = (wanted * 8 / 7 + 1).next_power_of_two();
        let bytes = buckets * (size_of::<Entry>() + 1) + 32;
        pool.grow(&mut self.room, bytes)?;
        let more = wanted - self.table.len();
        let hasher = &self.hasher;
        self.table
            .reserve(more, |entry| hasher.hash_one(entry.block.key(entry.key)));
        self.room.shrink_to(self.table.allocation_size());
        Ok(())
    }

    /// Gives memory back after a large transaction.
    fn narrow(&mut self) {
        // Not the capacity: that is what is free at the moment, and removed entries leave marks.
        let (len, places) = (self.table.len(), self.table.num_buckets());
        if places <= SMALL || len > places / 8 {
            return;
        }
        let hasher = &self.hasher;
        self.table
            .shrink_to(len * 2, |entry| hasher.hash_one(entry.block.key(entry.key)));
        self.room.shrink_to(self.table.allocation_size());
    }
}
