//! The coordinator of log backup: what TiDB's checkpoint advancer is, for clusters without TiDB
//! and for sidecars beside the stores.
//!
//! One process in the cluster is elected ([`election`]). For each task it asks every store what is
//! durable ([`directory`], [`streams`], [`poll`]), merges the answers ([`spans`]), raises
//! `central_global` in PD, keeps GC behind it and watches the lag ([`policy`]): one [`desk`] for each
//! task, all led by the [`coordinator`]. On request it moves GC, too ([`gc_driver`]). [`spans`] and [`policy`] are pure; the rest does I/O on the
//! caller's runtime.
//!
//! Stores are asked for *one* task with [`REGISTRATION`]: a sidecar that serves several tasks
//! answers for that one, and one that has not loaded it yet has nothing to say. A stock TiKV serves
//! one task and does not look.

pub mod coordinator;
pub mod desk;
pub mod directory;
pub mod election;
pub mod gc_driver;
pub mod policy;
pub mod poll;
pub mod resume;
pub mod spans;
pub mod status;
pub mod streams;

use pitr_cluster::etcd::EtcdError;
use pitr_cluster::pd::PdError;
use pitr_cluster::tasks::TaskError;
use pitr_format::Class;

pub use coordinator::{Coordinator, Options};
pub use gc_driver::GcDriver;
pub use policy::{LagStage, Policy};
pub use spans::SpanMap;
pub use status::{CoordinatorStatus, GcRound, StoreHealth, StoreProgress, TaskProgress};

/// Request metadata that names the task which is meant, by the revision of its registration.
pub const REGISTRATION: &str = "pitr-registration";

/// The cluster did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// PD.
    #[error(transparent)]
    Pd(#[from] PdError),
    /// Its etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The registry of tasks in it.
    #[error(transparent)]
    Task(#[from] TaskError),
}

impl CoordinatorError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            CoordinatorError::Pd(error) => error.class(),
            CoordinatorError::Etcd(error) => error.class(),
            CoordinatorError::Task(error) => error.class(),
        }
    }
}
