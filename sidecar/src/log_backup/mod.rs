//! `logbackup.LogBackup` as a TiKV serves it: which part of the log is durable here, told to
//! whoever merges it with that of the other stores (our coordinator, TiDB, `br log advancer`), and
//! a flush on demand.
//!
//! [`table`] is what the service knows, filled by the sessions after each flush; [`orders`] are
//! flushes that somebody asked for; [`service`] speaks gRPC.

pub mod orders;
pub mod service;
pub mod table;

pub use orders::{FlushOrder, FlushOrders};
pub use service::LogBackupService;
pub use table::FlushTables;
