//! A half-open range of encoded keys, as regions and tasks have it.

use std::fmt;

use bytes::Bytes;

/// `[start, end)` over encoded keys without ts; an empty start is the smallest key, an empty end
/// is unbounded.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EncodedRange {
    /// First key inside.
    pub start: Bytes,
    /// First key behind; empty = no bound.
    pub end: Bytes,
}

impl EncodedRange {
    /// The whole key space.
    pub const ALL: EncodedRange = EncodedRange {
        start: Bytes::new(),
        end: Bytes::new(),
    };

    /// A range from its bounds.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        EncodedRange {
            start: start.into(),
            end: end.into(),
        }
    }

    /// Whether `key` (encoded, with or without ts) lies inside.
    #[inline]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.begins_by(key) && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether the range begins at `key` or before it.
    #[inline]
    pub fn begins_by(&self, key: &[u8]) -> bool {
        // The first test is no shortcut: where `memcmp` loads with AVX-512 masks, comparing with
        // an empty buffer's dangling pointer costs hundreds of cycles, and this is done per record.
        self.start.is_empty() || &self.start[..] <= key
    }

    /// Whether no key can lie inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// The part both ranges share, if any.
    pub fn intersect(&self, other: &EncodedRange) -> Option<EncodedRange> {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        let out = EncodedRange { start, end };
        (!out.is_empty()).then_some(out)
    }
}

impl fmt::Debug for EncodedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", hex::encode_upper(&self.start))?;
        if self.end.is_empty() {
            f.write_str("+inf)")
        } else {
            write!(f, "{})", hex::encode_upper(&self.end))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: &'static str, end: &'static str) -> EncodedRange {
        EncodedRange::new(start, end)
    }

    #[test]
    fn the_start_is_inside_the_end_is_not_and_an_empty_end_is_no_bound() {
        let r = range("b", "d");
        let inside = |key: &str| r.contains(key.as_bytes());
        assert!(inside("b") && inside("c") && inside("czzz"));
        assert!(!inside("a") && !inside("d"));
        assert!(range("b", "").contains(b"zzz") && EncodedRange::ALL.contains(b""));
        assert!(range("b", "b").is_empty() && range("c", "b").is_empty());
        assert!(!range("b", "").is_empty() && !EncodedRange::ALL.is_empty());
    }

    #[test]
    fn touching_ranges_share_nothing() {
        assert_eq!(range("a", "b").intersect(&range("b", "c")), None);
        assert_eq!(
            range("a", "c").intersect(&range("b", "")),
            Some(range("b", "c"))
        );
        assert_eq!(
            EncodedRange::ALL.intersect(&range("a", "b")),
            Some(range("a", "b"))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn a_key_is_in_the_intersection_exactly_if_it_is_in_both(
            bounds in proptest::array::uniform4(proptest::collection::vec(0..4u8, 0..3)),
            key in proptest::collection::vec(0..4u8, 0..4),
        ) {
            let [a, b, c, d] = bounds;
            let (left, right) = (EncodedRange::new(a, b), EncodedRange::new(c, d));
            let both = left.contains(&key) && right.contains(&key);
            let shared = left.intersect(&right);
            prop_assert_eq!(shared.clone().is_some_and(|r| r.contains(&key)), both);
            prop_assert_eq!(shared, right.intersect(&left));
        }
    }
}
