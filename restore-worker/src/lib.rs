//! Durable log to engine: select, plan, fetch, verify, filter, rewrite, merge, SST, ingest.
//!
//! | module | step |
//! |---|---|
//! | [`archive`] | opens an archive: what it says about itself, its metas |
//! | [`plan`] | window → slices → range requests; pure, printable |
//! | [`fetch`] | bytes of a request, proved slice by slice |
//! | [`filter`], [`rewrite`] | which records, under which key |
//! | [`merge`] | external sort within a memory bound |
//! | [`cut`], [`sst`] | join of values and write records, files per target region |
//! | [`restore`] | the driver: all of the above into a [`target`], with a report and its proof |
//! | [`verify`] | checks an archive without restoring it |
//! | `service` (feature `grpc`) | `import_sstpb.ImportSST` over an engine |
//! | [`engine`], [`browse`], [`digest`] | an engine to restore into and to read afterwards |
//!
//! The library reads no environment, prints nothing and owns no runtime; futures run on the
//! caller's tokio runtime.

pub mod archive;
pub mod browse;
pub mod cut;
pub mod damage;
pub mod digest;
pub mod engine;
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
pub use plan::{Plan, PlanError, Window, plan};
pub use restore::{Progress, Report, RestoreError, RestoreOptions, restore};
pub use verify::{VerifyReport, verify};
