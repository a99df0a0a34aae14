//! The registry of log backup tasks: the keys that `br log` writes into PD's etcd.
//!
//! [`TaskRegistry`] reads and writes them, byte for byte as BR does, so that both can manage each
//! other's tasks; [`TaskEvent`]s tell the sidecar what to load and unload.

mod follow;
mod global;
pub mod keys;
mod registry;

use bytes::Bytes;
use pitr_format::{Class, EncodedKey, EncodedRange};
use pitr_proto::backup::StreamBackupTaskInfo;

pub use follow::TaskEvent;
pub use registry::TaskRegistry;

use crate::etcd::EtcdError;

/// A task as it stands in the registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Name; the last part of its keys.
    pub name: String,
    /// Storage, start ts and the rest that BR stores.
    pub info: StreamBackupTaskInfo,
    /// Raw (not encoded) `[start, end)`; an empty end is unbounded.
    pub ranges: Vec<(Bytes, Bytes)>,
    /// A key under `pause/` exists.
    pub paused: bool,
}

impl Task {
    /// Whether both tasks log keys of the same range.
    pub fn overlaps(&self, other: &Task) -> bool {
        let theirs = other.encoded_ranges();
        let shares = |own: &EncodedRange| theirs.iter().any(|range| own.intersect(range).is_some());
        self.encoded_ranges().iter().any(shares)
    }

    /// The ranges as encoded keys, as regions have them, ascending.
    pub fn encoded_ranges(&self) -> Vec<EncodedRange> {
        let encode = |raw: &Bytes| match raw.is_empty() {
            true => Bytes::new(),
            false => EncodedKey::encode(raw).into_bytes(),
        };
        let mut ranges: Vec<_> = self
            .ranges
            .iter()
            .map(|(start, end)| EncodedRange::new(encode(start), encode(end)))
            .filter(|range| !range.is_empty())
            .collect();
        ranges.sort_by(|a, b| a.start.cmp(&b.start));
        ranges
    }
}

/// Failure of an operation on the registry.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TaskError {
    /// etcd failed.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// A task of that name, or with keys of the ranges asked for.
    #[error(
        "task {existing:?} is already registered, with that name or with keys of these ranges; stop it first (`log stop --task-name {existing}`)"
    )]
    Exists {
        /// The task that is in the way.
        existing: String,
    },
    /// No such task, or it was stopped meanwhile.
    #[error("task {name:?} is not registered")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// A name that cannot be part of a key.
    #[error("task name {name:?} is not usable: it must not be empty and not contain '/' or NUL")]
    BadName {
        /// The name given.
        name: String,
    },
    /// A value in the registry is not what it must be.
    #[error("the value of {key:?} in PD is damaged: {reason}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Others changed the key all the time.
    #[error("{key:?} in PD is being changed by others; try again")]
    Contended {
        /// The key.
        key: String,
    },
}

impl TaskError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            TaskError::Etcd(error) => error.class(),
            TaskError::Contended { .. } => Class::Retry,
            TaskError::Exists { .. }
            | TaskError::NotFound { .. }
            | TaskError::BadName { .. }
            | TaskError::Damaged { .. } => Class::Permanent,
        }
    }
}
