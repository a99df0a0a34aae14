//! Digests of record sets.
//!
//! * [`crc64`] and [`Crc64Xor`]: the per-slice checksum of the log format (CRC-64/XZ of key and
//!   value, XOR over the records; tikv/tikv `components/backup-stream/src/router.rs`). Pairs of
//!   equal records cancel each other, so it never proves a restore.
//! * [`RecordDigest`] and [`ScanDigest`]: 128-bit *sums* of hashes with a count, for comparing
//!   what a restore selected with what it wrote, and what two clusters show. Order does not
//!   matter, repetitions do.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::Cf;

/// CRC-64/XZ (Go: `crc64.ECMA`); of `123456789` it is `995dc9bbdf1939fa`.
pub fn crc64(bytes: &[u8]) -> u64 {
    let mut digest = crc64fast::Digest::new();
    digest.write(bytes);
    digest.sum64()
}

/// XOR over records of the CRC of `key ‖ value`, without length prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crc64Xor(u64);

impl Crc64Xor {
    /// Adds one record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut digest = crc64fast::Digest::new();
        digest.write(key);
        digest.write(value);
        self.0 ^= digest.sum64();
    }

    /// The value as it stands in `DataFileInfo.crc64xor`.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Wrapping sum of 128-bit hashes, and how many were added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct HashSum {
    sum: u128,
    count: u64,
}

impl HashSum {
    fn add(&mut self, hash: u128) {
        self.sum = self.sum.wrapping_add(hash);
        self.count = self.count.wrapping_add(1);
    }

    fn merge(&mut self, other: &HashSum) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.count = self.count.wrapping_add(other.count);
    }
}

/// Longest text of parts that is put together before it is hashed.
const TOGETHER: usize = 512;

/// Half of the SHA-256 of all parts, each behind its length, so that moving a byte from one part to
/// the next changes the hash.
fn hash_parts(parts: &[&[u8]]) -> u128 {
    // Short texts are hashed in one call: that takes two thirds of the time.
    let mut text = [0; TOGETHER];
    let mut rest = &mut text[..];
    let len: usize = parts.iter().map(|part| part.len() + 8).sum();
    let hash: [u8; 32] = if len <= TOGETHER {
        for part in parts {
            let (head, tail) = rest.split_at_mut(part.len() + 8);
            head[..8].copy_from_slice(&(part.len() as u64).to_le_bytes());
            head[8..].copy_from_slice(part);
            rest = tail;
        }
        Sha256::digest(&text[..len]).into()
    } else {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    };
    let half = hash.first_chunk::<16>().copied().unwrap_or_default();
    u128::from_be_bytes(half)
}

/// The hash of one record, for adding it to several digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHash(u128);

impl RecordHash {
    /// Hashes a record.
    pub fn of(cf: Cf, versioned_key: &[u8], value: &[u8]) -> Self {
        RecordHash(hash_parts(&[cf.as_str().as_bytes(), versioned_key, value]))
    }
}

macro_rules! digest_type {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        ///
        /// `Display` gives 32 lower-case hex digits; two digests are equal only if the counts are
        /// equal too.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(HashSum);

        impl $name {
            /// The digest of the empty set.
            pub fn new() -> Self {
                Self::default()
            }

            /// How many items were added.
            pub fn count(&self) -> u64 {
                self.0.count
            }

            /// Adds all items of `other`, for example of another range or thread.
            pub fn merge(&mut self, other: &Self) {
                self.0.merge(&other.0);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0.sum)
            }
        }
    };
}

digest_type!(
    RecordDigest,
    "Sum over distinct records (column family, versioned key, value): archive against store."
);
digest_type!(
    ScanDigest,
    "Sum over (user key, value visible at one ts): one cluster against another."
);

impl RecordDigest {
    /// Adds one record; the caller adds each distinct (CF, versioned key) once.
    pub fn add(&mut self, cf: Cf, versioned_key: &[u8], value: &[u8]) {
        self.add_hash(RecordHash::of(cf, versioned_key, value));
    }

    /// [`RecordDigest::add`] of a record that is hashed already.
    pub fn add_hash(&mut self, hash: RecordHash) {
        self.0.add(hash.0);
    }
}

impl ScanDigest {
    /// Adds one live key.
    pub fn add(&mut self, user_key: &[u8], value: &[u8]) {
        self.0.add(hash_parts(&[user_key, value]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc64_is_the_reflected_ecma_polynomial() {
        assert_eq!(crc64(b"123456789"), 0x995D_C9BB_DF19_39FA);
        assert_eq!(crc64(b""), 0);
    }

    #[test]
    fn the_slice_checksum_joins_key_and_value_and_lets_pairs_cancel() {
        let mut sum = Crc64Xor::default();
        sum.add(b"1234", b"56789");
        assert_eq!(sum.get(), crc64(b"123456789"));
        sum.add(b"12345", b"6789");
        assert_eq!(sum.get(), 0);
    }

    #[test]
    fn a_record_digest_depends_on_each_part_and_its_bounds_but_not_on_order() {
        let digest = |records: &[(Cf, &[u8], &[u8])]| {
            let mut d = RecordDigest::new();
            for (cf, key, value) in records {
                d.add(*cf, key, value);
            }
            d
        };
        let base: [(Cf, &[u8], &[u8]); 2] = [(Cf::Write, b"ab", b"c"), (Cf::Default, b"x", b"")];
        let reversed = [base[1], base[0]];
        assert_eq!(digest(&base), digest(&reversed));
        assert_eq!(digest(&base).count(), 2);
        for changed in [
            [(Cf::Default, &b"ab"[..], &b"c"[..]), base[1]],
            [(Cf::Write, b"a", b"bc"), base[1]],
            [(Cf::Write, b"ab", b"d"), base[1]],
            [base[0], base[0]],
        ] {
            assert_ne!(digest(&base), digest(&changed));
        }
        assert_ne!(
            digest(&[base[0], base[0]]).to_string(),
            digest(&[]).to_string()
        );
    }

    #[test]
    fn short_and_long_texts_are_hashed_alike() {
        for len in [0, 1, TOGETHER - 17, TOGETHER - 16, TOGETHER, 3 * TOGETHER] {
            let (key, value) = (b"k", vec![7; len]);
            let mut whole = Vec::new();
            for part in [&key[..], &value] {
                whole.extend((part.len() as u64).to_le_bytes());
                whole.extend(part);
            }
            let hash = hex::encode(Sha256::digest(&whole));
            let mut digest = ScanDigest::new();
            digest.add(key, &value);
            assert_eq!(digest.to_string(), hash[..32], "{len}");
        }
    }

    #[test]
    fn merged_parts_equal_the_whole_and_the_text_is_fixed() {
        let (mut left, mut right, mut whole) =
            (ScanDigest::new(), ScanDigest::new(), ScanDigest::new());
        left.add(b"k1", b"v1");
        right.add(b"k2", b"");
        for (key, value) in [(b"k1", &b"v1"[..]), (b"k2", b"")] {
            whole.add(key, value);
        }
        left.merge(&right);
        assert_eq!(left, whole);
        assert_eq!(left.to_string().len(), 32);
        assert_eq!(ScanDigest::new().to_string(), "0".repeat(32));
        // First half of SHA-256 over the two length-prefixed parts, computed independently.
        assert_eq!(right.to_string(), "2a95caac54ed334012a95f49493d2a78");
    }
}
