//! Key ranges of a task: as flags give them, as PD stores them (raw keys), as the observer wants
//! them (encoded keys). Pure; used by `log start` and `serve`.

use bytes::Bytes;
use pitr_format::{EncodedKey, EncodedRange};

/// A half-open range of raw keys `[start, end)`.
pub type RawRange = (Bytes, Bytes);

/// The end of "everything": above every key that a client may reasonably write.
pub const EVERYTHING_END: [u8; 32] = [0xFF; 32];

/// Why ranges were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// `--range` without a colon, or with something that is not hex.
    #[error("`{0}` is not a range: give START_HEX:END_HEX, either side may be empty")]
    NotARange(String),
    /// Nothing lies inside.
    #[error("the range {0} is empty: its start is not below its end")]
    Empty(String),
    /// A key would be in two ranges.
    #[error("the ranges {0} and {1} overlap")]
    Overlap(String, String),
}

/// Reads `START_HEX:END_HEX`; an empty start is the smallest key, an empty end is
/// [`EVERYTHING_END`].
pub fn parse_range(text: &str) -> Result<RawRange, RangeError> {
    let not_a_range = || RangeError::NotARange(text.to_owned());
    let (start, end) = text.split_once(':').ok_or_else(not_a_range)?;
    let start = hex::decode(start).map_err(|_| not_a_range())?;
    let mut end = hex::decode(end).map_err(|_| not_a_range())?;
    if end.is_empty() {
        end = EVERYTHING_END.to_vec();
    }
    Ok((start.into(), end.into()))
}

/// All keys that begin with `prefix`.
pub fn prefix_range(prefix: &[u8]) -> RawRange {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xFF) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end = EVERYTHING_END.to_vec(),
    }
    (Bytes::copy_from_slice(prefix), end.into())
}

/// The parts of ranges in which a change stream proves nothing: TiKV takes keys that begin with `r`
/// for RawKV, whatever wrote them, and leaves their transactions out.
/// Source: tikv/tikv `components/cdc/src/delegate.rs` (`sink_put`).
pub fn unproven(ranges: &[RawRange]) -> Vec<RawRange> {
    let (first, end) = prefix_range(b"r");
    let part = |range: &RawRange| {
        let start = range.0.clone().max(first.clone());
        let end = match range.1.is_empty() {
            true => end.clone(),
            false => range.1.clone().min(end.clone()),
        };
        (start < end).then_some((start, end))
    };
    ranges.iter().filter_map(part).collect()
}

/// Sorts the ranges of a task and checks that each holds something and that none overlap. No
/// range at all means everything.
pub fn task_ranges(mut ranges: Vec<RawRange>) -> Result<Vec<RawRange>, RangeError> {
    if ranges.is_empty() {
        return Ok(vec![(
            Bytes::new(),
            Bytes::copy_from_slice(&EVERYTHING_END),
        )]);
    }
    ranges.sort();
    for range in &ranges {
        if range.0 >= range.1 {
            return Err(RangeError::Empty(show(range)));
        }
    }
    for pair in ranges.windows(2) {
        if let [left, right] = pair
            && right.0 < left.1
        {
            return Err(RangeError::Overlap(show(left), show(right)));
        }
    }
    Ok(ranges)
}

/// The same range over encoded keys. TiKV's observer encodes both ends before it filters.
pub fn encode(range: &RawRange) -> EncodedRange {
    let end = if range.1.is_empty() {
        Bytes::new()
    } else {
        EncodedKey::encode(&range.1).into_bytes()
    };
    let start = if range.0.is_empty() {
        Bytes::new()
    } else {
        EncodedKey::encode(&range.0).into_bytes()
    };
    EncodedRange::new(start, end)
}

/// `[START_HEX, END_HEX)`; the words "first key" and "last key" where there is no bound.
pub fn show(range: &RawRange) -> String {
    let bound = |key: &Bytes, none: &str| match key.is_empty() {
        true => none.to_owned(),
        false => hex::encode_upper(key),
    };
    format!(
        "[{}, {})",
        bound(&range.0, "first key"),
        bound(&range.1, "last key")
    )
}

/// [`show`] of a range of encoded keys; bounds that are no encoded key are shown as they are.
pub fn show_encoded(range: &EncodedRange) -> String {
    let decode = |key: &Bytes| {
        let decoded = EncodedKey::from_encoded(key.clone()).decode();
        decoded.map_or_else(|_| key.clone(), Bytes::from)
    };
    show(&(decode(&range.start), decode(&range.end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(start: &[u8], end: &[u8]) -> RawRange {
        (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end))
    }

    #[test]
    fn what_is_not_proven_is_what_begins_with_r() {
        let everything = task_ranges(Vec::new()).unwrap();
        assert_eq!(unproven(&everything), [raw(b"r", b"s")]);
        assert_eq!(unproven(&[raw(b"", b"")]), [raw(b"r", b"s")]);
        assert_eq!(
            unproven(&[raw(b"ra", b"rb"), raw(b"rz", b"t")]),
            [raw(b"ra", b"rb"), raw(b"rz", b"s")]
        );
        assert!(
            unproven(&[
                raw(b"m", b"n"),
                raw(b"t", b"u"),
                raw(b"", b"r"),
                raw(b"s", b"")
            ])
            .is_empty()
        );
    }

    #[test]
    fn a_range_is_two_hex_keys_with_a_colon() {
        assert_eq!(parse_range("6d:6e"), Ok(raw(b"m", b"n")));
        assert_eq!(parse_range(":"), Ok(raw(b"", &EVERYTHING_END)));
        for text in ["6d", "6:7", "zz:6e", "6d:6e:6f"] {
            assert_eq!(
                parse_range(text),
                Err(RangeError::NotARange(text.to_owned()))
            );
        }
    }

    #[test]
    fn a_prefix_ends_before_the_next_key_that_does_not_have_it() {
        assert_eq!(prefix_range(b"demo"), raw(b"demo", b"demp"));
        assert_eq!(prefix_range(b"a\xFF\xFF"), raw(b"a\xFF\xFF", b"b"));
        assert_eq!(prefix_range(b"\xFF"), raw(b"\xFF", &EVERYTHING_END));
        assert_eq!(prefix_range(b""), raw(b"", &EVERYTHING_END));
    }

    #[test]
    fn no_range_means_everything() {
        assert_eq!(task_ranges(Vec::new()), Ok(vec![raw(b"", &[0xFF; 32])]));
    }

    #[test]
    fn ranges_are_sorted_and_may_touch_but_not_overlap() {
        let ranges = vec![raw(b"t", b"u"), raw(b"m", b"n"), raw(b"n", b"o")];
        assert_eq!(
            task_ranges(ranges),
            Ok(vec![raw(b"m", b"n"), raw(b"n", b"o"), raw(b"t", b"u")])
        );
        assert!(matches!(
            task_ranges(vec![raw(b"a", b"c"), raw(b"b", b"d")]),
            Err(RangeError::Overlap(..))
        ));
        assert!(matches!(
            task_ranges(vec![raw(b"b", b"b")]),
            Err(RangeError::Empty(_))
        ));
    }

    #[test]
    fn encoding_keeps_what_lies_inside() {
        let range = encode(&prefix_range(b"demo"));
        assert!(range.contains(EncodedKey::encode(b"demo").as_bytes()));
        assert!(range.contains(EncodedKey::encode(b"demo/long/key").as_bytes()));
        assert!(!range.contains(EncodedKey::encode(b"demp").as_bytes()));
        let all = encode(&raw(b"", &EVERYTHING_END));
        assert!(all.start.is_empty());
        assert!(all.contains(EncodedKey::encode(b"\xFF\xFE").as_bytes()));
    }
}
