//! Ranges that do not overlap each other, found by overlap in logarithmic time: an audit compares
//! every region of a store with what is tracked.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::EncodedRange;

pub(super) struct RangeIndex<T> {
    by_start: BTreeMap<Bytes, (EncodedRange, T)>,
}

impl<T> RangeIndex<T> {
    pub fn new() -> Self {
        RangeIndex {
            by_start: BTreeMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Adds a range that overlaps no other.
    pub fn insert(&mut self, range: EncodedRange, value: T) {
        debug_assert!(self.overlapping(&range).next().is_none());
        self.by_start.insert(range.start.clone(), (range, value));
    }

    pub fn remove(&mut self, range: &EncodedRange) -> Option<T> {
        Some(self.by_start.remove(&range.start)?.1)
    }

    pub fn pop_first(&mut self) -> Option<(EncodedRange, T)> {
        Some(self.by_start.pop_first()?.1)
    }

    pub fn clear(&mut self) {
        self.by_start.clear();
    }

    /// Entries that share a key with `range`, descending.
    pub fn overlapping<'a>(
        &'a self,
        range: &'a EncodedRange,
    ) -> impl Iterator<Item = &'a (EncodedRange, T)> {
        let below = match range.end.is_empty() {
            true => self.by_start.range::<Bytes, _>(..),
            false => self.by_start.range::<Bytes, _>(..&range.end),
        };
        // The entries do not overlap: the first one that ends before the range ends the search.
        let reaches =
            |(other, _): &&(EncodedRange, T)| other.end.is_empty() || other.end > range.start;
        below.rev().map(|(_, entry)| entry).take_while(reaches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> EncodedRange {
        EncodedRange::new(start, end)
    }

    #[test]
    fn overlap_is_sharing_a_key_not_touching() {
        let mut index = RangeIndex::new();
        for (start, end) in [("", "b"), ("b", "d"), ("f", "h"), ("p", "")] {
            index.insert(range(start, end), start);
        }
        let found = |start, end| -> Vec<&str> {
            index.overlapping(&range(start, end)).map(|e| e.1).collect()
        };
        assert_eq!(found("a", "c"), ["b", ""]);
        assert_eq!(found("d", "f"), Vec::<&str>::new());
        assert_eq!(found("g", "h"), ["f"]);
        assert_eq!(found("h", ""), ["p"]);
        assert_eq!(found("", ""), ["p", "f", "b", ""]);
        assert_eq!(found("z", "zz"), ["p"]);
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod model_tests;
