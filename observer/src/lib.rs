//! Changes of a store in, a durable log out.
//!
//! ```text
//! source → tracker → router → slices → generation → upload → meta → publish
//! ```
//!
//! The library is what sits between a source of changes (a CDC stream, or hooks inside an engine)
//! and object storage. Threads, clock, randomness, metrics registry and memory are the embedder's
//! ([`Env`]); object I/O runs on the caller's tokio runtime, PD is behind [`ProgressSink`]. Read in
//! the order of the data: [`source`], [`tracker`], [`router`], [`slices`], [`shard`], [`encode`],
//! [`observer`], [`flush`], [`publish`].
//!
//! The caller's loop:
//!
//! 1. hand over events ([`ObserverHandle::try_send`]); start subscriptions at
//!    [`frontier::SharedFrontier::min_over`] of their range;
//! 2. when [`FlushSchedule::due`] says so: keep the unflushed generation, else
//!    [`ObserverHandle::seal`]; then [`Flusher::flush`];
//! 3. on success [`Publisher::absorb`] the proof; [`Publisher::publish`] until it succeeds, which
//!    tells what is durable here;
//! 4. with several stores, [`Publisher::learn`] the global checkpoint that comes of it, and publish
//!    again.
//!
//! One change on its way, with the environment of an ordinary process; `examples/toy-engine` is a
//! whole engine that brings its own.
//!
//! ```
//! # use std::{error::Error, sync::Arc};
//! # use pitr_format::{Cf, Class, EncodedKey, EncodedRange, KvRecord, OpKind, RecordBatch, Ts, write_cf::WriteRecord};
//! # use pitr_observer::*;
//! # struct Pd;
//! # #[async_trait::async_trait]
//! # impl ProgressSink for Pd {
//! #     async fn tell(&self, table: &FlushTable) -> Result<Option<Ts>, SinkError> {
//! #         Ok(Some(table.checkpoint))
//! #     }
//! #     async fn set_storage_checkpoint(&self, _: Ts) -> Result<(), SinkError> { Ok(()) }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn Error>> {
//! let env = Env::with_registry(&prometheus::Registry::new(), 64 << 20)?;
//! let storage = pitr_storage::open_url("memory://")?;
//! let all = EncodedRange::ALL;
//! let start_ts = Ts::new(100);
//! let config = PublisherConfig {
//!     task: "daily".to_owned(),
//!     store_id: 1,
//!     ranges: vec![all.clone()],
//!     start_ts,
//!     end_ts: Ts::MAX,
//!     global_checkpoint: None,
//! };
//! let mut publisher = Publisher::open(config, storage.clone(), Arc::new(Pd), &env).await?;
//! let mut flusher = Flusher::open(storage.clone(), FlusherConfig::new(1), &env).await?;
//! let observer = Observer::start(ObserverConfig::default(), env, [all.clone()])?;
//!
//! let region = RegionMeta { id: 7, conf_ver: 1, version: 1, range: all.clone() };
//! let checkpoint_ts = publisher.frontier().min_over(&all);
//! observer.send(SourceEvent::Started { sub: 1, region, checkpoint_ts }).await?;
//! let committed = KvRecord {
//!     cf: Cf::Write,
//!     op: OpKind::Put,
//!     key: EncodedKey::encode(b"key").at(Ts::new(120)).into_bytes(),
//!     value: WriteRecord::put(Ts::new(110), Some("value".into())).to_bytes(),
//! };
//! observer.send(SourceEvent::Batch { sub: 1, records: RecordBatch::of([&committed])? }).await?;
//! observer.send(SourceEvent::Resolved { sub: 1, ts: Ts::new(150) }).await?;
//!
//! let mut generation = observer.seal().await?;
//! let proof = flusher.flush(&mut generation, Ts::new(160)).await?;
//! publisher.absorb(&proof);
//! publisher.publish().await?;
//! assert_eq!(publisher.checkpoint(), Ts::new(150));
//! assert!(storage.head("v1/global_checkpoint/1.ts").await?.is_some());
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod encode;
pub mod env;
pub mod flush;
pub mod frontier;
pub mod metrics;
pub mod observer;
mod pressure;
pub mod publish;
pub mod router;
pub mod schedule;
pub mod shard;
mod shard_queue;
mod shard_worker;
pub mod slices;
pub mod source;
pub mod tracker;

pub use encode::StoredSlice;
pub use env::Env;
pub use flush::flusher::{FlushError, Flusher, FlusherConfig};
pub use flush::generation::{FlushedProof, Generation, SealError};
pub use frontier::{FrontierMap, RangeProgress, SharedFrontier};
pub use metrics::{Metrics, TaskStatus};
pub use observer::{Observer, ObserverConfig, ObserverHandle, SendError};
pub use publish::{
    Absorbed, FlushTable, ProgressSink, PublishError, Published, Publisher, PublisherConfig,
    RegionProgress, SinkError,
};
pub use router::TaskRanges;
pub use schedule::{FlushReason, FlushSchedule};
pub use shard::{Fault, ShardCore};
pub use source::{RegionMeta, SourceEvent, SubId};
