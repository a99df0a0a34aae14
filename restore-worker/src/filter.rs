//! Which records of a slice are restored, and as what.
//!
//! Kept are write records of type put and delete with start < commit ts ≤ T. Values of the
//! default column family are candidates with shift ts ≤ start ts ≤ T: whether a kept write record
//! refers to them is known only after the sort (see `cut`).
//!
//! Records that *delete a key of a column family* (rollback clean-up) are never applied: what they
//! remove is a rollback record, or the value of a transaction that was rolled back, and neither
//! is restored anyway. A delete that shares its key with a kept record is older than it: TiKV
//! collapses a rollback record at ts X, then another transaction commits at X (tikv/tikv
//! `src/storage/txn/actions/cleanup.rs`); applying it "after all puts" would lose the commit.

use pitr_format::key::{TS_LEN, check_prefix, decode_prefix, split_versioned};
use pitr_format::write_cf::{WriteRecord, WriteType, WriteView};
use pitr_format::{Cf, EncodedRange, Ts};

use crate::rewrite::Rewrite;

/// Why records were left out, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Commit ts (write) or start ts (default) outside the window.
    pub out_of_window: u64,
    /// Write records of type lock or rollback.
    pub lock_or_rollback: u64,
    /// Outside the ranges, or without the prefix that is renamed.
    pub out_of_range: u64,
    /// Values that no kept write record refers to.
    pub unreferenced_value: u64,
}

impl Filtered {
    /// All classes together.
    pub fn total(&self) -> u64 {
        self.out_of_window + self.lock_or_rollback + self.out_of_range + self.unreferenced_value
    }

    /// Adds another count.
    pub fn merge(&mut self, other: &Filtered) {
        self.out_of_window += other.out_of_window;
        self.lock_or_rollback += other.lock_or_rollback;
        self.out_of_range += other.out_of_range;
        self.unreferenced_value += other.unreferenced_value;
    }

    fn count(&mut self, class: LeftOut) {
        match class {
            LeftOut::Window => self.out_of_window += 1,
            LeftOut::LockOrRollback => self.lock_or_rollback += 1,
            LeftOut::Range => self.out_of_range += 1,
        }
    }
}

enum LeftOut {
    Window,
    LockOrRollback,
    Range,
}

/// Takes what passes the filter.
pub trait Sink {
    /// Why the sink failed.
    type Error;
    /// A record to restore (or a candidate, for the default column family).
    fn record(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), Self::Error>;
    /// A kept write record needs the value of this versioned key in the default column family.
    fn reference(&mut self, key: &[u8]) -> Result<(), Self::Error>;
}

/// Why a record cannot be judged or passed on.
#[derive(Debug)]
pub enum FilterError<E> {
    /// Key or value is not what the log holds.
    Malformed(String),
    /// The sink's own failure.
    Sink(E),
}

/// The window of a restore as records see it.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Write records at or below are left out.
    pub start: Ts,
    /// Values below are left out; zero = none.
    pub shift: Ts,
    /// Records above are left out.
    pub restored: Ts,
    /// Source ranges; none = everything.
    pub ranges: Vec<EncodedRange>,
    /// Applied to what is kept.
    pub rewrite: Rewrite,
}

impl Filter {
    /// Judges one record, hands it on or counts it.
    pub fn apply<S: Sink>(
        &self,
        cf: Cf,
        key: &[u8],
        value: &[u8],
        sink: &mut S,
        filtered: &mut Filtered,
    ) -> Result<(), FilterError<S::Error>> {
        let malformed = |e: &dyn std::fmt::Display| {
            FilterError::Malformed(format!("{cf} record {}: {e}", hex::encode_upper(key)))
        };
        let (encoded, ts) = split_versioned(key).map_err(|e| malformed(&e))?;
        let used = check_prefix(encoded).map_err(|e| malformed(&e))?;
        if used != encoded.len() {
            return Err(malformed(&"bytes between key and ts"));
        }
        if !self.in_ranges(encoded) {
            filtered.count(LeftOut::Range);
            return Ok(());
        }
        let after_start = match cf {
            Cf::Write => ts > self.start,
            Cf::Default => ts >= self.shift,
        };
        if !after_start || ts > self.restored {
            filtered.count(LeftOut::Window);
            return Ok(());
        }
        let renamed = if self.rewrite.is_identity() {
            None
        } else {
            let (user_key, _) = decode_prefix(encoded).map_err(|e| malformed(&e))?;
            let Some(new) = self.rewrite.apply(&user_key, &key[encoded.len()..]) else {
                filtered.count(LeftOut::Range);
                return Ok(());
            };
            Some(new)
        };
        let key = renamed.as_deref().unwrap_or(key);
        if cf == Cf::Default {
            return sink.record(cf, key, value).map_err(FilterError::Sink);
        }
        let record = WriteView::parse(value).map_err(|e| malformed(&e))?;
        write_record(key, value, record, sink, filtered).map_err(FilterError::Sink)
    }

    fn in_ranges(&self, encoded: &[u8]) -> bool {
        self.ranges.is_empty() || self.ranges.iter().any(|r| r.contains(encoded))
    }
}

fn write_record<S: Sink>(
    key: &[u8],
    value: &[u8],
    record: WriteView<'_>,
    sink: &mut S,
    filtered: &mut Filtered,
) -> Result<(), S::Error> {
    match record.kind {
        WriteType::Lock | WriteType::Rollback => {
            filtered.count(LeftOut::LockOrRollback);
            return Ok(());
        }
        WriteType::Put if record.short_value.is_none() => {
            let mut reference = Vec::with_capacity(key.len());
            reference.extend_from_slice(&key[..key.len() - TS_LEN]);
            reference.extend_from_slice(&(!record.start_ts.get()).to_be_bytes());
            sink.reference(&reference)?;
        }
        WriteType::Put | WriteType::Delete => {}
    }
    if record.overlapped_rollback || record.gc_fence.is_some() {
        let mut record = record.to_record();
        without_rollback_marks(&mut record);
        return sink.record(Cf::Write, key, &record.to_bytes());
    }
    sink.record(Cf::Write, key, value)
}

/// Removes the marks that a rollback of the same ts leaves in a write record. The log may hold the record with and without them; they protect against transactions that
/// no longer exist after a restore, and a fence above T would hide the version for ever.
pub(crate) fn without_rollback_marks(record: &mut WriteRecord) {
    record.overlapped_rollback = false;
    record.gc_fence = None;
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_format::EncodedKey;

    use super::*;

    #[derive(Default)]
    struct Seen {
        records: Vec<(Cf, Vec<u8>, Vec<u8>)>,
        references: Vec<Vec<u8>>,
    }

    impl Sink for Seen {
        type Error = ();
        fn record(&mut self, cf: Cf, key: &[u8], value: &[u8]) -> Result<(), ()> {
            self.records.push((cf, key.to_vec(), value.to_vec()));
            Ok(())
        }
        fn reference(&mut self, key: &[u8]) -> Result<(), ()> {
            self.references.push(key.to_vec());
            Ok(())
        }
    }

    fn filter() -> Filter {
        Filter {
            start: Ts::new(10),
            shift: Ts::new(5),
            restored: Ts::new(20),
            ranges: vec![EncodedRange::new(
                EncodedKey::encode(b"a").into_bytes(),
                EncodedKey::encode(b"n").into_bytes(),
            )],
            rewrite: Rewrite::identity(),
        }
    }

    fn run(filter: &Filter, cf: Cf, key: &[u8], ts: u64, value: &[u8]) -> (Seen, Filtered) {
        let key = EncodedKey::encode(key).at(Ts::new(ts));
        let (mut seen, mut filtered) = (Seen::default(), Filtered::default());
        filter
            .apply(cf, key.as_bytes(), value, &mut seen, &mut filtered)
            .unwrap();
        (seen, filtered)
    }

    fn put(start: u64, short: Option<&'static [u8]>) -> Bytes {
        WriteRecord::put(Ts::new(start), short.map(Bytes::from_static)).to_bytes()
    }

    #[test]
    fn the_window_excludes_its_start_and_includes_its_end_for_writes() {
        let short = put(3, Some(b"v"));
        for (ts, kept) in [(10, 0), (11, 1), (20, 1), (21, 0)] {
            let (seen, filtered) = run(&filter(), Cf::Write, b"k", ts, &short);
            assert_eq!(
                (seen.records.len(), filtered.out_of_window),
                (kept, 1 - kept as u64)
            );
        }
    }

    #[test]
    fn values_are_candidates_from_the_shift_ts_on() {
        for (ts, kept) in [(4, 0), (5, 1), (20, 1), (21, 0)] {
            let (seen, filtered) = run(&filter(), Cf::Default, b"k", ts, b"long");
            assert_eq!(
                (seen.records.len(), filtered.out_of_window),
                (kept, 1 - kept as u64)
            );
        }
    }

    #[test]
    fn a_long_put_refers_to_its_value_by_start_ts_and_others_do_not() {
        let (seen, _) = run(&filter(), Cf::Write, b"k", 15, &put(3, None));
        assert_eq!(
            seen.references,
            vec![EncodedKey::encode(b"k").at(Ts::new(3)).as_bytes().to_vec()]
        );
        let delete = WriteRecord::delete(Ts::new(3)).to_bytes();
        for value in [put(3, Some(b"")), delete] {
            let (seen, _) = run(&filter(), Cf::Write, b"k", 15, &value);
            assert_eq!((seen.records.len(), seen.references.len()), (1, 0));
        }
    }

    #[test]
    fn locks_rollbacks_and_keys_outside_the_ranges_are_counted_by_class() {
        let rollback = WriteRecord {
            kind: WriteType::Rollback,
            ..WriteRecord::delete(Ts::new(15))
        };
        let (seen, filtered) = run(&filter(), Cf::Write, b"k", 15, &rollback.to_bytes());
        assert_eq!((seen.records.len(), filtered.lock_or_rollback), (0, 1));
        let (seen, filtered) = run(&filter(), Cf::Write, b"n", 15, &put(3, None));
        assert_eq!((seen.references.len(), filtered.out_of_range), (0, 1));
        assert_eq!(filtered.total(), 1);
    }

    #[test]
    fn marks_of_an_overlapped_rollback_are_removed_and_the_rest_stays() {
        let plain = WriteRecord {
            txn_source: 7,
            ..WriteRecord::put(Ts::new(3), Some(Bytes::from("v")))
        };
        let marked = WriteRecord {
            overlapped_rollback: true,
            gc_fence: Some(Ts::new(30)),
            ..plain.clone()
        };
        let (seen, _) = run(&filter(), Cf::Write, b"k", 15, &marked.to_bytes());
        assert_eq!(seen.records[0].2, plain.to_bytes());
    }

    #[test]
    fn a_renamed_record_and_its_reference_move_together() {
        let renamed = Filter {
            ranges: Vec::new(),
            rewrite: Rewrite::prefix("k", "zz"),
            ..filter()
        };
        let (seen, _) = run(&renamed, Cf::Write, b"k1", 15, &put(3, None));
        assert_eq!(
            seen.records[0].1,
            EncodedKey::encode(b"zz1").at(Ts::new(15)).as_bytes()
        );
        assert_eq!(
            seen.references[0],
            EncodedKey::encode(b"zz1").at(Ts::new(3)).as_bytes()
        );
        let (_, filtered) = run(&renamed, Cf::Write, b"x1", 15, &put(3, None));
        assert_eq!(filtered.out_of_range, 1);
    }

    #[test]
    fn a_malformed_key_or_write_record_is_an_error() {
        let (mut seen, mut filtered) = (Seen::default(), Filtered::default());
        let mut apply = |cf, key: &[u8], value: &[u8]| {
            filter()
                .apply(cf, key, value, &mut seen, &mut filtered)
                .is_err()
        };
        assert!(apply(Cf::Default, b"short", b""));
        assert!(apply(Cf::Default, &[1; 17], b""));
        let key = EncodedKey::encode(b"k").at(Ts::new(15));
        assert!(apply(Cf::Write, key.as_bytes(), b"X"));
    }
}
