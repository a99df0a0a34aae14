//! The running observer: one thread and one bounded queue per shard.
//!
//! [`ObserverHandle::try_send`] never blocks: a full queue or an exhausted memory budget is
//! answered with the event itself, so that the reader of a CDC stream can give the region back
//! instead of stalling the store. [`ObserverHandle::seal`] asks every shard for slices and claims
//! at one message each; seals never overlap, because a claim of one generation may rest on rows of
//! any earlier one.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Sender, TrySendError, bounded};
use parking_lot::Mutex;
use pitr_format::{Class, EncodedRange};

use crate::flush::generation::{Generation, SealError};
use crate::metrics::Metrics;
use crate::router::{TaskRanges, shard_of};
use crate::shard::{self, ShardCore, ShardMessage};
use crate::source::SourceEvent;
use pitr_budget::MemoryBudget;

/// Sizes of an observer.
#[derive(Clone, Debug)]
pub struct ObserverConfig {
    /// Worker threads; at least 1.
    pub shards: usize,
    /// Events that wait in the queue of one shard at most.
    pub queue_events: usize,
    /// Bytes of rows held at most: queued, in open slices, and in generations not yet flushed.
    pub memory_budget: u64,
    /// Plaintext bytes at which a slice is closed and a new one begins (`file-size-limit`).
    pub slice_limit: u64,
}

impl Default for ObserverConfig {
    fn default() -> Self {
        ObserverConfig {
            shards: 2,
            queue_events: 1024,
            memory_budget: 1 << 30,
            slice_limit: 256 << 20,
        }
    }
}

/// An event was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No room. The event comes back: wait and send it again, or send `Ended` for its
    /// subscription. Leaving out a `Batch` and going on is data loss.
    #[error("the observer has no room: queue or memory budget is full")]
    Full(SourceEvent),
    /// The observer stopped.
    #[error("the observer stopped; start a new one from the durable frontier")]
    Closed,
}

impl SendError {
    /// What a caller can do.
    pub fn class(&self) -> Class {
        match self {
            SendError::Full(_) => Class::Retry,
            SendError::Closed => Class::Permanent,
        }
    }
}

/// The worker threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a shard thread of the observer: {0}")]
pub struct StartError(#[from] std::io::Error);

struct Inner {
    config: ObserverConfig,
    queues: Vec<Sender<ShardMessage>>,
    budget: Arc<MemoryBudget>,
    metrics: Metrics,
    /// Id of the last generation. Held for the whole of a seal.
    last_generation: Mutex<u64>,
}

/// Starts observers.
pub struct Observer;

impl Observer {
    /// Starts the shard threads for one task. They end when the last handle is dropped.
    pub fn start(
        config: ObserverConfig,
        ranges: impl IntoIterator<Item = EncodedRange>,
        metrics: Metrics,
    ) -> Result<ObserverHandle, StartError> {
        let ranges = Arc::new(TaskRanges::new(ranges));
        let budget = MemoryBudget::new(config.memory_budget);
        metrics.memory_budget.set(config.memory_budget as i64);
        let mut queues = Vec::new();
        for index in 0..config.shards.max(1) {
            let (queue, inbox) = bounded(config.queue_events.max(1));
            let core = ShardCore::new(Arc::clone(&ranges), config.slice_limit, metrics.clone());
            let budget = Arc::clone(&budget);
            thread::Builder::new()
                .name(format!("backup-stream-{index}"))
                .spawn(move || shard::run(core, &inbox, &budget))?;
            queues.push(queue);
        }
        Ok(ObserverHandle(Arc::new(Inner {
            config,
            queues,
            budget,
            metrics,
            last_generation: Mutex::new(0),
        })))
    }
}

/// A running observer; clones are the same one.
#[derive(Clone)]
pub struct ObserverHandle(Arc<Inner>);

impl ObserverHandle {
    /// Hands over an event without waiting. Events of one subscription must come from one caller
    /// at a time, or their order is lost.
    pub fn try_send(&self, event: SourceEvent) -> Result<(), SendError> {
        let inner = &self.0;
        let Some(reservation) = inner.budget.try_reserve(event.queued_bytes()) else {
            inner.metrics.refused_events.inc();
            return Err(SendError::Full(event));
        };
        let shard = shard_of(event.sub(), inner.queues.len());
        match inner.queues[shard].try_send(ShardMessage::Event(event, reservation)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(ShardMessage::Event(event, _))) => {
                inner.metrics.refused_events.inc();
                Err(SendError::Full(event))
            }
            Err(_) => Err(SendError::Closed),
        }
    }

    /// Hands over an event and waits for room. While flushes fail this may wait for long: a reader
    /// that must not stand still uses [`ObserverHandle::try_send`].
    pub async fn send(&self, event: SourceEvent) -> Result<(), SendError> {
        let mut event = event;
        loop {
            let room = self.0.budget.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_send(event) {
                Err(SendError::Full(back)) => event = back,
                done => return done,
            }
            room.await;
        }
    }

    /// Seals what every shard holds: see [`ObserverHandle::seal_blocking`].
    pub async fn seal(&self) -> Result<Generation, SealError> {
        let handle = self.clone();
        tokio::task::spawn_blocking(move || handle.seal_blocking())
            .await
            .unwrap_or(Err(SealError::Stopped))
    }

    /// Seals what every shard holds and compresses it on the calling thread and helpers. Waits for
    /// the events queued before. The generation must reach [`crate::Flusher::flush`]: after one
    /// that is dropped, every later one is refused there.
    pub fn seal_blocking(&self) -> Result<Generation, SealError> {
        let inner = &self.0;
        let mut last = inner.last_generation.lock();
        // Counted before anything is taken out, so that a failure leaves a visible gap.
        *last += 1;
        let mut replies = Vec::with_capacity(inner.queues.len());
        for queue in &inner.queues {
            let (reply, answer) = bounded(1);
            queue
                .send(ShardMessage::Seal(reply))
                .map_err(|_| SealError::Stopped)?;
            replies.push(answer);
        }
        let seals = replies
            .into_iter()
            .map(|answer| answer.recv().map_err(|_| SealError::Stopped))
            .collect::<Result<Vec<_>, _>>()?;
        Generation::assemble(*last, seals, inner.config.shards)
    }

    /// Bytes of rows held now: queued, in open slices and in generations not yet flushed.
    pub fn buffered_bytes(&self) -> u64 {
        self.0.budget.used()
    }

    /// The limit of [`ObserverHandle::buffered_bytes`].
    pub fn memory_budget(&self) -> u64 {
        self.0.budget.limit()
    }
}
