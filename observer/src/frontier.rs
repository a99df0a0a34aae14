//! The range frontier map: key range → ts up to which every change is durable.
//!
//! The only truth about progress (region ids are labels that splits and merges change). A report
//! is true for ever, so reports merge by maximum per key; the checkpoint of a task is the minimum
//! over its ranges. Called by [`crate::publish`], which raises it from flushed generations only,
//! and read by whoever starts a subscription.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use pitr_format::{EncodedRange, Ts};

use crate::router::TaskRanges;

/// What one subscription proves: with every change of `range` up to `base` durable before, every
/// change up to `ts` is durable now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeProgress {
    /// The keys, encoded.
    pub range: EncodedRange,
    /// Where the subscription's scan began: it says nothing about changes at or below.
    pub base: Ts,
    /// The proven ts, never below `base`.
    pub ts: Ts,
}

/// A step function over the encoded key space. Starts with one value everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontierMap {
    /// Start key of a step → its ts, up to the next start key. Holds the empty key always;
    /// neighbours differ.
    steps: BTreeMap<Bytes, Ts>,
}

impl FrontierMap {
    /// Every key at `start`: the published checkpoint, or the task's start ts.
    pub fn new(start: Ts) -> Self {
        FrontierMap {
            steps: BTreeMap::from([(Bytes::new(), start)]),
        }
    }

    /// Sets every key of `range` to the larger of its value and `ts`.
    pub fn raise(&mut self, range: &EncodedRange, ts: Ts) {
        self.apply(&RangeProgress {
            range: range.clone(),
            base: Ts::ZERO,
            ts,
        });
    }

    /// Raises the keys of `progress.range` whose value is at least `progress.base`. For the others
    /// the changes between their value and the base were never delivered: they stay, and the
    /// result is false.
    pub fn apply(&mut self, progress: &RangeProgress) -> bool {
        let range = &progress.range;
        if range.is_empty() {
            return true;
        }
        self.cut(&range.start);
        if !range.end.is_empty() {
            self.cut(&range.end);
        }
        let mut whole = true;
        for (_, value) in self
            .steps
            .range_mut(range.start.clone()..)
            .take_while(|(key, _)| range.end.is_empty() || key[..] < range.end[..])
        {
            if *value < progress.base {
                whole = false;
            } else {
                *value = progress.ts.max(*value);
            }
        }
        self.join_equal_neighbours(range);
        whole
    }

    /// The smallest value in `range`; [`Ts::MAX`] for an empty range.
    pub fn min_over(&self, range: &EncodedRange) -> Ts {
        if range.is_empty() {
            return Ts::MAX;
        }
        self.steps
            .range(range.start.clone()..)
            .take_while(|(key, _)| range.end.is_empty() || key[..] < range.end[..])
            .map(|(_, ts)| *ts)
            .chain([self.value_at(&range.start)])
            .min()
            .unwrap_or(Ts::MAX)
    }

    /// The checkpoint over several ranges: their smallest value.
    pub fn global(&self, ranges: &[EncodedRange]) -> Ts {
        ranges
            .iter()
            .map(|range| self.min_over(range))
            .min()
            .unwrap_or(Ts::MAX)
    }

    /// The first stretch of `ranges` that has got no further than all of them; nothing without a
    /// range.
    pub fn lowest(&self, ranges: &[EncodedRange]) -> Option<(EncodedRange, Ts)> {
        let ts = self.global(ranges);
        let range = ranges.iter().find(|range| self.min_over(range) == ts)?;
        Some((self.first_at(range, ts), ts))
    }

    /// The stretches of `range` whose value is below `ts`, joined where they touch, ascending.
    pub fn below(&self, range: &EncodedRange, ts: Ts) -> Vec<EncodedRange> {
        if range.is_empty() {
            return Vec::new();
        }
        let first = (range.start.clone(), self.value_at(&range.start));
        let inside = self
            .steps
            .range::<Bytes, _>((Excluded(&range.start), Unbounded));
        let inside = inside.take_while(|(key, _)| range.end.is_empty() || key[..] < range.end[..]);
        let steps = inside.map(|(key, value)| (key.clone(), *value));
        let mut stretches: Vec<EncodedRange> = Vec::new();
        let mut open = None;
        for (key, value) in std::iter::once(first).chain(steps) {
            match (open.take(), value < ts) {
                (None, true) => open = Some(key),
                (Some(start), true) => open = Some(start),
                (Some(start), false) => stretches.push(EncodedRange::new(start, key)),
                (None, false) => {}
            }
        }
        stretches.extend(open.map(|start| EncodedRange::new(start, range.end.clone())));
        stretches
    }

    /// The first stretch of `range` whose value is `ts`; the whole range if none is.
    fn first_at(&self, range: &EncodedRange, ts: Ts) -> EncodedRange {
        let inside = |key: &Bytes| range.end.is_empty() || key[..] < range.end[..];
        let steps = || {
            let after = self.steps.range(range.start.clone()..);
            after.take_while(|(key, _)| inside(key))
        };
        let start = match self.value_at(&range.start) == ts {
            true => Some(range.start.clone()),
            false => steps()
                .find(|(_, value)| **value == ts)
                .map(|(key, _)| key.clone()),
        };
        let Some(start) = start else {
            return range.clone();
        };
        let end = steps().find(|(key, value)| **key > start && **value != ts);
        let end = end.map_or(range.end.clone(), |(key, _)| key.clone());
        EncodedRange::new(start, end)
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Never true: a frontier covers every key.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn value_at(&self, key: &[u8]) -> Ts {
        self.steps
            .range(..=Bytes::copy_from_slice(key))
            .next_back()
            .map_or(Ts::ZERO, |(_, ts)| *ts)
    }

    fn cut(&mut self, at: &Bytes) {
        let value = self.value_at(at);
        self.steps.entry(at.clone()).or_insert(value);
    }

    /// Removes the starts inside `range` and at its end that no longer change the value.
    fn join_equal_neighbours(&mut self, range: &EncodedRange) {
        let mut before = self
            .steps
            .range(..range.start.clone())
            .next_back()
            .map(|(_, ts)| *ts);
        let mut needless = Vec::new();
        for (key, ts) in self.steps.range(range.start.clone()..) {
            if before == Some(*ts) {
                needless.push(key.clone());
            }
            before = Some(*ts);
            if !range.end.is_empty() && key[..] >= range.end[..] {
                break;
            }
        }
        for key in needless {
            self.steps.remove(&key);
        }
    }
}

/// The frontier of one task: several parts read it, the publisher raises it. Keys outside of the
/// task's ranges count for nothing: a region that reaches beyond them is asked for its part inside.
#[derive(Clone, Debug)]
pub struct SharedFrontier {
    map: Arc<RwLock<FrontierMap>>,
    ranges: Arc<TaskRanges>,
}

impl SharedFrontier {
    /// Every key of `ranges` at `start`.
    pub fn new(ranges: TaskRanges, start: Ts) -> Self {
        SharedFrontier {
            map: Arc::new(RwLock::new(FrontierMap::new(start))),
            ranges: Arc::new(ranges),
        }
    }

    /// The ts from which a subscription of `range` must begin: the smallest value of its keys that
    /// belong to the task, or the task's checkpoint if none does.
    pub fn min_over(&self, range: &EncodedRange) -> Ts {
        let map = self.map.read();
        let inside = self.ranges.intersect(range).map(|part| map.min_over(&part));
        inside
            .min()
            .unwrap_or_else(|| map.global(self.ranges.as_slice()))
    }

    /// The checkpoint of the whole task.
    pub fn global(&self) -> Ts {
        self.map.read().global(self.ranges.as_slice())
    }

    /// The first part of the task's ranges that has got no further than the checkpoint; nothing for
    /// a task without ranges.
    pub fn lowest(&self) -> Option<(EncodedRange, Ts)> {
        self.map.read().lowest(self.ranges.as_slice())
    }

    /// The map as it is now; its steps outside of the task's ranges mean nothing.
    pub fn snapshot(&self) -> FrontierMap {
        self.map.read().clone()
    }

    /// Raises every key of the task to the global checkpoint that holds: a truth for all of them.
    pub(crate) fn raise_all(&self, global: Ts) {
        let mut map = self.map.write();
        for range in self.ranges.as_slice() {
            map.raise(range, global);
        }
    }

    /// Raises what `progress` proves inside the task's ranges; returns the parts that it skips
    /// because they lie below its base.
    pub(crate) fn apply(&self, progress: &RangeProgress) -> Vec<EncodedRange> {
        let mut map = self.map.write();
        let parts = self.ranges.intersect(&progress.range);
        parts
            .filter(|part| {
                !map.apply(&RangeProgress {
                    range: part.clone(),
                    ..progress.clone()
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u8, end: u8) -> EncodedRange {
        let bound = |b: u8| if b == 0 { vec![] } else { vec![b] };
        EncodedRange::new(bound(start), bound(end))
    }

    #[test]
    fn a_report_raises_only_its_range_and_never_lowers() {
        let mut map = FrontierMap::new(Ts::new(10));
        map.raise(&range(3, 7), Ts::new(20));
        map.raise(&range(5, 0), Ts::new(15));
        assert_eq!(map.min_over(&range(3, 7)), Ts::new(20));
        assert_eq!(map.min_over(&range(7, 9)), Ts::new(15));
        assert_eq!(map.min_over(&EncodedRange::ALL), Ts::new(10));
        assert_eq!(map.global(&[range(3, 5), range(8, 0)]), Ts::new(15));
    }

    #[test]
    fn progress_from_a_base_above_the_frontier_raises_nothing_there() {
        let mut map = FrontierMap::new(Ts::new(10));
        map.raise(&range(5, 0), Ts::new(30));
        let whole = map.apply(&RangeProgress {
            range: range(3, 7),
            base: Ts::new(30),
            ts: Ts::new(50),
        });
        assert!(!whole);
        assert_eq!(map.min_over(&range(3, 5)), Ts::new(10));
        assert_eq!(map.min_over(&range(5, 7)), Ts::new(50));
    }

    #[test]
    fn equal_neighbours_are_one_step_again() {
        let mut map = FrontierMap::new(Ts::new(10));
        for key in 1..100 {
            map.raise(&range(key, key + 1), Ts::new(20));
        }
        map.raise(&range(0, 1), Ts::new(20));
        map.raise(&range(100, 0), Ts::new(20));
        assert_eq!(map, FrontierMap::new(Ts::new(20)));
    }

    #[test]
    fn keys_outside_of_the_task_hold_nothing_back() {
        let shared = SharedFrontier::new(TaskRanges::new([range(3, 7)]), Ts::new(10));
        let report = RangeProgress {
            range: range(2, 5),
            base: Ts::new(10),
            ts: Ts::new(20),
        };
        assert!(shared.apply(&report).is_empty());
        assert_eq!(shared.min_over(&range(0, 5)), Ts::new(20));
        assert_eq!(shared.min_over(&range(0, 0)), Ts::new(10));
        assert_eq!(shared.min_over(&range(8, 9)), shared.global());
        let late = RangeProgress {
            range: EncodedRange::ALL,
            base: Ts::new(15),
            ts: Ts::new(30),
        };
        assert_eq!(shared.apply(&late), [range(3, 7)]);
        assert_eq!(shared.min_over(&range(4, 5)), Ts::new(30));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_map_equals_a_naive_array_of_keys(
            reports in prop::collection::vec((0u8..12, 0u8..12, 0u64..30, 0u64..40), 0..30),
            ask in (0u8..12, 0u8..12),
        ) {
            let mut map = FrontierMap::new(Ts::new(5));
            let mut naive = [5u64; 13];
            for (start, end, base, ts) in reports {
                let report = RangeProgress {
                    range: range(start, end),
                    base: Ts::new(base),
                    ts: Ts::new(ts.max(base)),
                };
                let mut whole = true;
                for (key, value) in naive.iter_mut().enumerate() {
                    if key >= start.into() && (end == 0 || key < end.into()) {
                        if *value < base { whole = false } else { *value = (*value).max(ts.max(base)) }
                    }
                }
                prop_assert_eq!(map.apply(&report), whole);
            }
            let expect = naive.iter().enumerate()
                .filter(|(key, _)| *key >= ask.0.into() && (ask.1 == 0 || *key < ask.1.into()))
                .map(|(_, v)| *v).min().unwrap_or(u64::MAX);
            prop_assert_eq!(map.min_over(&range(ask.0, ask.1)), Ts::new(expect));
            let steps: Vec<_> = map.steps.values().collect();
            prop_assert!(steps.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn the_lowest_part_is_the_first_stretch_of_the_tasks_ranges_that_stands_at_the_checkpoint() {
        let shared = SharedFrontier::new(TaskRanges::new([range(1, 3), range(5, 9)]), Ts::new(10));
        assert_eq!(shared.lowest(), Some((range(1, 3), Ts::new(10))));
        let raise = |start, end, ts| {
            shared.map.write().raise(&range(start, end), Ts::new(ts));
        };
        raise(0, 6, 20);
        assert_eq!(shared.lowest(), Some((range(6, 9), Ts::new(10))));
        raise(7, 9, 30);
        assert_eq!(shared.lowest(), Some((range(6, 7), Ts::new(10))));
        raise(6, 7, 40);
        assert_eq!(shared.lowest(), Some((range(1, 3), Ts::new(20))));
        let nothing = SharedFrontier::new(TaskRanges::new([]), Ts::new(1));
        assert_eq!(nothing.lowest(), None);
    }
}
