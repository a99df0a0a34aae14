//! Durable log to engine: select, plan, fetch, verify, filter, rewrite, merge, SST, ingest.
//!
//! | module | step |
//! |---|---|
//! | [`env`] | clock, threads, randomness and memory of the embedder |
//! | [`archive`] | opens an archive: what it says about itself, its metas |
//! | [`plan`] | metas and window → range requests; printable |
//! | [`fetch`] | bytes of a request, proved slice by slice |
//! | [`filter`], [`rewrite`] | which records, under which key |
//! | [`merge`] | external sort within a memory bound |
//! | [`cut`], [`sst`] | join of values and write records, files per target region |
//! | [`restore`] | the driver: all of the above into a [`target`], with a report and its proof |
//! | [`verify`] | checks an archive without restoring it |
//! | `service` (feature `grpc`) | `import_sstpb.ImportSST` over an engine |
//! | [`engine`], [`browse`], [`digest`] | an engine to restore into and to read afterwards |
//!
//! An engine fork brings its own [`engine::Engine`] or [`target::Target`] and its own
//! [`sst::SstFactory`], and links neither RocksDB nor gRPC (`default-features = false`);
//! `examples/toy-engine` restores through its own proposer. With RocksDB it is:
//!
//! ```
//! # #[cfg(feature = "rocks")]
//! # async fn restore_to(temp: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! # use std::sync::Arc;
//! use pitr_budget::MemoryBudget;
//! use pitr_format::Ts;
//! use pitr_restore_worker::engine::rocks::RocksEngine;
//! use pitr_restore_worker::target::EngineTarget;
//! use pitr_restore_worker::{Archive, Env, Progress, RestoreOptions, Window, plan, restore};
//!
//! let storage = pitr_storage::open_existing_url("local:///backup/daily")?;
//! let env = Env::system(MemoryBudget::new(512 << 20));
//! let archive = Archive::open(storage.clone(), env.clone()).await?;
//! let window = Window {
//!     start: None,
//!     restored: archive.info.log_max.unwrap_or(Ts::ZERO),
//!     ranges: Vec::new(),
//!     log_only: false,
//! };
//! let plan = plan(&archive, &window).await?;
//! let engine = Arc::new(RocksEngine::open(&temp.join("db"))?);
//! let target = EngineTarget::new(engine, env.spawner.clone());
//! let options = RestoreOptions::rocks(temp, env);
//! let report = restore(&plan, storage, &target, options, Arc::new(Progress::default())).await?;
//! println!("{} records, digest {}", report.written, report.digest_out);
//! # Ok(())
//! # }
//! ```
//!
//! The library reads no environment, prints nothing and owns no runtime: clock, threads, randomness
//! and memory are the embedder's [`Env`]. With [`Env::system`], futures run on the caller's tokio
//! runtime.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod archive;
pub mod browse;
pub mod cut;
pub mod damage;
pub mod digest;
pub mod engine;
pub mod env;
mod expect;
pub mod fetch;
pub mod filter;
pub mod merge;
pub mod plan;
pub mod regions;
pub mod restore;
pub mod rewrite;
#[cfg(feature = "grpc")]
pub mod service;
pub mod sst;
pub mod target;
pub mod verify;

pub use archive::{Archive, ArchiveError};
pub use damage::Damage;
pub use env::Env;
pub use plan::{Plan, PlanError, Window, plan};
pub use restore::{Progress, Report, RestoreError, RestoreOptions, restore};
pub use verify::{VerifyReport, verify};
