//! The running observer: one worker and one bounded queue per shard.
//!
//! [`ObserverHandle::try_send`] never blocks: a full queue or an exhausted memory budget is
//! answered with the event itself, so that the reader of a CDC stream can give the region back
//! instead of stalling the store. [`ObserverHandle::seal`] asks every shard for slices and claims
//! at one message each; seals never overlap, because a claim of one generation may rest on rows of
//! any earlier one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::TrySendError;
use parking_lot::Mutex as SyncMutex;
use pitr_budget::Reservation;
use pitr_env::unblock;
use pitr_format::{Class, EncodedRange};
use tokio::sync::{Mutex, oneshot};

use crate::encode::{Closed, Encoders};
use crate::env::Env;
use crate::flush::generation::{Generation, SealError, SealedShard};
use crate::pressure::Pressure;
use crate::router::{TaskRanges, shard_of};
use crate::shard::{ShardCore, ShardSeal};
use crate::shard_queue::{QueueClosed, ShardQueue, queue};
use crate::shard_worker::{Gauges, ShardMessage, ShardWorker};
use crate::source::{SourceEvent, SubId};

/// Sizes of an observer.
#[derive(Clone, Debug)]
pub struct ObserverConfig {
    /// Workers; at least 1.
    pub shards: usize,
    /// Events that wait in the queue of one shard at most.
    pub queue_events: usize,
    /// Plaintext bytes at which a slice is closed and a new one begins (`file-size-limit`).
    pub slice_limit: u64,
    /// Workers that compress slices; at least 1. Each holds a zstd context and buffers of 3.7 MB
    /// together while there is work.
    pub encoders: usize,
}

impl Default for ObserverConfig {
    fn default() -> Self {
        ObserverConfig {
            shards: 2,
            queue_events: 1024,
            slice_limit: 256 << 20,
            encoders: 2,
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
    env: Env,
    queues: Vec<ShardQueue>,
    encoders: Encoders,
    gauges: Arc<Gauges>,
    /// Running subscriptions, for the question which one to give back.
    subs: SyncMutex<BTreeSet<SubId>>,
    /// Id of the last generation. Held until every shard has sealed.
    last_generation: Mutex<u64>,
}

/// Starts observers.
pub struct Observer;

impl Observer {
    /// Starts the shards and encoders for one task in `env`. They end when the last handle is
    /// dropped.
    pub fn start(
        config: ObserverConfig,
        env: Env,
        ranges: impl IntoIterator<Item = EncodedRange>,
    ) -> Result<ObserverHandle, StartError> {
        let ranges = Arc::new(TaskRanges::new(ranges));
        let metrics = &env.metrics;
        metrics.memory_budget.set(env.budget.limit() as i64);
        if let Some(dir) = &env.spill {
            metrics.temp_quota.set(dir.quota() as i64);
        }
        let temp_bytes = metrics.temp_bytes.clone();
        let (budget, spill) = (Arc::clone(&env.budget), env.spill.clone());
        let encoders = Encoders::start(
            config.encoders,
            env.spawner.as_ref(),
            Arc::new(Pressure::new(budget, spill, temp_bytes)),
        )?;
        let gauges = Arc::new(Gauges::default());
        let mut queues = Vec::new();
        for index in 0..config.shards.max(1) {
            let (queue, inbox) = queue(config.queue_events);
            let core = ShardCore::new(Arc::clone(&ranges), config.slice_limit, env.clone());
            let worker = ShardWorker::new(core, inbox, encoders.clone(), Arc::clone(&gauges));
            env.spawner
                .worker(format!("backup-stream-{index}"), Box::new(worker))?;
            queues.push(queue);
        }
        Ok(ObserverHandle(Arc::new(Inner {
            env,
            queues,
            encoders,
            gauges,
            subs: SyncMutex::default(),
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
        match self.0.env.budget.try_reserve(event.queued_bytes()) {
            Some(mut reservation) => self.try_send_held(event, &mut reservation),
            None => {
                self.refuse();
                Err(SendError::Full(event))
            }
        }
    }

    /// [`ObserverHandle::try_send`] with bytes of the same budget that the caller holds for the
    /// event already, in a queue of its own: what the observer needs is taken from them.
    pub fn try_send_held(
        &self,
        event: SourceEvent,
        held: &mut Reservation,
    ) -> Result<(), SendError> {
        let needed = event.queued_bytes();
        let missing = needed.saturating_sub(held.bytes());
        if missing > 0 && !held.try_grow(missing) {
            self.refuse();
            return Err(SendError::Full(event));
        }
        let (sub, change) = Self::change(&event);
        let message = ShardMessage::Event(event, held.split(needed));
        match self.queue_of(sub).try_send(message) {
            Ok(()) => {
                self.note(sub, change);
                Ok(())
            }
            Err(TrySendError::Full(ShardMessage::Event(event, back))) => {
                held.absorb(back);
                self.0.env.metrics.refused_events.inc();
                Err(SendError::Full(event))
            }
            Err(_) => Err(SendError::Closed),
        }
    }

    fn queue_of(&self, sub: SubId) -> &ShardQueue {
        &self.0.queues[shard_of(sub, self.0.queues.len())]
    }

    /// The subscription of an event, and whether it begins or ends with it.
    fn change(event: &SourceEvent) -> (SubId, Option<bool>) {
        match event {
            SourceEvent::Started { sub, .. } => (*sub, Some(true)),
            SourceEvent::Ended { sub } => (*sub, Some(false)),
            other => (other.sub(), None),
        }
    }

    fn note(&self, sub: SubId, change: Option<bool>) {
        match change {
            Some(true) => drop(self.0.subs.lock().insert(sub)),
            Some(false) => drop(self.0.subs.lock().remove(&sub)),
            None => {}
        }
    }

    /// Memory is full: lets shards and encoders make room, once until they did.
    fn refuse(&self) {
        let inner = &self.0;
        inner.env.metrics.refused_events.inc();
        inner.gauges.refused.store(true, Ordering::Release);
        if !inner.gauges.relief_asked.swap(true, Ordering::AcqRel) {
            for queue in &inner.queues {
                // A full queue relieves by itself, event by event.
                let _ = queue.try_send(ShardMessage::Relieve);
            }
            inner.encoders.relieve();
        }
    }

    /// Hands over an event and waits for room. While flushes fail this may wait for long: a reader
    /// that must not stand still uses [`ObserverHandle::try_send`].
    pub async fn send(&self, event: SourceEvent) -> Result<(), SendError> {
        let (budget, needed) = (&self.0.env.budget, event.queued_bytes());
        let held = loop {
            let room = budget.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match budget.try_reserve(needed) {
                Some(held) => break held,
                None => self.refuse(),
            }
            room.await;
        };
        let (sub, change) = Self::change(&event);
        let sent = self.queue_of(sub).send(ShardMessage::Event(event, held));
        sent.await.map_err(|QueueClosed| SendError::Closed)?;
        self.note(sub, change);
        Ok(())
    }

    /// The subscription to give back first when nothing can be sent: the newest, by number, which
    /// has the least to scan again.
    pub fn newest_subscription(&self) -> Option<SubId> {
        self.0.subs.lock().last().copied()
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
            let asked = queue.send(ShardMessage::Seal(reply));
            asked.await.map_err(|QueueClosed| SealError::Stopped)?;
            answers.push(answer);
        }
        let mut seals = Vec::with_capacity(answers.len());
        for answer in answers {
            seals.push(answer.await.map_err(|_| SealError::Stopped)?);
        }
        drop(last);
        inner.gauges.refused.store(false, Ordering::Release);
        inner.encoders.pressure().next_file();
        self.encode(id, seals).await
    }

    /// Stores every slice of the seals. All of them go to the encoders before the first is waited
    /// for.
    async fn encode(&self, id: u64, seals: Vec<ShardSeal>) -> Result<Generation, SealError> {
        let encoders = &self.0.encoders;
        let mut under_way = Vec::with_capacity(seals.len());
        for seal in seals {
            let mut results = seal.early;
            for slice in seal.backlog {
                results.push(encoders.submit(slice).await);
            }
            let mut reservation = seal.reservation;
            for (slice, bytes) in seal.slots.into_slices() {
                let held = reservation.as_mut().map(|held| held.split(bytes));
                results.push(encoders.submit(Closed { slice, held }).await);
            }
            under_way.push((results, seal.claims, seal.faults));
        }
        let mut shards = Vec::with_capacity(under_way.len());
        for (results, claims, faults) in under_way {
            let mut slices = Vec::with_capacity(results.len());
            for result in results {
                slices.push(result.await.map_err(|_| SealError::Stopped)??);
            }
            shards.push(SealedShard {
                slices,
                claims,
                faults,
            });
        }
        let assemble = move || Generation::of_shards(id, shards);
        unblock(self.0.env.spawner.as_ref(), assemble)
            .await
            .map_err(|_| SealError::Stopped)
    }

    /// Plaintext of the rows that were taken since the last seal.
    pub fn buffered_bytes(&self) -> u64 {
        self.0.gauges.plain_bytes.load(Ordering::Acquire)
    }

    /// Whether events were refused for lack of memory since the last seal, while a flush would give
    /// some back: more than an interval or a size, this is a reason to flush.
    pub fn is_starved(&self) -> bool {
        let enough = self.0.env.budget.limit() / 32;
        self.0.gauges.refused.load(Ordering::Acquire) && self.buffered_bytes() >= enough
    }

    /// Bytes reserved from the budget, by the observer and by all others who share it.
    pub fn memory_used(&self) -> u64 {
        self.0.env.budget.used()
    }

    /// The limit of [`ObserverHandle::memory_used`].
    pub fn memory_budget(&self) -> u64 {
        self.0.env.budget.limit()
    }
}
