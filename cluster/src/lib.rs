//! The world around a store: PD, PD's etcd with the task registry, the store's change stream and
//! its transactional and import services.
//!
//! Order of the data: [`tasks`] says what to observe, [`regions`] says where it is and keeps it
//! subscribed through [`cdc`], which turns rows into the records that log backup stores.
//! [`seat`] lets one process at a time speak for a store.
//! [`kv`] and [`import`] are what probes, digests and the restore driver need of a store.
//! [`tls`] is the one triple of certificates that all of them, and what listens, use.
//! Nothing here reads the environment, prints or owns a runtime; tasks are
//! spawned on the caller's tokio runtime.

pub mod backoff;
pub mod cdc;
pub mod etcd;
pub mod import;
pub mod kv;
pub mod net;
pub mod pd;
pub mod regions;
pub mod seat;
pub mod stores;
pub mod tasks;
pub mod tls;
