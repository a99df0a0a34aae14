//! What the embedder supplies: clock, threads, randomness, metrics registry and memory.
//!
//! Everything that the observer needs from its process comes in through [`Env`]; the library calls
//! no clock, starts no thread and draws no random number elsewhere. With a [`Spawn`] that keeps the
//! workers and lets the caller step them, and a seeded [`Random`], the whole write path runs on one
//! thread and gives the same bytes for the same seed: the simulation does that.

use std::sync::Arc;

use pitr_budget::MemoryBudget;
use pitr_budget::spill::SpillDir;
use pitr_env::{Clock, Random, Spawn, SystemClock, SystemRandom, SystemSpawner};
use prometheus::{Histogram, Registry};

use crate::metrics::Metrics;

/// The environment of an observer, a flusher and a publisher; clones share it.
#[derive(Clone)]
pub struct Env {
    /// For the durations in metrics.
    pub clock: Arc<dyn Clock>,
    /// Runs the shards, one worker each, and what takes long.
    pub spawner: Arc<dyn Spawn>,
    /// Names of objects.
    pub random: Arc<dyn Random>,
    /// Handles to the metrics in the embedder's registry.
    pub metrics: Metrics,
    /// What rows reserve from, from the queue until they are durable.
    pub budget: Arc<MemoryBudget>,
    /// Where rows wait that have no room in the budget; without it they are refused.
    pub spill: Option<Arc<SpillDir>>,
}

impl Env {
    /// Clock, threads and randomness of the operating system. Blocking work goes to the tokio
    /// runtime that polls the observer's futures; nothing is spilled.
    pub fn system(metrics: Metrics, budget: Arc<MemoryBudget>) -> Self {
        Env {
            clock: Arc::new(SystemClock::new()),
            spawner: Arc::new(SystemSpawner),
            random: Arc::new(SystemRandom),
            metrics,
            budget,
            spill: None,
        }
    }

    /// The same environment with a directory for temporary files.
    #[must_use]
    pub fn with_spill(mut self, dir: Arc<SpillDir>) -> Self {
        self.spill = Some(dir);
        self
    }

    /// [`Env::system`] with new metrics in `registry` and a budget of `memory` bytes.
    pub fn with_registry(registry: &Registry, memory: u64) -> Result<Self, prometheus::Error> {
        Ok(Self::system(
            Metrics::new(registry)?,
            MemoryBudget::new(memory),
        ))
    }

    /// Runs `work` and notes how long it took.
    pub(crate) fn timed<T>(&self, seconds: &Histogram, work: impl FnOnce() -> T) -> T {
        let began = self.clock.now();
        let result = work();
        self.note_since(began, seconds);
        result
    }

    /// Notes the time since `began`, a moment of the clock.
    pub(crate) fn note_since(&self, began: std::time::Duration, seconds: &Histogram) {
        let took = self.clock.now().saturating_sub(began);
        seconds.observe(took.as_secs_f64());
    }
}
