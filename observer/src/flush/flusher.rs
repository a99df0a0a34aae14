//! Flushes the generations of one observer, each exactly once and in their order.

use pitr_budget::spill::SpillError;
use pitr_format::object_name::{META_DIR, MetaName};
use pitr_format::{Class, Ts};
use pitr_storage::{SharedStorage, StorageError};

use crate::env::Env;
use crate::flush::generation::{FlushedProof, Generation};
use crate::flush::meta::MetaFacts;
use crate::flush::upload::{SendError, Upload};

/// How generations are laid out and sent.
#[derive(Clone, Debug)]
pub struct FlusherConfig {
    /// The store whose log this is; greater than 0, as PD numbers it.
    pub store_id: u64,
    /// Plaintext bytes at which a merged object is closed.
    pub merge_limit: u64,
    /// Objects in flight at a time.
    pub concurrency: usize,
}

impl FlusherConfig {
    /// The defaults for a store: objects of 256 MiB plaintext, 8 at a time.
    pub fn new(store_id: u64) -> Self {
        FlusherConfig {
            store_id,
            merge_limit: 256 << 20,
            concurrency: 8,
        }
    }
}

/// A flush failed. The generation keeps what was done; flush the same one again.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The metas of the archive could not be listed.
    #[error("cannot find the newest meta of the store: {0}")]
    Open(#[source] StorageError),
    /// An object could not be written.
    #[error("flush of generation {generation} failed, its checkpoint stays unpublished: {source}")]
    Storage {
        /// The generation.
        generation: u64,
        /// What failed, on which object.
        source: StorageError,
    },
    /// Rows of the generation that were spilled cannot be read back as they were written.
    #[error(
        "generation {generation} is lost: {source}; \
         start observer and flusher again from the durable frontier"
    )]
    Spill {
        /// The generation.
        generation: u64,
        /// Which file, and what is wrong with it.
        source: SpillError,
    },
    /// A generation is missing in between: its rows are not durable, so nothing later may be.
    #[error(
        "generation {got} cannot be flushed before generation {due}; \
         start observer and flusher again from the durable frontier"
    )]
    OutOfOrder {
        /// The generation that is due.
        due: u64,
        /// The one that came.
        got: u64,
    },
    /// Another writer of this store id uses the same flush ts.
    #[error("{path} exists with other content: does a second observer write for this store?")]
    MetaCollision {
        /// The object.
        path: String,
    },
    /// Objects of the generation are not known to be durable.
    #[error("generation {0} is not complete in the storage; flush it again")]
    Incomplete(u64),
}

impl FlushError {
    /// What a caller can do.
    pub fn class(&self) -> Class {
        match self {
            FlushError::Open(source) | FlushError::Storage { source, .. } => source.class(),
            FlushError::Incomplete(_) => Class::Retry,
            FlushError::Spill { .. }
            | FlushError::OutOfOrder { .. }
            | FlushError::MetaCollision { .. } => Class::Permanent,
        }
    }
}

/// Makes generations durable. One per observer: after a restart of either, both start anew.
pub struct Flusher {
    storage: SharedStorage,
    config: FlusherConfig,
    env: Env,
    /// Flush ts of the newest meta of this store that may exist.
    last_flush_ts: Ts,
    /// Number of the generation that is due.
    due: u64,
    global_checkpoint: Option<Ts>,
}

impl Flusher {
    /// Opens the archive for a store. Reads the newest of its metas, so that flush ts rise also
    /// over restarts and over a PD that was restored with an older clock.
    pub async fn open(
        storage: SharedStorage,
        config: FlusherConfig,
        env: &Env,
    ) -> Result<Self, FlushError> {
        let listed = storage.list(META_DIR).await.map_err(FlushError::Open)?;
        let last_flush_ts = listed
            .iter()
            .filter_map(|object| MetaName::parse(&object.path).ok())
            .filter(|name| name.store_id == Some(config.store_id))
            .map(|name| name.flush_ts)
            .max()
            .unwrap_or(Ts::ZERO);
        Ok(Flusher {
            storage,
            config,
            env: env.clone(),
            last_flush_ts,
            due: 1,
            global_checkpoint: None,
        })
    }

    /// The task's global checkpoint as PD has it: `Metadata.resolved_ts` of later generations
    /// stays at or below it.
    pub fn set_global_checkpoint(&mut self, ts: Ts) {
        self.global_checkpoint = Some(ts);
    }

    /// Flush ts of the last meta, durable or attempted.
    pub fn last_flush_ts(&self) -> Ts {
        self.last_flush_ts
    }

    /// Makes `generation` durable. `flush_ts` is PD's time at the flush; the name takes it or, if
    /// that is not above the last one, the next larger. After an error call it again with the same
    /// generation (the flush ts of the first attempt stays); dropping the future counts as an
    /// error. Only `Ok` proves anything.
    pub async fn flush(
        &mut self,
        generation: &mut Generation,
        flush_ts: Ts,
    ) -> Result<FlushedProof, FlushError> {
        if generation.id() != self.due {
            return Err(FlushError::OutOfOrder {
                due: self.due,
                got: generation.id(),
            });
        }
        let metrics = self.env.metrics.clone();
        metrics.pending_generations.set(1);
        let result = self.attempt(generation, flush_ts).await;
        match &result {
            Ok(_) => {
                self.due += 1;
                metrics.pending_generations.set(0);
                metrics.flushed_generations.inc();
            }
            Err(_) => metrics.errors.with_label_values(&["flush"]).inc(),
        }
        result
    }

    async fn attempt(
        &mut self,
        generation: &mut Generation,
        flush_ts: Ts,
    ) -> Result<FlushedProof, FlushError> {
        let id = generation.id();
        let stage = |name| self.env.metrics.flush_duration.with_label_values(&[name]);
        let (planning, saving) = (stage("generate_metadata"), stage("save_files"));
        if generation.upload.is_none() {
            let env = self.env.clone();
            let plan = env.timed(&planning, || self.plan(generation, flush_ts));
            generation.upload = Some(plan);
        }
        let began = self.env.clock.now();
        self.send(generation).await.map_err(|error| match error {
            SendError::Storage(source) => FlushError::Storage {
                generation: id,
                source,
            },
            SendError::Spill(source) => FlushError::Spill {
                generation: id,
                source,
            },
            SendError::Collision(path) => FlushError::MetaCollision { path },
        })?;
        self.env.note_since(began, &saving);
        generation.prove().ok_or(FlushError::Incomplete(id))
    }

    fn plan(&mut self, generation: &Generation, flush_ts: Ts) -> Upload {
        self.last_flush_ts = flush_ts.max(self.last_flush_ts.next());
        let resolved = generation.live_min().unwrap_or(Ts::ZERO);
        let facts = MetaFacts {
            flush_ts: self.last_flush_ts,
            store_id: self.config.store_id,
            resolved_ts: resolved.min(self.global_checkpoint.unwrap_or(Ts::MAX)),
        };
        Upload::plan(
            generation.slices(),
            facts,
            self.config.merge_limit,
            self.env.random.as_ref(),
        )
    }

    /// Objects first: what a meta refers to is durable before the meta is visible.
    async fn send(&self, generation: &mut Generation) -> Result<(), SendError> {
        let Some((slices, upload)) = generation.upload_parts() else {
            return Ok(());
        };
        let storage = self.storage.as_ref();
        upload
            .send_objects(slices, storage, self.config.concurrency, &self.env)
            .await?;
        upload.send_meta(storage, &self.env.metrics).await
    }
}
