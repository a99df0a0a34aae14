//! What etcd answers when it refuses. Texts and codes are etcd's: clients compare them.
//! Source: etcd `api/v3rpc/rpctypes/error.go`.

use std::io;
use std::path::PathBuf;

use pitr_format::Class;
use tonic::Status;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A request without a key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// The history does not reach back that far.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// Two puts of a transaction name the same key.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// The lease ended or never was.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// The lease id is in use.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// The journal cannot be written or read.
    #[error("etcd journal {path}: {source}; check the disk and the permissions")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line in the middle of the journal is not what was written.
    #[error("etcd journal {path} is damaged at line {line}: {reason}; use another data directory")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

impl EtcdError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            EtcdError::Journal { .. } => Class::Retry,
            EtcdError::Compacted | EtcdError::LeaseNotFound => Class::Refresh,
            _ => Class::Permanent,
        }
    }
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Status {
        let text = error.to_string();
        match error {
            EtcdError::EmptyKey | EtcdError::DuplicateKey => Status::invalid_argument(text),
            EtcdError::Compacted | EtcdError::FutureRevision => Status::out_of_range(text),
            EtcdError::LeaseNotFound => Status::not_found(text),
            EtcdError::LeaseExists => Status::failed_precondition(text),
            EtcdError::Journal { .. } => Status::unavailable(text),
            EtcdError::Damaged { .. } => Status::data_loss(text),
        }
    }
}
