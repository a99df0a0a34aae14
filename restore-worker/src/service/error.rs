//! Why a call failed, in words that begin like TiKV's (tikv/tikv `components/sst_importer/src/
//! errors.rs`), so that BR understands them.

use pitr_format::Class;
use pitr_proto::{errorpb, import_sstpb};
use pitr_storage::StorageError;

use super::host::RegionError;
use super::import_dir::ImportDirError;

/// Wait that a busy answer proposes.
const BUSY_BACKOFF_MS: u64 = 1_000;

/// Failure of `Apply` or of a download; travels as `import_sstpb.Error`.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Region, leader, epoch or store do not fit.
    #[error("failed to complete raft command: {}", .0.message)]
    Region(RegionError),
    /// The engine failed.
    #[error("failed to complete raft command: {0}")]
    Engine(String),
    /// Files for a region can only be taken where it is.
    #[error("region {0} not found, maybe it's not a replica of this store")]
    NotHere(u64),
    /// The request contradicts itself.
    #[error("bad format {0}")]
    BadFormat(String),
    /// The object is missing, cut, or not what the request says.
    #[error("Cannot read {uri}/{name} into {into}: {what}")]
    CannotRead {
        /// The storage, without secrets.
        uri: String,
        /// The object.
        name: String,
        /// Where its bytes were to go.
        into: String,
        /// What is wrong.
        what: String,
        /// Whether another try may help.
        class: Class,
    },
    /// The storage cannot be opened.
    #[error("{0}")]
    Storage(String),
    /// LZ4 and Snappy, as TiKV.
    #[error("the compression type is unimplemented, compression type id {0}")]
    Compression(String),
    /// The key for an encrypted input is missing or of a kind that is not supported.
    #[error("encryption: {0}")]
    Encryption(String),
    /// A key does not begin as the rule says.
    #[error("{what} has wrong prefix: key {key} does not start with {prefix}")]
    WrongKeyPrefix {
        /// Which key.
        what: String,
        /// The key, hex.
        key: String,
        /// The prefix, hex.
        prefix: String,
    },
    /// A file of the same identity was made from something else.
    #[error("MisMatchRequest: {0} was downloaded for another request")]
    MisMatchRequest(String),
    /// The import directory.
    #[error("{0}")]
    Dir(#[from] ImportDirError),
    /// All memory for imports is in use.
    #[error("resource is not enough memory is limited")]
    Busy,
}

impl ImportError {
    /// What a driver can do about it.
    pub fn class(&self) -> Class {
        match self {
            ImportError::Region(_) | ImportError::NotHere(_) => Class::Refresh,
            ImportError::Busy => Class::Retry,
            ImportError::CannotRead { class, .. } => *class,
            ImportError::Dir(error) => error.class(),
            ImportError::Engine(_)
            | ImportError::BadFormat(_)
            | ImportError::Storage(_)
            | ImportError::Compression(_)
            | ImportError::Encryption(_)
            | ImportError::WrongKeyPrefix { .. }
            | ImportError::MisMatchRequest(_) => Class::Permanent,
        }
    }

    pub(super) fn into_message(self) -> import_sstpb::Error {
        let message = self.to_string();
        let store_error = match self {
            ImportError::Region(error) => Some(*error),
            ImportError::Busy => Some(errorpb::Error {
                // BR waits on exactly this text (br/pkg/restore/log_client/import_retry.go).
                message: "memory is limited".to_owned(),
                server_is_busy: Some(errorpb::ServerIsBusy {
                    reason: "memory is limited".to_owned(),
                    backoff_ms: BUSY_BACKOFF_MS,
                    ..errorpb::ServerIsBusy::default()
                }),
                ..errorpb::Error::default()
            }),
            _ => None,
        };
        import_sstpb::Error {
            message,
            store_error,
        }
    }
}

/// Which object is read, and into what: the frame of [`ImportError::CannotRead`].
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) uri: String,
    pub(super) name: String,
    pub(super) into: String,
}

impl Reading {
    /// The object is not what it should be; that does not change by itself.
    pub(super) fn damaged(&self, what: impl ToString) -> ImportError {
        self.failed(what, Class::Permanent)
    }

    /// The storage did not give it.
    pub(super) fn refused(&self, error: &StorageError) -> ImportError {
        self.failed(&error.detail, error.class())
    }

    fn failed(&self, what: impl ToString, class: Class) -> ImportError {
        ImportError::CannotRead {
            uri: self.uri.clone(),
            name: self.name.clone(),
            into: self.into.clone(),
            what: what.to_string(),
            class,
        }
    }
}
