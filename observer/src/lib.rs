//! Changes of a store in, a durable log out.
//!
//! ```text
//! source → tracker → router → slices → generation → upload → meta → publish
//! ```
//!
//! The library is what sits between a source of changes (a CDC stream, or hooks inside an engine)
//! and object storage. Threads, clock, randomness, metrics registry and memory are the embedder's
//! ([`Env`]); object I/O runs on the caller's tokio runtime, PD is behind [`ProgressSink`]. Read in
//! the order of the data: [`source`], [`tracker`], [`router`], [`slices`], [`shard`], [`observer`],
//! [`flush`], [`publish`].
//!
//! The caller's loop:
//!
//! 1. hand over events ([`ObserverHandle::try_send`]); start subscriptions at
//!    [`frontier::SharedFrontier::min_over`] of their range;
//! 2. when [`FlushSchedule::due`] says so: keep the unflushed generation, else
//!    [`ObserverHandle::seal`]; then [`Flusher::flush`];
//! 3. on success [`Publisher::absorb`] the proof; [`Publisher::publish`] until it succeeds.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod env;
pub mod flush;
pub mod frontier;
pub mod metrics;
pub mod observer;
pub mod publish;
pub mod router;
pub mod schedule;
pub mod shard;
pub mod slices;
pub mod source;
pub mod tracker;

pub use env::Env;
pub use flush::flusher::{FlushError, Flusher, FlusherConfig};
pub use flush::generation::{FlushedProof, Generation, SealError};
pub use frontier::{FrontierMap, RangeProgress, SharedFrontier};
pub use metrics::{Metrics, TaskStatus};
pub use observer::{Observer, ObserverConfig, ObserverHandle, SendError};
pub use publish::{
    Absorbed, ProgressSink, PublishError, Published, Publisher, PublisherConfig, SinkError,
};
pub use router::TaskRanges;
pub use schedule::{FlushReason, FlushSchedule};
pub use shard::{Fault, ShardCore};
pub use source::{RegionMeta, SourceEvent, SubId};
