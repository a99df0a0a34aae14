//! Optional replacement of a user-key prefix, for example of a JuiceFS volume's name.

use bytes::Bytes;
use pitr_format::key::{append_encoded, prefix_end};
use pitr_format::{EncodedKey, EncodedRange};

/// Replaces one user-key prefix by another. Keys without the old prefix are not restored, so that
/// a renamed volume never lands beside untouched keys of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Rewrite {
    /// Leaves all keys as they are.
    pub fn identity() -> Self {
        Self::default()
    }

    /// Replaces the user-key prefix `old` by `new`.
    pub fn prefix(old: impl Into<Vec<u8>>, new: impl Into<Vec<u8>>) -> Self {
        Rewrite {
            old: old.into(),
            new: new.into(),
        }
    }

    /// Whether nothing changes.
    pub fn is_identity(&self) -> bool {
        self.old.is_empty() && self.new.is_empty()
    }

    /// The new versioned key of `user_key` at the ts whose 8 bytes are `ts_suffix`; `None` when
    /// the key lacks the old prefix.
    pub fn apply(&self, user_key: &[u8], ts_suffix: &[u8]) -> Option<Vec<u8>> {
        let rest = user_key.strip_prefix(&self.old[..])?;
        let mut raw = Vec::with_capacity(self.new.len() + rest.len());
        raw.extend_from_slice(&self.new);
        raw.extend_from_slice(rest);
        let mut out = Vec::new();
        append_encoded(&raw, &mut out);
        out.extend_from_slice(ts_suffix);
        Some(out)
    }

    /// Where records of the source range `range` land.
    pub fn target_range(&self, range: &EncodedRange) -> EncodedRange {
        if self.is_identity() {
            return range.clone();
        }
        EncodedRange::new(
            EncodedKey::encode(&self.new).into_bytes(),
            prefix_end(&self.new).map_or(Bytes::new(), |end| EncodedKey::encode(&end).into_bytes()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_key_keeps_its_rest_and_its_ts() {
        let rename = Rewrite::prefix("old", "volume-two");
        let key = rename.apply(b"old/inode", &[7; 8]).unwrap();
        assert_eq!(
            &key[..key.len() - 8],
            EncodedKey::encode(b"volume-two/inode").as_bytes()
        );
        assert!(key.ends_with(&[7; 8]));
        assert_eq!(rename.apply(b"other", &[7; 8]), None);
        assert_eq!(
            Rewrite::identity().apply(b"k", &[]).unwrap(),
            EncodedKey::encode(b"k").as_bytes()
        );
    }

    #[test]
    fn the_target_range_holds_every_key_of_the_new_prefix_and_no_other() {
        let range = Rewrite::prefix("a", [b'b', 0xFF]).target_range(&EncodedRange::ALL);
        for inside in [
            &[b'b', 0xFF][..],
            &[b'b', 0xFF, 0xFF, 0xFF],
            &[b'b', 0xFF, 0, 1, 2, 3, 4, 5],
        ] {
            assert!(range.contains(EncodedKey::encode(inside).as_bytes()));
        }
        for outside in [&b"b"[..], &[b'b', 0xFE, 0xFF], b"c"] {
            assert!(!range.contains(EncodedKey::encode(outside).as_bytes()));
        }
        let unbounded = Rewrite::prefix("a", [0xFF]).target_range(&EncodedRange::ALL);
        assert!(unbounded.end.is_empty());
    }
}
