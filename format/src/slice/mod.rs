//! A slice (the "logical file" of the log format): the records of one table, region, column
//! family and operation in one flush, stored as one zstd frame inside a merged object and
//! described by a `DataFileInfo`.
//!
//! [`SliceBuilder`] (the observer's shards) writes one, [`verify_slice`] (restore, verify) proves
//! that stored bytes are what the metadata says. Source: tikv/tikv
//! `components/backup-stream/src/router.rs`.

mod build;
mod facts;
mod plain;
mod verify;

pub use build::{EncodedSlice, SealedSlice, SliceBuilder};
pub use facts::SliceBuildError;
pub use verify::{SliceError, verify_slice};

use crate::{Cf, OpKind};

/// What the records of a slice have in common; restore relies on it, so slices never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId {
    /// Table id of TiDB, 0 for everything that is no table key; see [`classify`].
    pub table_id: i64,
    /// Region that produced the records: a hint for readers, not a promise.
    pub region_id: u64,
    /// Column family.
    pub cf: Cf,
    /// Restore puts or deletes a slice as a whole.
    pub op: OpKind,
    /// Whether the keys belong to TiDB's schema (`m` prefix); such slices get objects of their own.
    pub is_meta: bool,
}

/// Bytes of a table prefix: `t` and the id.
const TABLE_PREFIX_LEN: usize = 9;

/// `(table_id, is_meta)` of a user (raw) key: `m…` is schema data, `t` + 8 bytes (big-endian, sign
/// flipped) carries a table id, anything else is table 0.
pub fn classify(user_key: &[u8]) -> (i64, bool) {
    match user_key.split_first() {
        Some((b'm', _)) => (0, true),
        Some((b't', rest)) => {
            let id = rest.first_chunk::<8>();
            let unflip = |id: &[u8; 8]| (u64::from_be_bytes(*id) ^ 1 << 63) as i64;
            (id.map_or(0, unflip), false)
        }
        _ => (0, false),
    }
}

/// [`classify`] for an encoded key, with or without ts, without decoding more than the prefix.
#[inline]
pub fn classify_encoded(key: &[u8]) -> (i64, bool) {
    // The prefix lies in the first two groups of 8 bytes, each followed by its marker. The first
    // marker is 0xFF only if the user key goes on behind the first group.
    let first_group = key.first_chunk::<9>();
    match (first_group, key.get(9..18)) {
        (Some([group @ .., 0xFF]), Some([first, .., marker])) if *marker > 0xF7 => {
            let mut prefix = [0; TABLE_PREFIX_LEN];
            prefix[..8].copy_from_slice(group);
            prefix[8] = *first;
            classify(&prefix)
        }
        // Shorter than a table prefix: only its first byte matters. An empty key encodes to zeros.
        _ => classify(key.get(..1).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{EncodedKey, Ts};

    fn table_key(id: i64) -> Vec<u8> {
        let mut key = vec![b't'];
        key.extend((id as u64 ^ 1 << 63).to_be_bytes());
        key
    }

    #[test]
    fn the_first_byte_tells_schema_keys_and_the_next_eight_the_table() {
        assert_eq!(classify(b"m"), (0, true));
        assert_eq!(classify(b"mDB:1"), (0, true));
        for id in [0, 1, -1, 100, i64::MAX, i64::MIN] {
            let mut key = table_key(id);
            assert_eq!(classify(&key), (id, false));
            assert_eq!(classify(&key[..8]), (0, false), "one byte short");
            key.extend(b"_r12345678");
            assert_eq!(classify(&key), (id, false));
        }
        for other in [&b""[..], b"M", b"x\0\0\0m", b"\0m", b"jfs", b"t"] {
            assert_eq!(classify(other), (0, false));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_encoded_and_versioned_forms_are_classified_as_the_user_key(
            prefix in prop_oneof![Just(&b"t"[..]), Just(&b"m"[..]), Just(&b""[..])],
            tail in proptest::collection::vec(any::<u8>(), 0..20),
            ts in any::<u64>(),
        ) {
            let user_key = [prefix, &tail].concat();
            let encoded = EncodedKey::encode(&user_key);
            let versioned = encoded.at(Ts::new(ts));
            prop_assert_eq!(classify_encoded(encoded.as_bytes()), classify(&user_key));
            prop_assert_eq!(classify_encoded(versioned.as_bytes()), classify(&user_key));
        }

        #[test]
        fn no_bytes_make_the_classification_panic(bytes in any::<Vec<u8>>()) {
            classify_encoded(&bytes);
        }
    }
}
