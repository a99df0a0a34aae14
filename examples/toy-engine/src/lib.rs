//! How an engine embeds point-in-time recovery: a toy engine with a replicated log, backed up by
//! `pitr-observer` and restored by `pitr-restore-worker`, both without RocksDB and without gRPC.
//!
//! | module | what an embedder has to bring |
//! |---|---|
//! | [`replica`] | an engine: column families of sorted keys, and files it can take in |
//! | [`log`] | its replicated log: one order of commands, applied by every replica |
//! | [`txn`] | its transactions (two-phase, as TiKV's): locks, values, write records |
//! | [`hook`] | the hook behind apply: rows and resolved ts, and a scan that joins them without a gap |
//! | [`environment`] | clock, threads, randomness, metrics registry and memory budgets |
//! | [`backup`] | the loop: events in, flush, publish |
//! | [`restore`] | a restore that goes through the engine's own proposer |
//!
//! The story of `main.rs` is a test as well.

pub mod backup;
pub mod environment;
pub mod hook;
pub mod log;
pub mod replica;
pub mod restore;
pub mod txn;

/// Whatever a part of the example reports.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
