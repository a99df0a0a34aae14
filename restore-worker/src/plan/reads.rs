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
    slices.sort_by(|a, b| {
        let offset = |s: &Slice| (s.info.range_offset, s.info.range_length);
        a.object.cmp(&b.object).then(offset(a).cmp(&offset(b)))
    });
    let mut reads: Vec<Read> = Vec::new();
    for slice in slices {
        let (from, len) = (slice.info.range_offset, slice.info.range_length);
        let range = match from.checked_add(len) {
            Some(_) if len == 0 => None,
            Some(end) => Some(from..end),
            None => return Err(Damage::new(slice.object, "a slice ends beyond 2^64 bytes")),
        };
        if let Some(last) = reads.last_mut()
            && last.object == slice.object
            && let Some(joined) = join(&last.range, &range, limits)
        {
            last.range = joined;
            last.slices.push(slice);
            continue;
        }
        let object = slice.object.clone();
        reads.push(Read {
            object,
            range,
            slices: vec![slice],
        });
    }
    Ok(reads)
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
}
