//! The content of [`crate::object_name::TRUNCATE_SAFEPOINT`]: a decimal ts without a newline (BR
//! does not trim). Records at or below it may be gone. Source: pingcap/tidb
//! `br/pkg/stream/stream_metas.go`. Read by restore; an absent object means 0.

use crate::{Class, Ts};

/// The object is no decimal number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("truncate safepoint is not a decimal ts: {text:?}")]
pub struct TruncateSafepointError {
    /// The start of the content.
    pub text: String,
}

impl TruncateSafepointError {
    /// Damaged bytes stay damaged.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// The text of the object.
pub fn encode(safepoint: Ts) -> String {
    safepoint.to_string()
}

/// Reads the object; surrounding white space, as an editor leaves it, is accepted.
pub fn decode(bytes: &[u8]) -> Result<Ts, TruncateSafepointError> {
    let digits = bytes.trim_ascii();
    let number = match std::str::from_utf8(digits) {
        // `parse` alone would accept a sign.
        Ok(text) if digits.iter().all(u8::is_ascii_digit) => text.parse().ok(),
        _ => None,
    };
    number.map(Ts::new).ok_or_else(|| TruncateSafepointError {
        text: String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safepoint_is_plain_decimal_text() {
        let ts = Ts::new(446_850_000_000_000_001);
        assert_eq!(encode(ts), "446850000000000001");
        assert_eq!(decode(encode(ts).as_bytes()), Ok(ts));
        assert_eq!(decode(b"12\n"), Ok(Ts::new(12)));
        for bad in [
            &b""[..],
            b"+1",
            b"-1",
            b"0x1",
            b"18446744073709551616",
            b"\xFF",
            b"1 2",
        ] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }
}
