//! The open slices of one shard.
//!
//! A slice holds the records of one (table, region, column family, operation, is_meta): restore
//! treats a slice as one kind of write. A slice that reached the size limit is closed and a new one
//! of the same key begins, so that none comes near the 4 GiB that readers can address. Sealing only
//! hands the buffers over; compression happens off the shard ([`crate::flush::generation`]).

use std::collections::BTreeMap;

use pitr_format::slice::{SliceBuildError, SliceBuilder, SliceId, classify_encoded};
use pitr_format::{Cf, KvRecord, OpKind, Ts};

/// Order of slices inside a generation: data before meta, then table, region, column family,
/// operation, so that what is restored together lies together.
pub type SliceOrder = (bool, i64, u64, Cf, OpKind);

/// The place of a slice in a generation.
pub fn order_of(id: &SliceId) -> SliceOrder {
    (id.is_meta, id.table_id, id.region_id, id.cf, id.op)
}

/// All slices of a shard since the last seal.
pub struct OpenSlices {
    slice_limit: u64,
    open: BTreeMap<SliceOrder, SliceBuilder>,
    full: Vec<SliceBuilder>,
    plain_bytes: u64,
}

impl OpenSlices {
    /// `slice_limit`: plaintext bytes at which a slice is closed.
    pub fn new(slice_limit: u64) -> Self {
        OpenSlices {
            slice_limit: slice_limit.max(1),
            open: BTreeMap::new(),
            full: Vec::new(),
            plain_bytes: 0,
        }
    }

    /// Appends one record of `region_id`, whose resolved ts is `resolved` now. After an error no
    /// slice has changed.
    pub fn append(
        &mut self,
        region_id: u64,
        resolved: Ts,
        record: &KvRecord,
    ) -> Result<(), SliceBuildError> {
        let (table_id, is_meta) = classify_encoded(&record.key);
        let id = SliceId {
            table_id,
            region_id,
            cf: record.cf,
            op: record.op,
            is_meta,
        };
        let order = order_of(&id);
        let slice = self
            .open
            .entry(order)
            .or_insert_with(|| SliceBuilder::new(id));
        let before = slice.plain_len();
        slice.append(record)?;
        slice.note_resolved(resolved);
        let after = slice.plain_len();
        self.plain_bytes += (after - before) as u64;
        if after as u64 >= self.slice_limit {
            self.full.extend(self.open.remove(&order));
        }
        Ok(())
    }

    /// Plaintext bytes held.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Hands over everything and starts anew.
    pub fn seal(&mut self) -> Vec<SliceBuilder> {
        self.plain_bytes = 0;
        let mut sealed = std::mem::take(&mut self.full);
        let open = std::mem::take(&mut self.open).into_values();
        // A record that was refused may have left an empty one behind.
        sealed.extend(open.filter(|slice| !slice.is_empty()));
        sealed
    }
}

#[cfg(test)]
mod tests {
    use pitr_format::EncodedKey;

    use super::*;

    fn put(key: &[u8], ts: u64) -> KvRecord {
        KvRecord {
            cf: Cf::Default,
            op: OpKind::Put,
            key: EncodedKey::encode(key).at(Ts::new(ts)).into_bytes(),
            value: vec![7; 100].into(),
        }
    }

    #[test]
    fn a_slice_at_its_limit_is_closed_and_a_new_one_of_the_same_key_begins() {
        let mut slices = OpenSlices::new(300);
        for ts in 1..=7 {
            slices.append(5, Ts::new(ts), &put(b"k", ts)).unwrap();
        }
        let record = 4 + 9 + 8 + 4 + 100;
        assert_eq!(slices.plain_bytes(), 7 * record);
        let sealed = slices.seal();
        let lengths: Vec<_> = sealed.iter().map(SliceBuilder::plain_len).collect();
        assert_eq!(lengths, [375, 375, 125]);
        assert_eq!(slices.plain_bytes(), 0);
        assert!(slices.seal().is_empty());
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
            slices.append(region, Ts::ZERO, &put(key, 3)).unwrap();
        }
        let mut ids: Vec<_> = slices.seal().iter().map(|s| order_of(s.id())).collect();
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
        assert!(slices.append(1, Ts::ZERO, &record).is_err());
        assert_eq!(slices.plain_bytes(), 0);
        assert!(slices.seal().is_empty());
    }
}
