//! Which rows belong to the task, and which shard a subscription belongs to.
//!
//! A region may reach beyond the task's ranges; its rows outside are dropped here and nowhere
//! else. Source of the rule: tikv/tikv `components/backup-stream/src/router.rs`; unlike there,
//! overlapping task ranges are joined instead of being refused in silence.

use pitr_format::EncodedRange;

use crate::source::SubId;

/// The task's key ranges: sorted, not empty, neither overlapping nor touching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRanges(Vec<EncodedRange>);

impl TaskRanges {
    /// Sorts and joins `ranges` (encoded bounds).
    pub fn new(ranges: impl IntoIterator<Item = EncodedRange>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_by(|a, b| a.start.cmp(&b.start));
        let mut joined: Vec<EncodedRange> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match joined.last_mut() {
                Some(last) if last.end.is_empty() || range.start <= last.end => {
                    if range.end.is_empty() || (!last.end.is_empty() && range.end > last.end) {
                        last.end = range.end;
                    }
                }
                _ => joined.push(range),
            }
        }
        TaskRanges(joined)
    }

    /// Whether `key` (encoded, with or without ts) lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        let behind = self.0.partition_point(|range| range.begins_by(key));
        behind > 0 && self.0[behind - 1].contains(key)
    }

    /// The parts of `range` that belong to the task.
    pub fn intersect<'a>(
        &'a self,
        range: &'a EncodedRange,
    ) -> impl Iterator<Item = EncodedRange> + 'a {
        self.0.iter().filter_map(|own| own.intersect(range))
    }

    /// The ranges in key order.
    pub fn as_slice(&self) -> &[EncodedRange] {
        &self.0
    }
}

/// The shard of a subscription. By subscription and not by region: all events of one subscription
/// keep their order, and nobody needs a table of who is where.
pub fn shard_of(sub: SubId, shards: usize) -> usize {
    (sub % shards.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use pitr_format::{EncodedKey, Ts};
    use proptest::prelude::*;

    use super::*;

    fn range(start: u8, end: u8) -> EncodedRange {
        let bound = |b: u8| if b == 0 { vec![] } else { vec![b] };
        EncodedRange::new(bound(start), bound(end))
    }

    #[test]
    fn overlapping_and_touching_ranges_become_one() {
        let ranges = TaskRanges::new([range(8, 9), range(1, 3), range(3, 4), range(2, 3)]);
        assert_eq!(ranges.as_slice(), [range(1, 4), range(8, 9)]);
        let all = TaskRanges::new([range(5, 0), range(0, 6), range(7, 8)]);
        assert_eq!(all.as_slice(), [EncodedRange::ALL]);
    }

    #[test]
    fn a_versioned_key_at_the_end_bound_is_outside() {
        let bound = |raw: &[u8]| EncodedKey::encode(raw).into_bytes();
        let ranges = TaskRanges::new([EncodedRange::new(bound(b"m"), bound(b"n"))]);
        let at = |raw: &[u8]| EncodedKey::encode(raw).at(Ts::new(7)).into_bytes();
        assert!(ranges.contains(&at(b"m")));
        assert!(ranges.contains(&at(b"mzzzzzzzzzz")));
        assert!(!ranges.contains(&at(b"n")));
        assert!(!ranges.contains(&at(b"l")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn joined_ranges_contain_exactly_the_keys_of_their_parts(
            parts in prop::collection::vec((0u8..20, 0u8..20), 0..8),
            key in 0u8..22,
        ) {
            let parts: Vec<_> = parts.into_iter().map(|(a, b)| range(a, b)).collect();
            let expect = parts.iter().any(|part| part.contains(&[key]));
            prop_assert_eq!(TaskRanges::new(parts).contains(&[key]), expect);
        }
    }
}
