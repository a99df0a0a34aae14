//! The span map of one task: what the stores told to be durable, merged. Pure.
//!
//! Every report is true for ever, so reports merge by maximum per key, in any order, from any
//! store, over splits, merges and moves of leaders. The checkpoint of the task is the minimum over
//! its ranges: one part that nobody spoke for holds all of it. Used by [`crate::desk`], and by the
//! simulation.

use pitr_format::{EncodedRange, Ts};
use pitr_observer::{FrontierMap, TaskRanges};

/// What is durable of a task.
#[derive(Clone, Debug)]
pub struct SpanMap {
    map: FrontierMap,
    ranges: TaskRanges,
}

impl SpanMap {
    /// Begins at the checkpoint that PD holds, which is a truth for every range; at nothing for a
    /// task that has none yet, as a stock advancer does.
    pub fn new(ranges: TaskRanges, stored: Option<Ts>) -> Self {
        SpanMap {
            map: FrontierMap::new(stored.unwrap_or(Ts::ZERO)),
            ranges,
        }
    }

    /// Somebody told that everything of `range` up to `ts` is durable.
    pub fn told(&mut self, range: &EncodedRange, ts: Ts) {
        for part in self.ranges.intersect(range) {
            self.map.raise(&part, ts);
        }
    }

    /// The checkpoint of the whole task; zero while some part was never told, and for a task
    /// without ranges.
    pub fn global(&self) -> Ts {
        match self.ranges.as_slice() {
            [] => Ts::ZERO,
            ranges => self.map.global(ranges),
        }
    }

    /// The first part that has got no further than the checkpoint.
    pub fn lowest(&self) -> Option<(EncodedRange, Ts)> {
        self.map.lowest(self.ranges.as_slice())
    }

    /// The parts that have not reached `ts`, joined where they touch, in key order.
    pub fn below(&self, ts: Ts) -> Vec<EncodedRange> {
        let ranges = self.ranges.as_slice().iter();
        ranges.flat_map(|range| self.map.below(range, ts)).collect()
    }

    /// Number of steps of the map: what it costs.
    pub fn steps(&self) -> usize {
        self.map.len()
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

    fn spans(ranges: impl IntoIterator<Item = EncodedRange>, stored: Option<u64>) -> SpanMap {
        SpanMap::new(TaskRanges::new(ranges), stored.map(Ts::new))
    }

    #[test]
    fn a_new_task_moves_only_when_every_part_was_spoken_for() {
        let mut spans = spans([range(3, 9)], None);
        spans.told(&range(0, 6), Ts::new(50));
        assert_eq!(spans.global(), Ts::ZERO);
        assert_eq!(spans.lowest(), Some((range(6, 9), Ts::ZERO)));
        spans.told(&range(7, 0), Ts::new(40));
        assert_eq!(spans.global(), Ts::ZERO, "a hole of one key holds all");
        spans.told(&range(6, 7), Ts::new(30));
        assert_eq!(spans.global(), Ts::new(30));
    }

    #[test]
    fn a_task_with_a_stored_checkpoint_begins_there_and_never_below() {
        let mut spans = spans([range(3, 9)], Some(70));
        assert_eq!(spans.global(), Ts::new(70));
        spans.told(&range(3, 9), Ts::new(60));
        assert_eq!(spans.global(), Ts::new(70));
    }

    #[test]
    fn a_task_without_ranges_never_has_a_checkpoint() {
        let mut spans = spans([], Some(70));
        spans.told(&EncodedRange::ALL, Ts::new(90));
        assert_eq!((spans.global(), spans.lowest()), (Ts::ZERO, None));
        assert!(spans.below(Ts::MAX).is_empty());
    }

    #[test]
    fn a_region_that_reaches_over_the_task_counts_for_its_part_inside_only() {
        let mut spans = spans([range(3, 5), range(7, 9)], None);
        spans.told(&EncodedRange::ALL, Ts::new(20));
        assert_eq!(spans.global(), Ts::new(20));
        assert_eq!(spans.steps(), 5, "nothing is kept for keys outside");
    }

    #[test]
    fn what_lags_is_told_in_pieces_that_do_not_touch() {
        let mut spans = spans([range(1, 5), range(7, 0)], Some(10));
        spans.told(&range(2, 3), Ts::new(30));
        spans.told(&range(3, 4), Ts::new(15));
        spans.told(&range(7, 8), Ts::new(30));
        let below = |ts| spans.below(Ts::new(ts));
        assert_eq!(below(10), []);
        assert_eq!(below(30), [range(1, 2), range(3, 5), range(8, 0)]);
        assert_eq!(below(15), [range(1, 2), range(4, 5), range(8, 0)]);
        assert_eq!(below(31), [range(1, 5), range(7, 0)]);
    }

    /// Reports over twelve keys; each with the ts that is told.
    fn reports() -> impl Strategy<Value = Vec<(u8, u8, u64)>> {
        prop::collection::vec((0u8..12, 0u8..12, 1u64..40), 0..30)
    }

    /// The largest ts told for each key.
    fn naive(reports: &[(u8, u8, u64)]) -> [u64; 13] {
        let mut keys = [0; 13];
        for (start, end, ts) in reports {
            for (key, value) in keys.iter_mut().enumerate() {
                if key >= usize::from(*start) && (*end == 0 || key < usize::from(*end)) {
                    *value = (*ts).max(*value);
                }
            }
        }
        keys
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_checkpoint_is_the_minimum_of_the_largest_that_was_told_of_each_key(
            reports in reports(),
            task in (0u8..12, 0u8..12),
        ) {
            let task_range = range(task.0, task.1);
            prop_assume!(!task_range.is_empty());
            let mut spans = spans([task_range.clone()], None);
            let mut before = Ts::ZERO;
            for (start, end, ts) in &reports {
                spans.told(&range(*start, *end), Ts::new(*ts));
                prop_assert!(spans.global() >= before, "it never falls");
                before = spans.global();
            }
            let keys = naive(&reports);
            // Key 0 stands for everything below the byte 1; the last one for all above.
            let inside = |key: usize| key >= usize::from(task.0) && (task.1 == 0 || key < usize::from(task.1));
            let expect = (0..13).filter(|key| inside(*key)).map(|key| keys[key]).min();
            prop_assert_eq!(spans.global().get(), expect.unwrap_or(0));
        }

        #[test]
        fn the_order_of_reports_does_not_matter(reports in reports(), seed in any::<u64>()) {
            let told = |reports: &[(u8, u8, u64)]| {
                let mut spans = spans([EncodedRange::ALL], Some(5));
                for (start, end, ts) in reports {
                    spans.told(&range(*start, *end), Ts::new(*ts));
                }
                spans
            };
            let mut mixed = reports.clone();
            let mut state = seed | 1;
            for at in (1..mixed.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                mixed.swap(at, (state >> 33) as usize % (at + 1));
            }
            prop_assert_eq!(told(&reports).map, told(&mixed).map);
        }

        #[test]
        fn a_split_or_merged_region_proves_the_same_as_its_parts(
            reports in reports(),
            cut in 1u8..12,
            ts in 1u64..60,
        ) {
            let mut whole = spans([EncodedRange::ALL], None);
            for (start, end, ts) in &reports {
                whole.told(&range(*start, *end), Ts::new(*ts));
            }
            let mut parts = whole.clone();
            whole.told(&EncodedRange::ALL, Ts::new(ts));
            parts.told(&range(0, cut), Ts::new(ts));
            parts.told(&range(cut, 0), Ts::new(ts));
            prop_assert_eq!(whole.map, parts.map);
        }

        #[test]
        fn what_lags_is_exactly_what_has_not_reached_the_ts(reports in reports(), ts in 1u64..41) {
            let mut spans = spans([range(2, 11)], None);
            for (start, end, told) in &reports {
                spans.told(&range(*start, *end), Ts::new(*told));
            }
            let keys = naive(&reports);
            let lagging = spans.below(Ts::new(ts));
            for key in 2u8..11 {
                let listed = lagging.iter().any(|range| range.contains(&[key]));
                prop_assert_eq!(listed, keys[usize::from(key)] < ts);
            }
            prop_assert!(lagging.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
