//! The open slices of one shard.
//!
//! A slice holds the records of one (table, region, column family, operation, is_meta): restore
//! treats a slice as one kind of write. It is plaintext in small chunks. A large one is closed, to
//! be compressed while the next slice of its key begins: at [`CLOSE_AT`], which an encoder
//! compresses in one go, when memory is short at [`CLOSE_SHORT_AT`], and never above the size limit, so
//! that none comes near the 4 GiB that readers can address.
//!
//! Sealing only moves the slots out; everything that takes time happens off the shard
//! ([`crate::encode`]). A record costs no allocation, and finding its slice no search as long as
//! records of one kind follow each other.

use std::collections::HashMap;

use pitr_format::slice::{SliceBuildError, SliceBuilder, SliceId, classify_encoded};
use pitr_format::{Cf, OpKind, RecordRef, Ts};

/// Plaintext bytes at which a slice is closed.
pub const CLOSE_AT: u64 = 1 << 20;
/// The same while half of the memory is in use.
pub const CLOSE_SHORT_AT: u64 = 256 << 10;
/// What a slice takes besides what it allocates itself: slot, map entry, the buffers' headers.
const SLOT_BYTES: u64 = (size_of::<Slot>() + 2 * size_of::<(SliceId, usize)>()) as u64;

/// Order of slices inside a generation: data before meta, then table, region, column family,
/// operation, so that what is restored together lies together.
pub type SliceOrder = (bool, i64, u64, Cf, OpKind);

/// The place of a slice in a generation.
pub fn order_of(id: &SliceId) -> SliceOrder {
    (id.is_meta, id.table_id, id.region_id, id.cf, id.op)
}

/// A key and its slice; none between closing one and the next record.
struct Slot {
    id: SliceId,
    slice: Option<SliceBuilder>,
}

/// All slices of a shard since the last seal.
pub(crate) struct OpenSlices {
    slice_limit: u64,
    slots: Vec<Slot>,
    index: HashMap<SliceId, usize>,
    /// The slot used last, per column family and operation.
    recent: [usize; 4],
    /// Slices that were closed since they were last taken away.
    closed: Vec<SliceBuilder>,
    plain_bytes: u64,
    held_bytes: u64,
}

impl OpenSlices {
    /// `slice_limit`: plaintext bytes at which a slice is closed.
    pub fn new(slice_limit: u64) -> Self {
        OpenSlices {
            slice_limit: slice_limit.max(1),
            slots: Vec::new(),
            index: HashMap::new(),
            recent: [0; 4],
            closed: Vec::new(),
            plain_bytes: 0,
            held_bytes: 0,
        }
    }

    /// Appends one record of `region_id`, whose resolved ts is `resolved` now; the slice is closed
    /// if it then has `close_at` bytes. After an error no slice has changed.
    pub fn append(
        &mut self,
        region_id: u64,
        resolved: Ts,
        record: RecordRef<'_>,
        close_at: u64,
    ) -> Result<(), SliceBuildError> {
        let (table_id, is_meta) = classify_encoded(record.key);
        let id = SliceId {
            table_id,
            region_id,
            cf: record.cf,
            op: record.op,
            is_meta,
        };
        let at = self.slot_of(id);
        let slice = self.slots[at].slice.get_or_insert_with(|| {
            self.held_bytes += SLOT_BYTES;
            SliceBuilder::new(id)
        });
        let held = slice.held_bytes();
        slice.append(record)?;
        slice.note_resolved(resolved);
        self.plain_bytes += record.framed.len() as u64;
        self.held_bytes += slice.held_bytes() as u64;
        self.held_bytes -= held as u64;
        if slice.plain_len() as u64 >= close_at.min(self.slice_limit) {
            self.close(at);
        }
        Ok(())
    }

    fn slot_of(&mut self, id: SliceId) -> usize {
        let kind = match (id.cf, id.op) {
            (Cf::Default, OpKind::Put) => 0,
            (Cf::Default, OpKind::Delete) => 1,
            (Cf::Write, OpKind::Put) => 2,
            (Cf::Write, OpKind::Delete) => 3,
        };
        let recent = self.recent[kind];
        if self.slots.get(recent).is_some_and(|slot| slot.id == id) {
            return recent;
        }
        let at = *self.index.entry(id).or_insert_with(|| {
            self.slots.push(Slot { id, slice: None });
            self.slots.len() - 1
        });
        self.recent[kind] = at;
        at
    }

    /// Ends a slice; the next record of its key begins another.
    fn close(&mut self, at: usize) {
        if let Some(slice) = self.slots[at].slice.take() {
            self.closed.push(slice);
        }
    }

    /// Closes the largest slices, until half of what is held is in closed ones.
    pub fn close_larger_half(&mut self) {
        let mut open: Vec<(usize, usize)> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(at, slot)| Some((slot.slice.as_ref()?, at)))
            .filter(|(slice, _)| !slice.is_empty())
            .map(|(slice, at)| (slice.held_bytes(), at))
            .collect();
        open.sort_unstable_by(|a, b| b.cmp(a));
        let half = open.iter().map(|(held, _)| held).sum::<usize>() / 2;
        let mut closed = 0;
        for (held, at) in open {
            if closed > half {
                break;
            }
            closed += held;
            self.close(at);
        }
    }

    /// A slice that was closed, the oldest first, and what it holds.
    pub fn take_closed(&mut self) -> impl Iterator<Item = (SliceBuilder, u64)> + use<'_> {
        let held_bytes = &mut self.held_bytes;
        self.closed.drain(..).map(|slice| {
            let held = slice.held_bytes() as u64 + SLOT_BYTES;
            *held_bytes -= held;
            (slice, held)
        })
    }

    /// Whether [`OpenSlices::take_closed`] has something to give.
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Plaintext bytes since the last seal.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Bytes allocated for open slices and for closed ones that were not taken.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Hands over everything and starts anew. Moves no slice and frees nothing: this is the pause.
    pub fn seal(&mut self) -> SealedSlots {
        self.plain_bytes = 0;
        self.held_bytes = 0;
        self.index.clear();
        // As many as before: growing step by step would copy them again and again.
        let next = Vec::with_capacity(self.slots.len());
        SealedSlots {
            closed: std::mem::take(&mut self.closed),
            slots: std::mem::replace(&mut self.slots, next),
        }
    }
}

/// What a seal took out of a shard.
pub(crate) struct SealedSlots {
    closed: Vec<SliceBuilder>,
    slots: Vec<Slot>,
}

impl SealedSlots {
    /// The slices with the bytes that each holds; those of one key in the order in which they
    /// were filled.
    pub fn into_slices(self) -> impl Iterator<Item = (SliceBuilder, u64)> {
        let open = self.slots.into_iter().filter_map(|slot| slot.slice);
        self.closed
            .into_iter()
            .chain(open)
            // A record that was refused may have left an empty one behind.
            .filter(|slice| !slice.is_empty())
            .map(|slice| {
                let held = slice.held_bytes() as u64 + SLOT_BYTES;
                (slice, held)
            })
    }
}

#[cfg(test)]
mod tests {
    use pitr_format::{EncodedKey, KvRecord, RecordBatch};

    use super::*;

    fn put(key: &[u8], ts: u64) -> KvRecord {
        sized(key, ts, 100)
    }

    fn sized(key: &[u8], ts: u64, value: usize) -> KvRecord {
        KvRecord {
            cf: Cf::Default,
            op: OpKind::Put,
            key: EncodedKey::encode(key).at(Ts::new(ts)).into_bytes(),
            value: vec![7; value].into(),
        }
    }

    fn lengths(sealed: SealedSlots) -> Vec<usize> {
        sealed.into_slices().map(|(d, _)| d.plain_len()).collect()
    }

    #[test]
    fn a_slice_at_its_limit_is_closed_and_a_new_one_of_the_same_key_begins() {
        let mut slices = OpenSlices::new(300);
        for ts in 1..=7 {
            slices
                .append(
                    5,
                    Ts::new(ts),
                    RecordBatch::of([&put(b"k", ts)])
                        .unwrap()
                        .iter()
                        .next()
                        .unwrap(),
                    CLOSE_AT,
                )
                .unwrap();
        }
        let record = 4 + 9 + 8 + 4 + 100;
        assert_eq!(slices.plain_bytes(), 7 * record);
        assert_eq!(lengths(slices.seal()), [375, 375, 125]);
        assert_eq!((slices.plain_bytes(), slices.held_bytes()), (0, 0));
        assert!(lengths(slices.seal()).is_empty());
    }

    #[test]
    fn schema_keys_tables_and_families_never_share_a_slice() {
        let mut slices = OpenSlices::new(1 << 20);
        let table = [&b"t"[..], &[0x80, 0, 0, 0, 0, 0, 0, 9], &b"_r1"[..]].concat();
        for (key, region) in [
            (&b"a"[..], 1),
            (b"m1", 1),
            (&table, 1),
            (b"a", 2),
            (b"b", 1),
        ] {
            slices
                .append(
                    region,
                    Ts::ZERO,
                    RecordBatch::of([&put(key, 3)])
                        .unwrap()
                        .iter()
                        .next()
                        .unwrap(),
                    CLOSE_AT,
                )
                .unwrap();
        }
        let sealed = slices.seal();
        let mut ids: Vec<_> = sealed
            .into_slices()
            .map(|(d, _)| order_of(d.id()))
            .collect();
        ids.sort();
        let of = |is_meta, table, region| (is_meta, table, region, Cf::Default, OpKind::Put);
        assert_eq!(
            ids,
            [
                of(false, 0, 1),
                of(false, 0, 2),
                of(false, 9, 1),
                of(true, 0, 1)
            ]
        );
    }

    #[test]
    fn a_refused_record_leaves_nothing_behind() {
        let mut slices = OpenSlices::new(1 << 20);
        let mut record = put(b"k", 3);
        record.key = "short".into();
        assert!(
            slices
                .append(
                    1,
                    Ts::ZERO,
                    RecordBatch::of([&record]).unwrap().iter().next().unwrap(),
                    CLOSE_AT
                )
                .is_err()
        );
        assert_eq!(slices.plain_bytes(), 0);
        assert!(lengths(slices.seal()).is_empty());
    }

    #[test]
    fn a_large_slice_is_closed_sooner_when_memory_is_short() {
        for (close_at, expect) in [(CLOSE_AT, 3), (CLOSE_SHORT_AT, 12)] {
            let mut slices = OpenSlices::new(1 << 30);
            for ts in 1..=3000 {
                let batch = RecordBatch::of([&sized(b"k", ts, 1000)]).unwrap();
                for record in &batch {
                    slices.append(5, Ts::ZERO, record, close_at).unwrap();
                }
            }
            let parts = lengths(slices.seal());
            assert_eq!(parts.len(), expect, "closed at {close_at}");
            assert_eq!(parts.iter().sum::<usize>(), 3000 * 1025);
        }
    }

    #[test]
    fn what_is_held_is_counted_to_the_byte_through_closing_and_taking() {
        let mut slices = OpenSlices::new(500_000);
        let sum = |slices: &OpenSlices| -> u64 {
            let open = slices.slots.iter().filter_map(|slot| slot.slice.as_ref());
            open.chain(&slices.closed)
                .map(|slice| slice.held_bytes() as u64 + SLOT_BYTES)
                .sum()
        };
        for ts in 1..4000u64 {
            let region = ts % 7 * (ts % 3);
            let value = (ts * 37 % 2000) as usize;
            slices
                .append(
                    region,
                    Ts::ZERO,
                    RecordBatch::of([&sized(b"k", ts, value)])
                        .unwrap()
                        .iter()
                        .next()
                        .unwrap(),
                    CLOSE_AT,
                )
                .unwrap();
            if ts % 501 == 0 {
                slices.close_larger_half();
            }
            if ts % 700 == 0 {
                let taken: u64 = slices.take_closed().map(|(_, held)| held).sum();
                assert!(taken > 0);
            }
            assert_eq!(slices.held_bytes(), sum(&slices), "after {ts}");
        }
    }

    #[test]
    fn a_slice_of_one_row_takes_little_more_than_its_first_chunk() {
        let mut slices = OpenSlices::new(1 << 20);
        for region in 0..1000 {
            slices
                .append(
                    region,
                    Ts::ZERO,
                    RecordBatch::of([&put(b"key of a row", 5)])
                        .unwrap()
                        .iter()
                        .next()
                        .unwrap(),
                    CLOSE_AT,
                )
                .unwrap();
        }
        let each = slices.held_bytes() / 1000;
        assert!((1024..2048).contains(&each), "{each} bytes a slice");
    }

    #[test]
    fn the_larger_slices_are_closed_first_and_the_small_ones_go_on() {
        let mut slices = OpenSlices::new(1 << 20);
        for region in 0..100 {
            let value = if region < 3 { 60_000 } else { 10 };
            slices
                .append(
                    region,
                    Ts::ZERO,
                    RecordBatch::of([&sized(b"k", 5, value)])
                        .unwrap()
                        .iter()
                        .next()
                        .unwrap(),
                    CLOSE_AT,
                )
                .unwrap();
        }
        slices.close_larger_half();
        let closed: Vec<_> = slices
            .take_closed()
            .map(|(d, _)| d.id().region_id)
            .collect();
        assert!((1..=3).contains(&closed.len()), "{closed:?}");
        assert!(closed.iter().all(|region| *region < 3));
    }
}
