//! Region lists as PD may give them while splits and merges are reported: whatever is in them,
//! what is kept covers the keys from the start on without a hole and without an overlap.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const END: u8 = 30;

fn bound(at: u8) -> Bytes {
    match at {
        0 | END => Bytes::new(),
        at => Bytes::from(vec![at]),
    }
}

fn region(id: u64, from: u8, to: u8) -> Region {
    let meta = metapb::Region {
        id,
        start_key: bound(from),
        end_key: bound(to),
        ..Default::default()
    };
    Region::new(meta, None)
}

/// Ascending by start as PD's index is, with holes and overlaps.
fn any_list() -> impl Strategy<Value = Vec<Region>> {
    let one = (0..END, 1..8u8);
    proptest::collection::vec(one, 0..12).prop_map(|mut parts| {
        parts.sort_unstable();
        let regions = (1..).zip(parts);
        regions
            .map(|(id, (from, len))| region(id, from, (from + len).min(END)))
            .collect()
    })
}

/// A list that covers everything, cut at some places.
fn any_cover() -> impl Strategy<Value = Vec<Region>> {
    proptest::collection::btree_set(1..END, 0..10).prop_map(|cuts| {
        let bounds: Vec<u8> = [0].into_iter().chain(cuts).chain([END]).collect();
        let parts = (1..).zip(bounds.windows(2));
        parts
            .map(|(id, part)| region(id, part[0], part[1]))
            .collect()
    })
}

proptest! {
    #[test]
    fn what_is_kept_of_any_list_covers_its_keys_exactly_once(
        list in any_list(),
        start in 0..END,
    ) {
        let kept = contiguous_prefix(list.clone(), &bound(start));
        prop_assert!(kept.len() <= list.len());
        prop_assert_eq!(&kept[..], &list[..kept.len()], "the beginning of the list");
        if let Some(first) = kept.first() {
            prop_assert!(first.meta.start_key <= bound(start));
        }
        for pair in kept.windows(2) {
            prop_assert_eq!(&pair[0].meta.end_key, &pair[1].meta.start_key);
            prop_assert!(!pair[0].meta.end_key.is_empty(), "nothing follows the last key");
        }
    }

    #[test]
    fn a_list_without_holes_is_kept_whole_and_one_that_lacks_a_region_ends_before_it(
        list in any_cover(),
        lost in any::<prop::sample::Index>(),
    ) {
        let whole = contiguous_prefix(list.clone(), b"");
        prop_assert_eq!(&whole, &list);
        let lost = lost.index(list.len());
        let mut holed = list.clone();
        holed.remove(lost);
        let kept = contiguous_prefix(holed, b"");
        prop_assert_eq!(&kept[..], &list[..lost]);
    }
}
