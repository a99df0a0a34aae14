//! The root object `backupmeta` of a log archive: whose log it is and where it starts.
//!
//! A `brpb.BackupMeta` with only the fields that BR's `log start` sets; readers refuse fields
//! they do not know, so ours go to [`crate::start_probe`]. A message with an end version belongs
//! to a snapshot backup. Source: pingcap/tidb `br/pkg/task/stream.go`,
//! `br/pkg/metautil/metafile.go`. Written by `log start`, read by everything that opens an archive.

use bytes::Bytes;
use pitr_proto::backup::BackupMeta;
use prost::Message;

use crate::{Class, Ts};

/// Layout of the message that BR calls V2.
const LAYOUT_V2: i32 = 1;
/// Compatibility gate: readers refuse a larger one than they know.
pub const SCHEMA_VERSION: u32 = 1;
/// The object of a log archive has some 40 bytes; that of a snapshot can have many MiB.
const MAX_LEN: usize = 1 << 20;

/// Why an object is not the `backupmeta` of a log archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupMetaError {
    /// A snapshot backup lies here.
    #[error("the storage holds a snapshot backup as of {end_version}, not a log backup")]
    Snapshot {
        /// Ts of the snapshot.
        end_version: u64,
    },
    /// Far larger than the object of a log archive.
    #[error("backupmeta of {0} bytes is not that of a log backup (a snapshot backup?)")]
    TooLarge(usize),
    /// Not the protobuf message.
    #[error("backupmeta is damaged: {0}")]
    Damaged(String),
}

impl BackupMetaError {
    /// The storage has to be another one.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// What `backupmeta` says about a log archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBackupMeta {
    /// The cluster that is backed up.
    pub cluster_id: u64,
    /// Version text of the cluster as PD gives it (BR keeps the quotes around it).
    pub cluster_version: String,
    /// Start of the log: every change with a commit ts above it is in the archive.
    pub start_ts: Ts,
    /// [`SCHEMA_VERSION`] when written by us; 0 from earlier BR.
    pub backup_schema_version: u32,
}

/// The bytes of the object.
pub fn encode(meta: &LogBackupMeta) -> Bytes {
    let message = BackupMeta {
        cluster_id: meta.cluster_id,
        cluster_version: meta.cluster_version.clone(),
        start_version: meta.start_ts.get(),
        version: LAYOUT_V2,
        backup_schema_version: meta.backup_schema_version,
        ..BackupMeta::default()
    };
    message.encode_to_vec().into()
}

/// Reads the object; refuses that of a snapshot backup.
pub fn decode(bytes: &[u8]) -> Result<LogBackupMeta, BackupMetaError> {
    if bytes.len() > MAX_LEN {
        return Err(BackupMetaError::TooLarge(bytes.len()));
    }
    let message = BackupMeta::decode(bytes).map_err(|e| BackupMetaError::Damaged(e.to_string()))?;
    if message.end_version > 0 {
        return Err(BackupMetaError::Snapshot {
            end_version: message.end_version,
        });
    }
    // Any protobuf message may be cut between two fields, or be empty, and still be one.
    let missing = match (message.cluster_id, message.start_version) {
        (0, _) => Some("it names no cluster"),
        (_, 0) => Some("it names no begin of the log"),
        _ => None,
    };
    if let Some(missing) = missing {
        return Err(BackupMetaError::Damaged(missing.to_owned()));
    }
    Ok(LogBackupMeta {
        cluster_id: message.cluster_id,
        cluster_version: message.cluster_version,
        start_ts: Ts::new(message.start_version),
        backup_schema_version: message.backup_schema_version,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> LogBackupMeta {
        LogBackupMeta {
            cluster_id: 7_710_790_300_897_967_823,
            cluster_version: "\"8.5.6\"".to_owned(),
            start_ts: Ts::new(470_630_700_887_572_481),
            backup_schema_version: SCHEMA_VERSION,
        }
    }

    #[test]
    fn only_the_five_fields_of_log_start_are_on_the_wire() {
        let bytes = encode(&sample());
        // Tags: 1 cluster id, 2 cluster version, 5 start version, 12 layout, 26 schema version.
        let expected = "08cffdb3b4cddd8e816b120722382e352e3622288180b096908481c4066001d00101";
        assert_eq!(hex::encode(&bytes), expected);
        assert_eq!(decode(&bytes), Ok(sample()));
    }

    #[test]
    fn the_meta_of_a_snapshot_backup_is_refused() {
        let snapshot = BackupMeta {
            end_version: 99,
            ..BackupMeta::default()
        };
        assert_eq!(
            decode(&snapshot.encode_to_vec()),
            Err(BackupMetaError::Snapshot { end_version: 99 })
        );
        let large = vec![0; MAX_LEN + 1];
        assert_eq!(decode(&large), Err(BackupMetaError::TooLarge(large.len())));
    }

    #[test]
    fn a_meta_that_was_cut_anywhere_before_its_begin_of_the_log_is_damaged() {
        let whole = encode(&sample());
        // What follows says how the log is laid out, which has only one value.
        let begin = whole.len() - 5;
        for len in 0..begin {
            let refused = decode(&whole[..len]);
            assert!(matches!(refused, Err(BackupMetaError::Damaged(_))), "{len}");
        }
        assert!(decode(&whole).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
        }
    }
}
