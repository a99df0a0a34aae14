//! The values of checkpoint keys in PD's etcd (`central_global`, `storage-checkpoint`, …): 8
//! bytes, *big-endian* (the object in the archive is little-endian, see
//! [`crate::checkpoint_ts`]). Source: tikv/tikv `components/backup-stream/src/metadata/client.rs`,
//! pingcap/tidb `br/pkg/streamhelper/advancer_cliext.go`. Used by the task registry.

use crate::{Class, Ts};

/// The value has another size than 8 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checkpoint in PD has {len} bytes instead of 8")]
pub struct PdValueError {
    /// Bytes found.
    pub len: usize,
}

impl PdValueError {
    /// The value stays wrong until somebody overwrites it.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// The value of a checkpoint key.
pub fn encode_checkpoint(checkpoint: Ts) -> [u8; 8] {
    checkpoint.get().to_be_bytes()
}

/// Reads the value of a checkpoint key.
pub fn decode(bytes: &[u8]) -> Result<Ts, PdValueError> {
    <[u8; 8]>::try_from(bytes)
        .map(|bytes| Ts::new(u64::from_be_bytes(bytes)))
        .map_err(|_| PdValueError { len: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_in_pd_is_eight_big_endian_bytes_and_nothing_else() {
        let ts = Ts::new(0x0688_0421_9354_0001);
        assert_eq!(hex::encode(encode_checkpoint(ts)), "0688042193540001");
        assert_eq!(decode(&encode_checkpoint(ts)), Ok(ts));
        for len in [0, 7, 9] {
            assert_eq!(decode(&vec![0; len]), Err(PdValueError { len }));
        }
    }
}
