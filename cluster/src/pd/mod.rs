//! PD: members, timestamps, regions, stores and the GC safe points.
//!
//! [`PdClient`] finds the leader by itself, checks both error layers (gRPC status and
//! `header.error`) and gives up only after a bounded time, because a PD without a leader for
//! 5–10 s is normal. Used by every other client of this crate and by the sidecar.

mod calls;
mod client;
mod error;
mod gc;
mod persist;
mod region;

pub use client::{HasHeader, PdClient, PdOptions};
pub use error::PdError;
pub use gc::GcState;
pub use region::{Region, contiguous_prefix};
