//! One process that is a PD and a TiKV store, for demos and tests; never for production: one
//! node, no raft, no replication.

mod assembly;
pub mod cdc;
mod coordinator;
mod durable;
pub mod etcd;
mod import_host;
mod node;
#[cfg(test)]
mod node_tests;
pub mod pd;
mod realpd;
mod status;
pub mod store;

pub use assembly::STORE_VERSION;
pub use coordinator::TimestampError;
pub use node::{MIN_RESOLVED_TS_INTERVAL, Playground, PlaygroundConfig, StartError};
pub use realpd::RealPdError;
