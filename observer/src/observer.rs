//! The running observer: one worker and one bounded queue per shard.
//!
//! [`ObserverHandle::try_send`] never blocks: a full queue or an exhausted memory budget is
//! answered with the event itself, so that the reader of a CDC stream can give the region back
//! instead of stalling the store. [`ObserverHandle::seal`] asks every shard for slices and claims
//! at one message each; seals never overlap, because a claim of one generation may rest on rows of
//! any earlier one.

use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError, bounded};
use pitr_env::unblock;
use pitr_format::{Class, EncodedRange};
use tokio::sync::{Mutex, oneshot};

use crate::env::Env;
use crate::flush::generation::{Generation, SealError};
use crate::router::{TaskRanges, shard_of};
use crate::shard::{ShardCore, ShardMessage, ShardSeal, ShardWorker};
use crate::source::SourceEvent;

/// Sizes of an observer.
#[derive(Clone, Debug)]
pub struct ObserverConfig {
    /// Workers; at least 1.
    pub shards: usize,
    /// Events that wait in the queue of one shard at most.
    pub queue_events: usize,
    /// Plaintext bytes at which a slice is closed and a new one begins (`file-size-limit`).
    pub slice_limit: u64,
}

impl Default for ObserverConfig {
    fn default() -> Self {
        ObserverConfig {
            shards: 2,
            queue_events: 1024,
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

/// The workers could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a shard of the observer: {0}")]
pub struct StartError(#[from] std::io::Error);

struct Inner {
    config: ObserverConfig,
    env: Env,
    queues: Vec<Sender<ShardMessage>>,
    /// Id of the last generation. Held until every shard has sealed.
    last_generation: Mutex<u64>,
}

/// Starts observers.
pub struct Observer;

impl Observer {
    /// Starts the shards for one task in `env`. They end when the last handle is dropped.
    pub fn start(
        config: ObserverConfig,
        env: Env,
        ranges: impl IntoIterator<Item = EncodedRange>,
    ) -> Result<ObserverHandle, StartError> {
        let ranges = Arc::new(TaskRanges::new(ranges));
        env.metrics.memory_budget.set(env.budget.limit() as i64);
        let mut queues = Vec::new();
        for index in 0..config.shards.max(1) {
            let (queue, inbox) = bounded(config.queue_events.max(1));
            let core = ShardCore::new(Arc::clone(&ranges), config.slice_limit, env.clone());
            let worker = Box::new(ShardWorker::new(core, inbox));
            env.spawner
                .worker(format!("backup-stream-{index}"), worker)?;
            queues.push(queue);
        }
        Ok(ObserverHandle(Arc::new(Inner {
            config,
            env,
            queues,
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
        let Inner { env, queues, .. } = &*self.0;
        let Some(reservation) = env.budget.try_reserve(event.queued_bytes()) else {
            env.metrics.refused_events.inc();
            return Err(SendError::Full(event));
        };
        let shard = shard_of(event.sub(), queues.len());
        match queues[shard].try_send(ShardMessage::Event(event, reservation)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(ShardMessage::Event(event, _))) => {
                env.metrics.refused_events.inc();
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
            let room = self.0.env.budget.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_send(event) {
                Err(SendError::Full(back)) => event = back,
                done => return done,
            }
            room.await;
        }
    }

    /// Seals what every shard holds, behind the events queued before, and compresses it. The
    /// generation must reach [`crate::Flusher::flush`]: after one that is lost (also by dropping
    /// this future), every later one is refused there.
    pub async fn seal(&self) -> Result<Generation, SealError> {
        let inner = &self.0;
        let mut last = inner.last_generation.lock().await;
        // Counted before anything is taken out, so that a failure leaves a visible gap.
        *last += 1;
        let id = *last;
        let mut answers = Vec::with_capacity(inner.queues.len());
        for queue in &inner.queues {
            let (reply, answer) = oneshot::channel();
            self.ask_for_seal(queue, reply).await?;
            answers.push(answer);
        }
        let mut seals = Vec::with_capacity(answers.len());
        for answer in answers {
            seals.push(answer.await.map_err(|_| SealError::Stopped)?);
        }
        drop(last);
        let encoders = inner.config.shards;
        let assemble = move || Generation::assemble(id, seals, encoders);
        unblock(inner.env.spawner.as_ref(), assemble)
            .await
            .unwrap_or(Err(SealError::Stopped))
    }

    async fn ask_for_seal(
        &self,
        queue: &Sender<ShardMessage>,
        reply: oneshot::Sender<ShardSeal>,
    ) -> Result<(), SealError> {
        let mut message = ShardMessage::Seal(reply);
        loop {
            let room = self.0.env.budget.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match queue.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return Err(SealError::Stopped),
            }
            room.await;
        }
    }

    /// Bytes of rows held now: queued, in open slices and in generations not yet flushed.
    pub fn buffered_bytes(&self) -> u64 {
        self.0.env.budget.used()
    }

    /// The limit of [`ObserverHandle::buffered_bytes`].
    pub fn memory_budget(&self) -> u64 {
        self.0.env.budget.limit()
    }
}
