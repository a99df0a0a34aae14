//! The world around a store: PD, PD's etcd with the task registry, the store's change stream and
//! its transactional and import services.
//!
//! Plaintext gRPC only. Nothing here reads the environment, prints or owns a runtime; tasks are
//! spawned on the caller's tokio runtime.

pub mod backoff;
pub mod cdc;
pub mod etcd;
pub mod net;
pub mod pd;
pub mod regions;
pub mod tasks;
