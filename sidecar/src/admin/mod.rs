//! What the running sidecar shows: one board of states, one registry of metrics, one HTTP server.
//!
//! The server comes up before anything else of `serve`, so that a sidecar that cannot reach PD or
//! its storage says so instead of being silent.

pub mod board;
pub mod client;
pub mod http;
pub mod log_level;
pub mod metrics;
mod page;

pub use board::{
    Board, CertificateStatus, HeldBy, HoldingLock, RegionStatus, SidecarStatus, StreamStatus,
    TaskState, TaskStatus,
};
pub use metrics::Metrics;
