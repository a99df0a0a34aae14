//! Failures of reads.

use pitr_format::{Class, Ts};
use pitr_proto::errorpb;

use crate::pd::PdError;
use crate::stores::StoreError;

/// Failure of a read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KvError {
    /// PD failed.
    #[error(transparent)]
    Pd(#[from] PdError),
    /// A store cannot be dialled.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Regions moved, stores failed or were busy for too long.
    #[error("{call} at key {key} failed {attempts} times, last: {last}")]
    Exhausted {
        /// The call.
        call: &'static str,
        /// Raw key, hex.
        key: String,
        /// Attempts made.
        attempts: u32,
        /// The last failure.
        last: String,
    },
    /// A transaction that is alive keeps its lock.
    #[error(
        "key {key} is locked by transaction {start_ts}, still alive after {seconds} s; wait for it or end its client"
    )]
    Locked {
        /// Raw key, hex.
        key: String,
        /// The transaction.
        start_ts: Ts,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The store refuses; repeating cannot help.
    #[error("the store refused {call}: {text}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The store's words.
        text: String,
    },
    /// The answer is larger than a message may be: ask for less.
    #[error("the answer to {call} is larger than a message may be: {text}")]
    TooLarge {
        /// The call.
        call: &'static str,
        /// The words of the transport.
        text: String,
    },
    /// A region bound is no encoded key: the cluster holds other data than transactional.
    #[error("region {region_id} ends at {bound}, which is not an encoded key")]
    BadBound {
        /// The region.
        region_id: u64,
        /// Its end, hex.
        bound: String,
    },
}

impl KvError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            KvError::Pd(error) => error.class(),
            KvError::Store(error) => error.class(),
            KvError::Exhausted { .. } | KvError::Locked { .. } => Class::Retry,
            KvError::Refused { .. } | KvError::TooLarge { .. } | KvError::BadBound { .. } => {
                Class::Permanent
            }
        }
    }
}

/// The kind of a region error, with its message.
pub fn region_error_text(error: &errorpb::Error) -> String {
    let kinds = [
        (error.not_leader.is_some(), "not leader"),
        (error.region_not_found.is_some(), "region not found"),
        (error.key_not_in_region.is_some(), "key not in region"),
        (error.epoch_not_match.is_some(), "epoch not match"),
        (error.server_is_busy.is_some(), "server is busy"),
        (error.stale_command.is_some(), "stale command"),
        (error.store_not_match.is_some(), "store not match"),
        (error.raft_entry_too_large.is_some(), "raft entry too large"),
        (error.disk_full.is_some(), "disk full"),
    ];
    let kind = kinds.iter().find(|(set, _)| *set).map(|(_, name)| *name);
    match (kind, error.message.is_empty()) {
        (Some(kind), true) => kind.to_owned(),
        (Some(kind), false) => format!("{kind}: {}", error.message),
        (None, _) => format!("region error: {}", error.message),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}
