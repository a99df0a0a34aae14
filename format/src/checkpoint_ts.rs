//! The content of `v1/global_checkpoint/{store}.ts`: 8 bytes, *little-endian* (the same value in
//! PD is big-endian, see [`crate::pd_value`]). Source: tikv/tikv
//! `components/backup-stream/src/router.rs`, pingcap/tidb `br/pkg/task/stream.go`. Written by the
//! observer's publication, read by restore.

use crate::{Class, Ts};

/// The object has another size than 8 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("global checkpoint has {len} bytes instead of 8")]
pub struct CheckpointTsError {
    /// Bytes found.
    pub len: usize,
}

impl CheckpointTsError {
    /// Damaged bytes stay damaged.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// The bytes of the object.
pub fn encode(checkpoint: Ts) -> [u8; 8] {
    checkpoint.get().to_le_bytes()
}

/// Reads the object.
pub fn decode(bytes: &[u8]) -> Result<Ts, CheckpointTsError> {
    <[u8; 8]>::try_from(bytes)
        .map(|bytes| Ts::new(u64::from_le_bytes(bytes)))
        .map_err(|_| CheckpointTsError { len: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_eight_little_endian_bytes_and_nothing_else() {
        let ts = Ts::new(0x0688_0421_9354_0001);
        assert_eq!(hex::encode(encode(ts)), "0100549321048806");
        assert_eq!(decode(&encode(ts)), Ok(ts));
        for len in [0, 7, 9] {
            assert_eq!(decode(&vec![0; len]), Err(CheckpointTsError { len }));
        }
    }
}
