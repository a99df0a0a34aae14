//! The index of ranges against a plain list.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// A bound in a small key space; 0 and the largest are open ends.
const BOUNDS: u8 = 20;

fn range(from: u8, to: u8) -> EncodedRange {
    let bound = |at: u8| match at {
        0 | BOUNDS => Bytes::new(),
        // Of different lengths, so that prefixes of each other occur.
        at => Bytes::from(vec![b'a' + at / 3; 1 + usize::from(at % 3)]),
    };
    EncodedRange::new(bound(from), bound(to))
}

fn any_range() -> impl Strategy<Value = EncodedRange> {
    (0..BOUNDS, 1..=BOUNDS)
        .prop_filter("not empty", |(from, to)| from < to)
        .prop_map(|(from, to)| range(from, to))
}

#[derive(Clone, Debug)]
enum Op {
    /// Only if it overlaps nothing.
    Insert(EncodedRange),
    Remove(usize),
    PopFirst,
    Ask(EncodedRange),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any_range().prop_map(Op::Insert),
        2 => any::<usize>().prop_map(Op::Remove),
        1 => Just(Op::PopFirst),
        6 => any_range().prop_map(Op::Ask),
    ]
}

proptest! {
    #[test]
    fn bounds_are_ordered_as_their_numbers(a in 1..BOUNDS, b in 1..BOUNDS) {
        let (low, high) = (range(a, BOUNDS).start, range(b, BOUNDS).start);
        prop_assert_eq!(a.cmp(&b), low.cmp(&high));
    }

    #[test]
    fn what_overlaps_a_range_is_found_and_nothing_else_whatever_came_and_went(
        ops in proptest::collection::vec(any_op(), 1..100),
    ) {
        let mut index = RangeIndex::new();
        let mut list: Vec<(EncodedRange, usize)> = Vec::new();
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert(range) => {
                    if list.iter().all(|(other, _)| other.intersect(&range).is_none()) {
                        index.insert(range.clone(), number);
                        list.push((range, number));
                    }
                }
                Op::Remove(at) if !list.is_empty() => {
                    let (range, value) = list.swap_remove(at % list.len());
                    prop_assert_eq!(index.remove(&range), Some(value));
                    prop_assert_eq!(index.remove(&range), None);
                }
                Op::Remove(_) => {}
                Op::PopFirst => {
                    list.sort_by(|a, b| a.0.start.cmp(&b.0.start));
                    let first = (!list.is_empty()).then(|| list.remove(0));
                    prop_assert_eq!(index.pop_first(), first);
                }
                Op::Ask(range) => {
                    let found: Vec<_> = index.overlapping(&range).cloned().collect();
                    let mut expected = list.clone();
                    expected.retain(|(other, _)| other.intersect(&range).is_some());
                    expected.sort_by(|a, b| b.0.start.cmp(&a.0.start));
                    prop_assert_eq!(found, expected);
                }
            }
            prop_assert_eq!(index.len(), list.len());
        }
        index.clear();
        prop_assert_eq!(index.len(), 0);
    }
}
