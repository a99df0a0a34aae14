//! Publication of the checkpoint, in the order that is the safety argument.
//!
//! `flushed proof → frontier → flush table, told to whoever merges those of all stores → global
//! checkpoint, learned from there → <store>.ts in the archive → storage checkpoint in PD`. Restore
//! trusts the largest `.ts`, so that object is written last of all that it rests on, and only with a
//! global checkpoint that holds. Every step is remembered after it succeeded and repeated until
//! then, independently of flushes. Order and byte forms: tikv/tikv
//! `components/backup-stream/src/{endpoint,router}.rs`; unlike there, memory is raised after the
//! object, not before, and nothing is cancelled by a timer.

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pitr_format::object_name::checkpoint_path;
use pitr_format::{Class, EncodedRange, Ts, checkpoint_ts};
use pitr_storage::{SharedStorage, StorageError};

use crate::env::Env;
use crate::flush::generation::FlushedProof;
use crate::frontier::SharedFrontier;
use crate::metrics::Metrics;
use crate::router::TaskRanges;
use crate::source::RegionMeta;

/// How far one region is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionProgress {
    /// The region as it was tailed.
    pub region: Arc<RegionMeta>,
    /// Every change of the task's keys in it up to here is durable.
    pub ts: Ts,
}

/// What this store knows to be durable after a flush. Each line is true for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlushTable {
    /// The regions that it tailed, in every version, ascending.
    pub regions: Vec<RegionProgress>,
    /// The checkpoint of the whole task as far as this store knows: the next global checkpoint
    /// where it is the only one.
    pub checkpoint: Ts,
}

/// Where progress is told: the coordinator and PD, by the sidecar's adapter.
#[async_trait]
pub trait ProgressSink: Send + Sync {
    /// Tells what is durable on this store. Who merges the tables of several stores answers later,
    /// by [`Publisher::learn`]; who has one store only raises the global checkpoint of the task to
    /// [`FlushTable::checkpoint`] and gives the value that holds now. It must never be lowered.
    async fn tell(&self, table: &FlushTable) -> Result<Option<Ts>, SinkError>;

    /// Notes that the archive's checkpoint object of this store holds `ts`.
    async fn set_storage_checkpoint(&self, ts: Ts) -> Result<(), SinkError>;
}

/// A [`ProgressSink`] failed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct SinkError {
    class: Class,
    source: Box<dyn Error + Send + Sync>,
}

impl SinkError {
    /// Wraps the adapter's error; a text will do.
    pub fn new(class: Class, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        SinkError {
            class,
            source: source.into(),
        }
    }

    /// What a caller can do.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// A step of the publication failed; the steps before it hold. Publish again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The checkpoint object of the store could not be read at the start.
    #[error("cannot read the store's checkpoint object: {0}")]
    Open(#[source] StorageError),
    /// Nobody took the flush table.
    #[error("cannot tell what is durable, up to {ts}: {source}")]
    Tell {
        /// The value.
        ts: Ts,
        /// Why.
        source: SinkError,
    },
    /// The object was not written.
    #[error("cannot write checkpoint {ts} into the archive: {source}")]
    Object {
        /// The value.
        ts: Ts,
        /// Why.
        source: StorageError,
    },
    /// PD did not take the storage checkpoint.
    #[error("cannot note the archive's checkpoint {ts}: {source}")]
    StorageCheckpoint {
        /// The value.
        ts: Ts,
        /// Why.
        source: SinkError,
    },
}

impl PublishError {
    /// What a caller can do.
    pub fn class(&self) -> Class {
        match self {
            PublishError::Open(source) | PublishError::Object { source, .. } => source.class(),
            PublishError::Tell { source, .. } | PublishError::StorageCheckpoint { source, .. } => {
                source.class()
            }
        }
    }
}

/// What a publisher publishes for.
#[derive(Clone, Debug)]
pub struct PublisherConfig {
    /// The task's name, as metrics label it.
    pub task: String,
    /// The store whose `.ts` object it writes.
    pub store_id: u64,
    /// The task's key ranges, encoded.
    pub ranges: Vec<EncodedRange>,
    /// The task's start ts: durable by definition.
    pub start_ts: Ts,
    /// The task ends here: no object promises more. [`Ts::MAX`] without an end.
    pub end_ts: Ts,
    /// The global checkpoint that PD holds, if it holds one.
    pub global_checkpoint: Option<Ts>,
}

/// How far publication is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The global checkpoint that holds, as far as known.
    pub global: Option<Ts>,
    /// Content of the store's `.ts` object; zero if there is none.
    pub object: Ts,
    /// The storage checkpoint that this publisher told PD; zero before the first.
    pub storage_checkpoint: Ts,
}

/// What a proof changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absorbed {
    /// The checkpoint of the whole task, as far as this store knows.
    pub checkpoint: Ts,
    /// Ranges that a subscription skipped (it began above the frontier): their checkpoint stays,
    /// they must be scanned again from [`SharedFrontier::min_over`].
    pub gaps: usize,
}

/// Publishes the checkpoint of one task, of whose log this store writes a part or all.
pub struct Publisher {
    config: PublisherConfig,
    storage: SharedStorage,
    sink: Arc<dyn ProgressSink>,
    metrics: Metrics,
    frontier: SharedFrontier,
    /// Durable, and not told yet.
    untold: Option<FlushTable>,
    published: Published,
}

impl Publisher {
    /// Begins at the durable truth: PD's global checkpoint, else the task's start ts.
    pub async fn open(
        config: PublisherConfig,
        storage: SharedStorage,
        sink: Arc<dyn ProgressSink>,
        env: &Env,
    ) -> Result<Self, PublishError> {
        let object = match storage.get(&checkpoint_path(config.store_id)).await {
            // Bytes of another length are no checkpoint: the next write replaces them.
            Ok(bytes) => checkpoint_ts::decode(&bytes).unwrap_or(Ts::ZERO),
            Err(error) if error.is_not_found() => Ts::ZERO,
            Err(error) => return Err(PublishError::Open(error)),
        };
        let start = config
            .start_ts
            .max(config.global_checkpoint.unwrap_or(Ts::ZERO));
        let publisher = Publisher {
            frontier: SharedFrontier::new(TaskRanges::new(config.ranges.iter().cloned()), start),
            untold: None,
            published: Published {
                global: config.global_checkpoint,
                object,
                storage_checkpoint: Ts::ZERO,
            },
            config,
            storage,
            sink,
            metrics: env.metrics.clone(),
        };
        publisher.show(start);
        Ok(publisher)
    }

    /// The frontier, for those who start subscriptions: `checkpoint_ts` = `min_over(region)`.
    pub fn frontier(&self) -> SharedFrontier {
        self.frontier.clone()
    }

    /// How far publication is.
    pub fn published(&self) -> Published {
        self.published
    }

    /// The checkpoint that is proven as far as this store knows, published or not yet.
    pub fn checkpoint(&self) -> Ts {
        self.frontier.global()
    }

    /// The global checkpoint is `global` now, whoever raised it: a truth for every range, and what
    /// the next [`Publisher::publish`] writes into the archive. A lower one than known is ignored.
    pub fn learn(&mut self, global: Ts) {
        if self.published.global.is_none_or(|known| global > known) {
            self.published.global = Some(global);
            self.frontier.raise_all(global);
            self.show(global);
        }
    }

    /// Raises the frontier by what a durable generation proves, inside the task's ranges.
    pub fn absorb(&mut self, proof: &FlushedProof) -> Absorbed {
        let mut gaps = 0;
        for progress in proof.progress() {
            for range in self.frontier.apply(progress) {
                gaps += 1;
                tracing::error!(
                    ?range,
                    base = progress.base.get(),
                    "a subscription began above the frontier; its range stays behind"
                );
            }
        }
        if gaps > 0 {
            let fatal = &self.metrics.fatal_errors;
            fatal
                .with_label_values(&["frontier_gap"])
                .inc_by(gaps as u64);
        }
        let checkpoint = self.checkpoint();
        let told = proof.regions().iter().map(|region| RegionProgress {
            region: Arc::clone(region),
            ts: self.frontier.min_over(&region.range),
        });
        self.untold = Some(FlushTable {
            regions: told.collect(),
            checkpoint,
        });
        Absorbed { checkpoint, gaps }
    }

    /// Tells what was absorbed, and brings the archive up to the global checkpoint. Does nothing
    /// where nothing is new; after an error the next call goes on at the step that failed.
    pub async fn publish(&mut self) -> Result<Published, PublishError> {
        let result = self.steps().await;
        if result.is_err() {
            self.metrics.errors.with_label_values(&["publish"]).inc();
        }
        result.map(|()| self.published)
    }

    async fn steps(&mut self) -> Result<(), PublishError> {
        if let Some(table) = &self.untold {
            let ts = table.checkpoint;
            let holds = self.sink.tell(table).await;
            let holds = holds.map_err(|source| PublishError::Tell { ts, source })?;
            self.untold = None;
            if let Some(holds) = holds {
                self.learn(holds);
            }
        }
        let Some(global) = self.published.global else {
            return Ok(());
        };
        let ts = global.min(self.config.end_ts);
        if ts > self.published.object {
            let bytes = Bytes::copy_from_slice(&checkpoint_ts::encode(ts));
            let path = checkpoint_path(self.config.store_id);
            let written = self.storage.put(&path, bytes.into()).await;
            written.map_err(|source| PublishError::Object { ts, source })?;
            self.published.object = ts;
        }
        let ts = self.published.object;
        if ts > self.published.storage_checkpoint {
            let told = self.sink.set_storage_checkpoint(ts).await;
            told.map_err(|source| PublishError::StorageCheckpoint { ts, source })?;
            self.published.storage_checkpoint = ts;
        }
        Ok(())
    }

    fn show(&self, checkpoint: Ts) {
        let gauge = &self.metrics.store_checkpoint_ts;
        let series = gauge.with_label_values(&[&self.config.task]);
        series.set(checkpoint.get() as i64);
    }
}
