//! The slices of a plan in little memory, all of it reserved: an archive of a day has millions.
//!
//! Kept is what a read of a slice needs, copied out of its meta, whose buffer is let go; a [`Read`]
//! is unpacked when its turn comes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use pitr_budget::Reservation;
use pitr_format::Cf;
use pitr_proto::backup::DataFileInfo;

use super::Slice;
use super::reads::{Group, Place, Read, ReadLimits, group};
use crate::damage::Damage;

/// What the allocator takes besides the bytes asked for.
const ALLOCATION: usize = 16;
/// What a slice takes besides its place in the list and its bytes: it may be a request of its own,
/// in a list that doubles.
const BESIDES: usize = ALLOCATION + 2 * size_of::<Group>();

/// A slice that may be read.
struct Packed {
    object: Arc<str>,
    /// Digest, first key, last key.
    bytes: Box<[u8]>,
    sha256_len: u32,
    first_len: u32,
    compression: i32,
    cf: Cf,
    encrypted: bool,
    offset: u64,
    stored: u64,
    plain: u64,
    entries: i64,
    crc64xor: u64,
    min_ts: u64,
    max_ts: u64,
    min_begin_ts: u64,
}

impl Packed {
    fn new(object: Arc<str>, slice: &Slice) -> Packed {
        let info = &slice.info;
        Packed {
            object,
            bytes: [&info.sha256[..], &info.start_key, &info.end_key]
                .concat()
                .into(),
            // A meta is shorter than 4 GiB.
            sha256_len: info.sha256.len() as u32,
            first_len: info.start_key.len() as u32,
            compression: info.compression_type,
            cf: slice.cf,
            encrypted: info.file_encryption_info.is_some(),
            offset: info.range_offset,
            stored: info.range_length,
            plain: info.length,
            entries: info.number_of_entries,
            crc64xor: info.crc64xor,
            min_ts: info.min_ts,
            max_ts: info.max_ts,
            min_begin_ts: info.min_begin_ts_in_default_cf,
        }
    }

    fn place(&self) -> Place<'_> {
        Place {
            object: &self.object,
            offset: self.offset,
            length: self.stored,
        }
    }

    fn unpack(&self) -> Slice {
        let (sha256, keys) = self.bytes.split_at(self.sha256_len as usize);
        let (first, last) = keys.split_at(self.first_len as usize);
        let info = DataFileInfo {
            sha256: Bytes::copy_from_slice(sha256),
            number_of_entries: self.entries,
            min_ts: self.min_ts,
            max_ts: self.max_ts,
            start_key: Bytes::copy_from_slice(first),
            end_key: Bytes::copy_from_slice(last),
            cf: self.cf.as_str().to_owned(),
            length: self.plain,
            min_begin_ts_in_default_cf: self.min_begin_ts,
            range_offset: self.offset,
            range_length: self.stored,
            compression_type: self.compression,
            crc64xor: self.crc64xor,
            ..DataFileInfo::default()
        };
        Slice {
            object: self.object.to_string(),
            cf: self.cf,
            info,
        }
    }
}

/// A reservation has no room for more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Slices as they are chosen, in any order.
pub(super) struct Packing {
    slices: Vec<Packed>,
    held: Reservation,
    most: u64,
}

impl Packing {
    /// Takes at most `most` bytes, which come from the budget of `held`.
    pub(super) fn new(held: Reservation, most: u64) -> Self {
        Packing {
            slices: Vec::new(),
            held,
            most,
        }
    }

    /// Adds a slice.
    pub(super) fn push(&mut self, slice: &Slice) -> Result<(), Full> {
        let info = &slice.info;
        let known = self
            .slices
            .last()
            .filter(|last| *last.object == slice.object)
            .map(|last| Arc::clone(&last.object));
        let name = match known {
            Some(_) => 0,
            None => slice.object.len() + ALLOCATION,
        };
        let bytes = info.sha256.len() + info.start_key.len() + info.end_key.len();
        self.grow(name + bytes + BESIDES)?;
        if self.slices.len() == self.slices.capacity() {
            self.lengthen()?;
        }
        let object = known.unwrap_or_else(|| slice.object.as_str().into());
        self.slices.push(Packed::new(object, slice));
        Ok(())
    }

    /// Doubles the list; while it moves, the old one is there as well.
    fn lengthen(&mut self) -> Result<(), Full> {
        let old = self.slices.capacity();
        let new = (2 * old).max(64);
        self.grow(new * size_of::<Packed>())?;
        self.slices.reserve_exact(new - old);
        let freed = (old * size_of::<Packed>()) as u64;
        self.held.shrink_to(self.held.bytes() - freed);
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let bytes = bytes as u64;
        let fits = self.held.bytes() + bytes <= self.most && self.held.try_grow(bytes);
        if fits { Ok(()) } else { Err(Full) }
    }

    /// Slices so far.
    pub(super) fn len(&self) -> usize {
        self.slices.len()
    }

    /// Forgets the slices of `cf` whose newest record is older than `oldest`; tells each.
    pub(super) fn forget(&mut self, cf: Cf, oldest: u64, mut each: impl FnMut(Amounts)) {
        let mut freed = 0;
        self.slices.retain(|slice| {
            let keep = slice.cf != cf || slice.max_ts >= oldest;
            if !keep {
                each(slice.into());
                freed += slice.bytes.len() + BESIDES;
            }
            keep
        });
        self.held.shrink_to(self.held.bytes() - freed as u64);
    }

    /// Tells every slice.
    pub(super) fn each(&self, mut each: impl FnMut(Cf, Amounts)) {
        for slice in &self.slices {
            each(slice.cf, slice.into());
        }
    }

    /// The first object with an encrypted slice.
    pub(super) fn encrypted(&self) -> Option<&str> {
        let encrypted = self.slices.iter().filter(|slice| slice.encrypted);
        encrypted.map(|slice| &*slice.object).min()
    }

    /// The requests that read all of them.
    pub(super) fn finish(mut self, limits: &ReadLimits) -> Result<Reads, Damage> {
        self.slices
            .sort_unstable_by(|a, b| a.place().cmp(&b.place()));
        let groups = group(&self.slices, Packed::place, limits)?;
        let objects = self.slices.chunk_by(|a, b| a.object == b.object).count();
        Ok(Reads(Arc::new(Inner {
            slices: self.slices,
            groups,
            objects: objects as u64,
            held: self.held,
        })))
    }
}

/// The numbers of a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amounts {
    pub(super) entries: i64,
    pub(super) stored: u64,
    pub(super) plain: u64,
}

impl From<&Packed> for Amounts {
    fn from(slice: &Packed) -> Self {
        Amounts {
            entries: slice.entries,
            stored: slice.stored,
            plain: slice.plain,
        }
    }
}

impl From<&DataFileInfo> for Amounts {
    fn from(info: &DataFileInfo) -> Self {
        Amounts {
            entries: info.number_of_entries,
            stored: info.range_length,
            plain: info.length,
        }
    }
}

/// The range requests of a plan, in the order of object names and offsets. Clones share them, and
/// the memory that they hold.
#[derive(Clone)]
pub struct Reads(Arc<Inner>);

struct Inner {
    slices: Vec<Packed>,
    groups: Vec<Group>,
    objects: u64,
    held: Reservation,
}

impl Reads {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.groups.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.groups.is_empty()
    }

    /// Objects that are read.
    pub fn objects(&self) -> u64 {
        self.0.objects
    }

    /// Bytes of memory that they hold.
    pub fn memory(&self) -> u64 {
        self.0.held.bytes()
    }

    /// One after the other, each unpacked when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Read> + Send + '_ {
        let mut from = 0;
        self.0.groups.iter().map(move |group| {
            let slices = &self.0.slices[from..from + group.slices];
            from += group.slices;
            unpack(slices, group.range.clone())
        })
    }
}

fn unpack(slices: &[Packed], range: Option<Range<u64>>) -> Read {
    let object = slices.first().map(|first| first.object.to_string());
    Read {
        object: object.unwrap_or_default(),
        range,
        slices: slices.iter().map(Packed::unpack).collect(),
    }
}

impl std::fmt::Debug for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = &self.0;
        f.debug_struct("Reads")
            .field("requests", &inner.groups.len())
            .field("slices", &inner.slices.len())
            .field("objects", &inner.objects)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use pitr_budget::MemoryBudget;

    use super::*;

    fn slice(object: &str, number: u64) -> Slice {
        let info = DataFileInfo {
            sha256: vec![number as u8; 32].into(),
            number_of_entries: 3,
            min_ts: 5,
            max_ts: 5 + number,
            start_key: format!("first {number}").into(),
            end_key: format!("the last {number}").into(),
            cf: "default".to_owned(),
            length: 70,
            min_begin_ts_in_default_cf: 4,
            range_offset: number * 100,
            range_length: 60,
            compression_type: 3,
            crc64xor: 99,
            ..DataFileInfo::default()
        };
        Slice {
            object: object.to_owned(),
            cf: Cf::Default,
            info,
        }
    }

    fn packing(limit: u64) -> (Arc<MemoryBudget>, Packing) {
        let budget = MemoryBudget::new(limit);
        let packing = Packing::new(budget.nothing(), limit);
        (budget, packing)
    }

    #[test]
    fn what_is_unpacked_is_what_was_packed_in_the_order_of_objects_and_offsets() {
        let (budget, mut packing) = packing(1 << 20);
        let mut all = vec![slice("b", 2), slice("a", 7), slice("b", 1), slice("a", 3)];
        for slice in &all {
            packing.push(slice).unwrap();
        }
        let limits = ReadLimits { request: 0, gap: 0 };
        let reads = packing.finish(&limits).unwrap();
        assert_eq!((reads.len(), reads.objects()), (4, 2));
        all.sort_by_key(|s| (s.object.clone(), s.info.range_offset));
        let unpacked: Vec<Slice> = reads.iter().flat_map(|read| read.slices).collect();
        assert_eq!(unpacked, all);
        assert_eq!(reads.memory(), budget.used());
        drop(reads.clone());
        assert!(budget.used() > 0);
        drop(reads);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn slices_are_refused_at_the_bound_and_what_is_reserved_covers_the_list() {
        let (budget, mut packing) = packing(200_000);
        let mut taken = 0;
        while packing.push(&slice("object", taken)).is_ok() {
            taken += 1;
        }
        assert!(taken > 200, "{taken}");
        let list = packing.slices.capacity() * size_of::<Packed>();
        assert!(budget.used() >= list as u64 && budget.peak() <= 200_000);
        packing.forget(Cf::Default, 5 + taken, |_| ());
        assert_eq!(packing.len(), 0);
        assert!(budget.used() >= list as u64, "the list itself stays");
    }
}
