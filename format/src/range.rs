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
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
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
