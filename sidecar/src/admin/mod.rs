//! What the running sidecar shows: one board of states, one registry of metrics, one HTTP server.
//!
//! The server comes up before anything else of `serve`, so that a sidecar that cannot reach PD or
//! its storage says so instead of being silent.

pub mod board;
pub mod http;
pub mod metrics;

pub use board::{Board, SidecarStatus, TaskState, TaskStatus};
pub use metrics::Metrics;
