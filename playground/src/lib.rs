//! One process that is a PD and one or several TiKV stores, for demos and tests; never for
//! production: one process, no raft; several stores hold the same data because each command is
//! written to all of them.

mod admin;
mod assembly;
pub mod cdc;
pub mod certificates;
mod coordinator;
mod durable;
pub mod etcd;
mod import_host;
mod metrics;
mod node;
#[cfg(test)]
mod node_tests;
mod outage;
pub mod pd;
mod realpd;
mod server;
mod status;
pub mod store;
mod tls;

pub use assembly::STORE_VERSION;
pub use coordinator::TimestampError;
pub use node::{MIN_RESOLVED_TS_INTERVAL, Playground, PlaygroundConfig, StartError};
pub use outage::OutageError;
pub use realpd::RealPdError;
pub use server::StoreAddress;
