//! A user key as people write it: raw text, `hex:` of raw bytes, or `encoded:` hex as it stands in
//! metas, region bounds and data keys.

use pitr_format::EncodedKey;
use pitr_format::key::{DATA_PREFIX, TS_LEN, check_prefix};

/// Why a text names no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyTextError {
    /// `hex:` or `encoded:` with something that is not hex.
    #[error("`{0}` is not hex: give pairs of the digits 0-9 and a-f")]
    NotHex(String),
    /// `encoded:` with bytes that TiKV's encoding cannot produce.
    #[error("`{0}` is not an encoded key: raw bytes are given as `hex:`, text as it is")]
    NotEncoded(String),
}

/// Reads a key; the result is the encoded key without ts.
pub(super) fn parse(text: &str) -> Result<EncodedKey, KeyTextError> {
    let bytes =
        |digits: &str| hex::decode(digits).map_err(|_| KeyTextError::NotHex(digits.to_owned()));
    if let Some(digits) = text.strip_prefix("hex:") {
        return Ok(EncodedKey::encode(&bytes(digits)?));
    }
    let Some(digits) = text.strip_prefix("encoded:") else {
        return Ok(EncodedKey::encode(text.as_bytes()));
    };
    let given = bytes(digits)?;
    // A data key has a `z` before it; a key of a version has its ts behind it.
    let unprefixed = match given.split_first() {
        Some((&DATA_PREFIX, rest)) => rest,
        _ => &given[..],
    };
    let found = [&given[..], unprefixed].into_iter().find_map(encoded_part);
    let found = found.ok_or_else(|| KeyTextError::NotEncoded(digits.to_owned()))?;
    Ok(EncodedKey::from_encoded(found.to_vec()))
}

/// The encoded key in front of nothing, or of exactly one ts.
fn encoded_part(bytes: &[u8]) -> Option<&[u8]> {
    let len = check_prefix(bytes).ok()?;
    let rest = bytes.len() - len;
    (rest == 0 || rest == TS_LEN).then(|| bytes.split_at(len).0)
}

/// Whether a slice with these bounds (versioned keys, both included) may hold a version of `key`.
/// Without bounds it may.
pub(super) fn may_hold(start: &[u8], end: &[u8], key: &EncodedKey) -> bool {
    if start.is_empty() && end.is_empty() {
        return true;
    }
    let with = |byte| [key.as_bytes(), &[byte; TS_LEN]].concat();
    start <= &with(0xFF)[..] && end >= &with(0)[..]
}

#[cfg(test)]
mod tests {
    use pitr_format::Ts;

    use super::*;

    #[test]
    fn every_form_of_the_same_key_is_the_same() {
        let expected = EncodedKey::encode(b"user-0001");
        let encoded = hex::encode(expected.as_bytes());
        let versioned = hex::encode_upper(expected.at(Ts::new(77)).as_bytes());
        for text in [
            "user-0001".to_owned(),
            "hex:757365722d30303031".to_owned(),
            format!("encoded:{encoded}"),
            format!("encoded:7a{encoded}"),
            format!("encoded:{versioned}"),
            format!("encoded:7A{versioned}"),
        ] {
            assert_eq!(parse(&text).as_ref(), Ok(&expected), "{text}");
        }
        let begins_with_z = EncodedKey::encode(b"zebra");
        let encoded = hex::encode(begins_with_z.as_bytes());
        assert_eq!(parse(&format!("encoded:{encoded}")), Ok(begins_with_z));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(matches!(parse("hex:xy"), Err(KeyTextError::NotHex(_))));
        for text in ["encoded:00", "encoded:", "encoded:757365722d30303031"] {
            assert!(
                matches!(parse(text), Err(KeyTextError::NotEncoded(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn the_bounds_of_a_slice_decide_whether_it_is_read() {
        let key = |raw: &[u8]| EncodedKey::encode(raw);
        let at = |raw: &[u8], ts| key(raw).at(Ts::new(ts)).as_bytes().to_vec();
        let b = key(b"b");
        assert!(may_hold(&at(b"a", 1), &at(b"c", 1), &b));
        assert!(may_hold(&at(b"b", 9), &at(b"b", 1), &b));
        assert!(may_hold(&at(b"b", 1), &at(b"c", 1), &b));
        assert!(may_hold(&[], &[], &b));
        assert!(!may_hold(&at(b"a", 1), &at(b"a", 1), &b));
        assert!(!may_hold(&at(b"b\0", 9), &at(b"c", 1), &b));
    }
}
