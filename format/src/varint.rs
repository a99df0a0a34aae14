//! Unsigned LEB128 numbers, as they stand inside write records and protobuf messages.
//!
//! Source: tikv/tikv `components/codec/src/number.rs`. Crate-internal.

/// Longest encoding of a `u64`.
pub(crate) const MAX_LEN: usize = 10;

/// Why bytes do not start with a varint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VarintError {
    /// The bytes end before the last byte of the number.
    Truncated,
    /// More than 64 bits.
    Overflow,
}

/// Appends `number` in its shortest form.
pub(crate) fn append(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The number at the start of `bytes` and how many bytes it took.
pub(crate) fn decode(bytes: &[u8]) -> Result<(u64, usize), VarintError> {
    let mut number = 0u64;
    for (i, byte) in bytes.iter().take(MAX_LEN).enumerate() {
        // The tenth byte carries bit 63 only.
        if i == MAX_LEN - 1 && *byte > 1 {
            return Err(VarintError::Overflow);
        }
        number |= u64::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok((number, i + 1));
        }
    }
    Err(VarintError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_every_length_boundary_survive_a_round_trip() {
        let mut numbers = vec![0, u64::MAX];
        for shift in 0..64 {
            numbers.extend([1 << shift, (1u64 << shift) - 1]);
        }
        for number in numbers {
            let mut out = Vec::new();
            append(number, &mut out);
            assert_eq!(decode(&out), Ok((number, out.len())));
            assert!(out.len() <= MAX_LEN);
            out.pop();
            assert_eq!(decode(&out), Err(VarintError::Truncated));
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        let ten = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
        let with_last = |last: u8| decode(&[&ten[..], &[last, 0]].concat());
        assert_eq!(with_last(1), Ok((u64::MAX, 10)));
        assert_eq!(with_last(2), Err(VarintError::Overflow));
        assert_eq!(with_last(0x81), Err(VarintError::Overflow));
    }
}
