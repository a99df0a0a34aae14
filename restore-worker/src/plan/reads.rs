//! Neighbouring slices of one object become one range request.

use std::ops::Range;

use super::Slice;
use crate::damage::Damage;

/// One range request and the slices inside.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Object.
    pub object: String,
    /// Bytes of it; `None` = the whole object (metadata of version 1 without offsets).
    pub range: Option<Range<u64>>,
    /// Slices by offset.
    pub slices: Vec<Slice>,
}

impl Read {
    /// Bytes of the request, and of the largest plaintext that it becomes: what it takes in memory.
    pub fn memory(&self) -> u64 {
        let stored = self.range.as_ref().map_or(0, |r| r.end - r.start);
        let plain = self.slices.iter().map(|s| s.info.length).max().unwrap_or(0);
        stored.saturating_add(plain)
    }
}

/// Bounds of coalescing.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Bytes of one request; a single larger slice is a request of its own.
    pub request: u64,
    /// Unwanted bytes between two slices that are read along rather than costing a request.
    pub gap: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        ReadLimits {
            request: 8 << 20,
            gap: 64 << 10,
        }
    }
}

/// Groups slices into requests.
pub fn coalesce(mut slices: Vec<Slice>, limits: &ReadLimits) -> Result<Vec<Read>, Damage> {
    slices.sort_by(|a, b| place_of(a).cmp(&place_of(b)));
    let groups = group(&slices, place_of, limits)?;
    let mut slices = slices.into_iter();
    let reads = groups.into_iter().map(|group| {
        let slices: Vec<Slice> = slices.by_ref().take(group.slices).collect();
        let object = slices.first().map(|first| first.object.clone());
        Read {
            object: object.unwrap_or_default(),
            range: group.range,
            slices,
        }
    });
    Ok(reads.collect())
}

/// Where a slice lies, in the order of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'a> {
    pub(super) object: &'a str,
    pub(super) offset: u64,
    pub(super) length: u64,
}

fn place_of(slice: &Slice) -> Place<'_> {
    Place {
        object: &slice.object,
        offset: slice.info.range_offset,
        length: slice.info.range_length,
    }
}

/// One request: how many of the slices, which are sorted, it serves.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) range: Option<Range<u64>>,
    pub(super) slices: usize,
}

/// Groups sorted slices into requests.
pub(super) fn group<T>(
    sorted: &[T],
    place: impl Fn(&T) -> Place<'_>,
    limits: &ReadLimits,
) -> Result<Vec<Group>, Damage> {
    let mut groups: Vec<Group> = Vec::new();
    let mut object = "";
    for slice in sorted {
        let next = place(slice);
        let range = match next.offset.checked_add(next.length) {
            Some(_) if next.length == 0 => None,
            Some(end) => Some(next.offset..end),
            None => return Err(Damage::new(next.object, "a slice ends beyond 2^64 bytes")),
        };
        if let Some(last) = groups.last_mut()
            && object == next.object
            && let Some(joined) = join(&last.range, &range, limits)
        {
            last.range = joined;
            last.slices += 1;
            continue;
        }
        object = next.object;
        groups.push(Group { range, slices: 1 });
    }
    Ok(groups)
}

/// The request for both, if they belong together.
#[expect(
    clippy::option_option,
    reason = "outer: do they join; inner: range or whole object"
)]
fn join(
    last: &Option<Range<u64>>,
    next: &Option<Range<u64>>,
    limits: &ReadLimits,
) -> Option<Option<Range<u64>>> {
    match (last, next) {
        (None, None) => Some(None),
        (Some(last), Some(next)) => {
            let end = last.end.max(next.end);
            let near = next.start <= last.end.saturating_add(limits.gap);
            (near && end - last.start <= limits.request).then_some(Some(last.start..end))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use pitr_format::Cf;
    use pitr_proto::backup::DataFileInfo;
    use proptest::prelude::*;

    use super::*;

    fn slice(object: &str, range_offset: u64, range_length: u64) -> Slice {
        let info = DataFileInfo {
            range_offset,
            range_length,
            ..DataFileInfo::default()
        };
        Slice {
            object: object.to_owned(),
            cf: Cf::Write,
            info,
        }
    }

    fn ranges(slices: Vec<Slice>) -> Vec<(String, Option<Range<u64>>, usize)> {
        let limits = ReadLimits {
            request: 100,
            gap: 10,
        };
        let reads = coalesce(slices, &limits).unwrap();
        reads
            .into_iter()
            .map(|r| (r.object, r.range, r.slices.len()))
            .collect()
    }

    #[test]
    fn neighbours_and_near_slices_share_a_request_up_to_the_cap() {
        let slices = vec![
            slice("a", 0, 10),
            slice("a", 20, 30),
            slice("a", 61, 10),
            slice("a", 10, 10),
            slice("b", 71, 10),
            slice("b", 81, 95),
            slice("b", 176, 500),
        ];
        assert_eq!(
            ranges(slices),
            vec![
                ("a".to_owned(), Some(0..50), 3),
                ("a".to_owned(), Some(61..71), 1),
                ("b".to_owned(), Some(71..81), 1),
                ("b".to_owned(), Some(81..176), 1),
                ("b".to_owned(), Some(176..676), 1),
            ]
        );
    }

    #[test]
    fn a_slice_without_a_length_is_the_whole_object() {
        assert_eq!(
            ranges(vec![slice("v1", 0, 0)]),
            vec![("v1".to_owned(), None, 1)]
        );
    }

    #[test]
    fn an_end_beyond_all_numbers_is_damage() {
        let damage = coalesce(vec![slice("x", u64::MAX, 2)], &ReadLimits::default()).unwrap_err();
        assert_eq!(damage.object, "x");
    }

    fn slices() -> impl Strategy<Value = Vec<Slice>> {
        let one = (0u8..3, 0u64..400, 1u64..150);
        let one = one.prop_map(|(object, at, len)| slice(&format!("o{object}"), at, len));
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn every_slice_is_read_once_and_no_request_is_larger_or_wider_than_allowed(
            slices in slices(),
            request in 1u64..300,
            gap in 0u64..40,
        ) {
            let limits = ReadLimits { request, gap };
            let reads = coalesce(slices.clone(), &limits).unwrap();
            let place = |s: &Slice| (s.object.clone(), s.info.range_offset, s.info.range_length);
            let mut wanted: Vec<_> = slices.iter().map(place).collect();
            wanted.sort();
            let found: Vec<_> = reads.iter().flat_map(|r| &r.slices).map(place).collect();
            prop_assert_eq!(found, wanted);
            for read in &reads {
                let range = read.range.clone().unwrap();
                let ends = |s: &Slice| s.info.range_offset + s.info.range_length;
                prop_assert_eq!(range.start, read.slices[0].info.range_offset);
                prop_assert_eq!(range.end, read.slices.iter().map(ends).max().unwrap());
                prop_assert!(read.slices.len() == 1 || range.end - range.start <= request);
                let mut end = range.start;
                for slice in &read.slices {
                    prop_assert!(slice.info.range_offset <= end + gap, "a gap of unwanted bytes");
                    end = end.max(ends(slice));
                }
            }
        }
    }
}
