//! etcd v3 as PD's client port serves it: the key space where log backup tasks live.
//!
//! Any member may answer; calls carry `hasleader`, so that a partitioned member refuses instead
//! of answering from the past. Used by [`crate::tasks`] and [`crate::seat`].

mod client;
mod error;
mod lease;
mod watch;

pub use client::{EtcdClient, TxnOutcome, compare, op, prefix_end};
pub use error::EtcdError;
pub use watch::{WatchBatch, Watcher};
