//! The four forms of a key.
//!
//! | form | bytes | where |
//! |---|---|---|
//! | user (raw) key | as the client wrote it | transactional API, CDC rows, task ranges |
//! | encoded key | groups of 8 bytes + marker `0xFF - pad` | region bounds |
//! | versioned key | encoded key + `!ts` big-endian | log records, CF keys without prefix |
//! | data key | `z` + versioned key | RocksDB, SST files |
//!
//! Source: tikv/tikv `components/codec/src/byte.rs`, `components/keys/src/lib.rs`.

use std::fmt;

use bytes::Bytes;

use crate::Ts;

const GROUP: usize = 8;
const MARKER: u8 = 0xFF;
/// Prefix of every data key inside a TiKV store.
pub const DATA_PREFIX: u8 = b'z';
/// Bytes that a ts takes at the end of a versioned key.
pub const TS_LEN: usize = 8;

/// Why bytes are not a key of the expected form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The memcomparable encoding ends early, or a marker or padding byte is wrong.
    #[error("not a memcomparable key: {reason} at byte {offset}")]
    BadEncoding {
        /// What is wrong.
        reason: &'static str,
        /// Where.
        offset: usize,
    },
    /// Fewer than the 8 bytes of a ts.
    #[error("versioned key has {len} bytes, a ts alone takes 8")]
    TooShort {
        /// Length found.
        len: usize,
    },
}

/// Appends the memcomparable form of `raw` to `out`.
pub fn append_encoded(raw: &[u8], out: &mut Vec<u8>) {
    out.reserve(encoded_len(raw.len()));
    let mut groups = raw.chunks_exact(GROUP);
    for group in &mut groups {
        out.extend_from_slice(group);
        out.push(MARKER);
    }
    let rest = groups.remainder();
    out.extend_from_slice(rest);
    let pad = GROUP - rest.len();
    out.extend_from_slice(&[0; GROUP][..pad]);
    out.push(MARKER - pad as u8);
}

/// Length of the memcomparable form of a key of `raw_len` bytes.
pub const fn encoded_len(raw_len: usize) -> usize {
    (raw_len / GROUP + 1) * (GROUP + 1)
}

/// Decodes one memcomparable key at the start of `bytes`: the user key and the bytes it took.
pub fn decode_prefix(bytes: &[u8]) -> Result<(Vec<u8>, usize), KeyError> {
    let mut raw = Vec::with_capacity(bytes.len() / (GROUP + 1) * GROUP);
    let used = decode_prefix_into(bytes, &mut raw)?;
    Ok((raw, used))
}

/// [`decode_prefix`] that appends the user key to a vector that the caller uses again; after an
/// error it holds a part.
pub fn decode_prefix_into(bytes: &[u8], raw: &mut Vec<u8>) -> Result<usize, KeyError> {
    groups(bytes, |data| raw.extend_from_slice(data))
}

/// Checks one memcomparable key at the start of `bytes`, without decoding it: the bytes it takes.
pub fn check_prefix(bytes: &[u8]) -> Result<usize, KeyError> {
    groups(bytes, |_| {})
}

/// Hands over the user key group by group; the bytes that its encoding takes.
fn groups(bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<usize, KeyError> {
    let mut offset = 0;
    loop {
        let Some(chunk) = bytes.get(offset..offset + GROUP + 1) else {
            return Err(KeyError::BadEncoding {
                reason: "ends inside a group",
                offset,
            });
        };
        let (group, marker) = (&chunk[..GROUP], chunk[GROUP]);
        offset += GROUP + 1;
        if marker == MARKER {
            take(group);
            continue;
        }
        let pad = usize::from(MARKER - marker);
        if pad > GROUP {
            return Err(KeyError::BadEncoding {
                reason: "bad marker",
                offset: offset - 1,
            });
        }
        let (data, padding) = group.split_at(GROUP - pad);
        if padding.iter().any(|b| *b != 0) {
            return Err(KeyError::BadEncoding {
                reason: "padding is not zero",
                offset: offset - 1,
            });
        }
        take(data);
        return Ok(offset);
    }
}

/// Splits a versioned key into its encoded key (not decoded) and its ts.
pub fn split_versioned(versioned: &[u8]) -> Result<(&[u8], Ts), KeyError> {
    match versioned.split_last_chunk::<TS_LEN>() {
        Some((encoded, ts)) => Ok((encoded, Ts::new(!u64::from_be_bytes(*ts)))),
        None => Err(KeyError::TooShort {
            len: versioned.len(),
        }),
    }
}

/// The smallest key behind all keys with this prefix; `None` when there is none, as
/// behind an empty one.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|b| *b != 0xFF)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}

/// `z` + `key`: the key inside RocksDB.
pub fn data_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(DATA_PREFIX);
    out.extend_from_slice(key);
    out
}

/// Memcomparable form of a user key, without a ts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EncodedKey(Bytes);

impl EncodedKey {
    /// Encodes a user key.
    pub fn encode(raw: &[u8]) -> Self {
        let mut out = Vec::new();
        append_encoded(raw, &mut out);
        EncodedKey(out.into())
    }

    /// Takes bytes that are already encoded, for example a region bound (may be empty).
    pub fn from_encoded(bytes: impl Into<Bytes>) -> Self {
        EncodedKey(bytes.into())
    }

    /// The user key.
    pub fn decode(&self) -> Result<Vec<u8>, KeyError> {
        match decode_prefix(&self.0)? {
            (raw, used) if used == self.0.len() => Ok(raw),
            (_, used) => Err(KeyError::BadEncoding {
                reason: "bytes after the key",
                offset: used,
            }),
        }
    }

    /// Appends a ts.
    pub fn at(&self, ts: Ts) -> VersionedKey {
        let mut out = Vec::with_capacity(self.0.len() + TS_LEN);
        out.extend_from_slice(&self.0);
        out.extend_from_slice(&(!ts.get()).to_be_bytes());
        VersionedKey(out.into())
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The encoded bytes, shared.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// True for "no bound".
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Encoded key + ts: the key of a record in the log and, behind `z`, in the `default` and
/// `write` column families.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionedKey(Bytes);

impl VersionedKey {
    /// Takes bytes after checking that a ts fits; the encoding in front is checked by
    /// [`VersionedKey::decode`].
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        split_versioned(&bytes)?;
        Ok(VersionedKey(bytes))
    }

    /// Encoded key and ts.
    pub fn split(&self) -> (EncodedKey, Ts) {
        let at = self.0.len() - TS_LEN;
        (EncodedKey(self.0.slice(..at)), self.ts())
    }

    /// User key and ts.
    pub fn decode(&self) -> Result<(Vec<u8>, Ts), KeyError> {
        let (key, ts) = self.split();
        Ok((key.decode()?, ts))
    }

    /// The ts alone.
    pub fn ts(&self) -> Ts {
        split_versioned(&self.0)
            .map(|(_, ts)| ts)
            .unwrap_or(Ts::ZERO)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, shared.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for EncodedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedKey({})", hex::encode_upper(&self.0))
    }
}

impl fmt::Debug for VersionedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VersionedKey({})", hex::encode_upper(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_without_it() {
        let end = |prefix: &[u8]| prefix_end(prefix);
        assert_eq!(end(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(end(&[1, 0xFF, 0xFF]).as_deref(), Some(&[2][..]));
        assert_eq!((end(&[0xFF]), end(b"")), (None, None));
    }

    fn encoded(raw: &[u8]) -> String {
        hex::encode(EncodedKey::encode(raw).as_bytes())
    }

    #[test]
    fn keys_encode_to_the_specified_bytes() {
        assert_eq!(encoded(b""), "0000000000000000f7");
        assert_eq!(encoded(b"a"), "6100000000000000f8");
        assert_eq!(encoded(b"12345678"), "3132333435363738ff0000000000000000f7");
        assert_eq!(
            encoded(b"123456789"),
            "3132333435363738ff3900000000000000f8"
        );
        let raw = hex::decode("766f6cfd41010000000000000049").unwrap();
        let key = EncodedKey::encode(&raw);
        let base = "766f6cfd41010000ff0000000000490000fd";
        assert_eq!(hex::encode(key.as_bytes()), base);
        for (ts, suffix) in [
            (446_850_000_000_000_005, "f9cc784ae21ddffa"),
            (446_850_000_000_000_001, "f9cc784ae21ddffe"),
        ] {
            let versioned = key.at(Ts::new(ts));
            assert_eq!(hex::encode(versioned.as_bytes()), format!("{base}{suffix}"));
            assert_eq!(versioned.decode().unwrap(), (raw.clone(), Ts::new(ts)));
        }
        assert_eq!(data_key(b"k"), b"zk");
    }

    #[test]
    fn damaged_encodings_are_refused_where_they_are_damaged() {
        let refused = |text: &str| {
            EncodedKey::from_encoded(hex::decode(text).unwrap())
                .decode()
                .unwrap_err()
        };
        let bad = |reason, offset| KeyError::BadEncoding { reason, offset };
        assert_eq!(refused(""), bad("ends inside a group", 0));
        assert_eq!(refused("6100000000000000"), bad("ends inside a group", 0));
        assert_eq!(refused("3132333435363738ff"), bad("ends inside a group", 9));
        assert_eq!(refused("6100000000000000f6"), bad("bad marker", 8));
        assert_eq!(refused("6100000001000000f8"), bad("padding is not zero", 8));
        assert_eq!(
            refused("6100000000000000f800"),
            bad("bytes after the key", 9)
        );
        assert_eq!(
            VersionedKey::from_bytes(&b"1234567"[..]),
            Err(KeyError::TooShort { len: 7 })
        );
    }

    /// Keys that share prefixes and contain the bytes that the encoding uses itself.
    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![
                Just(0u8),
                Just(1),
                Just(0xF7),
                Just(0xFE),
                Just(0xFF),
                any::<u8>()
            ],
            0..20,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_key_survives_a_round_trip_with_whatever_follows(raw in any_key(), tail: [u8; 8]) {
            let mut bytes = Vec::new();
            append_encoded(&raw, &mut bytes);
            prop_assert_eq!(bytes.len(), encoded_len(raw.len()));
            let used = bytes.len();
            bytes.extend(tail);
            prop_assert_eq!(decode_prefix(&bytes).unwrap(), (raw, used));
            prop_assert_eq!(check_prefix(&bytes).unwrap(), used);
        }

        #[test]
        fn encoded_keys_sort_as_the_keys_and_newer_versions_before_older(
            a in any_key(), b in any_key(), ts_a: u64, ts_b: u64,
        ) {
            let (key_a, key_b) = (EncodedKey::encode(&a), EncodedKey::encode(&b));
            prop_assert_eq!(key_a.cmp(&key_b), a.cmp(&b));
            let (at_a, at_b) = (key_a.at(Ts::new(ts_a)), key_b.at(Ts::new(ts_b)));
            prop_assert_eq!(at_a.cmp(&at_b), a.cmp(&b).then(ts_b.cmp(&ts_a)));
            let same = key_a.at(Ts::new(ts_b));
            prop_assert_eq!(at_a.cmp(&same), ts_b.cmp(&ts_a));
        }

        #[test]
        fn bytes_that_decode_are_the_encoding_of_what_they_decode_to(
            bytes in any::<Vec<u8>>(), marker in 0xF0u8..,
        ) {
            let mut near = bytes.clone();
            near.resize(8, 0);
            near.push(marker);
            for candidate in [bytes, near] {
                if let Ok((raw, used)) = decode_prefix(&candidate) {
                    let again = EncodedKey::encode(&raw);
                    prop_assert_eq!(again.as_bytes(), &candidate[..used]);
                }
                if let Ok(key) = VersionedKey::from_bytes(candidate) {
                    let _ = key.decode();
                }
            }
        }
    }
}
