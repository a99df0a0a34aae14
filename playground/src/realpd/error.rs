//! Why the store cannot be a store of a real PD.

use std::path::PathBuf;

use pitr_cluster::pd::PdError;
use pitr_format::Class;

/// Failure at a real PD.
#[derive(Debug, thiserror::Error)]
pub enum RealPdError {
    /// The call failed.
    #[error(transparent)]
    Call(#[from] PdError),
    /// The first URL names no host.
    #[error("PD URL {url:?}: {reason}; expected http://host:port")]
    Address {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The cluster has another store.
    #[error(
        "cluster {cluster_id} has stores already ({addresses}); the playground is a whole cluster, use a PD of its own"
    )]
    Occupied {
        /// The cluster.
        cluster_id: u64,
        /// Addresses of the stores.
        addresses: String,
    },
    /// The data directory belongs to another cluster.
    #[error(
        "{path} belongs to cluster {found}, the PD to cluster {wanted}; use another data directory or that cluster's PD"
    )]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Cluster of the file.
        found: u64,
        /// Cluster of the PD.
        wanted: u64,
    },
    /// The data directory was used with the playground's own PD.
    #[error(
        "{path} exists: this data directory was used with the playground's own PD; use another one"
    )]
    OwnPd {
        /// File of the own PD.
        path: PathBuf,
    },
    /// The file of the ids.
    #[error("{path}: {source}; check the disk, or use another data directory")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The playground ended meanwhile.
    #[error("the playground has ended")]
    Stopped,
}

impl RealPdError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            RealPdError::Call(error) => error.class(),
            RealPdError::Identity { .. } => Class::Retry,
            RealPdError::Address { .. }
            | RealPdError::Occupied { .. }
            | RealPdError::OtherCluster { .. }
            | RealPdError::OwnPd { .. }
            | RealPdError::Stopped => Class::Permanent,
        }
    }
}
