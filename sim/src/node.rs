//! The observer of one store as one value: queues, shards, flusher, publisher. Dropping it is a
//! crash; what survives is in the storage and in PD.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_env::Random;
use pitr_format::object_name::checkpoint_path;
use pitr_format::{EncodedRange, Ts, checkpoint_ts};
use pitr_observer::{
    Env, FlushSchedule, Flusher, FlusherConfig, Generation, Metrics, ProgressSink, Publisher,
    PublisherConfig, ShardCore, SourceEvent, SubId, TaskRanges,
};
use pitr_storage::SharedStorage;
use uuid::Uuid;

use crate::SimError;
use crate::pd::SimPd;

/// The only store of the world.
pub const STORE: u64 = 1;
const SHARDS: usize = 3;
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Which checkpoint is published after a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What the flushed generation proves: the product.
    Proof,
    /// What is resolved when the flush ends: the known mistake, planted to see that the invariant
    /// catches it.
    Now,
}

/// What a node needs to start.
pub struct Start {
    /// The archive, faults included.
    pub storage: SharedStorage,
    /// PD.
    pub pd: Arc<SimPd>,
    /// Metrics of the world.
    pub metrics: Metrics,
    /// Start ts of the task.
    pub start_ts: Ts,
    /// Makes object names unique and repeatable: seed and number of the start.
    pub names: (u64, u32),
    /// The publication rule.
    pub rule: Rule,
    /// Virtual time.
    pub now: Duration,
}

/// Names of objects from the seed, the life and a count.
struct Names {
    seed: u64,
    next: AtomicU64,
}

impl Names {
    fn of((seed, life): (u64, u32)) -> Self {
        Names {
            seed,
            next: AtomicU64::new(u64::from(life) << 32),
        }
    }
}

impl Random for Names {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.seed, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// A running observer.
pub struct Node {
    cores: Vec<ShardCore>,
    queues: Vec<VecDeque<SourceEvent>>,
    flusher: Flusher,
    publisher: Publisher,
    /// When to flush.
    pub schedule: FlushSchedule,
    pending: Option<Generation>,
    generations: u64,
    /// Newest resolved ts that reached a shard, per running subscription.
    resolved: BTreeMap<SubId, Ts>,
    start: Start,
}

impl Node {
    /// Starts at the durable truth.
    pub async fn start(start: Start) -> Result<Self, SimError> {
        let ranges = Arc::new(TaskRanges::new([EncodedRange::ALL]));
        let env = Env {
            random: Arc::new(Names::of(start.names)),
            ..Env::system(start.metrics.clone(), MemoryBudget::new(1 << 30))
        };
        let core = |_| ShardCore::new(Arc::clone(&ranges), 2000, env.clone());
        let config = FlusherConfig {
            merge_limit: 3000,
            concurrency: 2,
            ..FlusherConfig::new(STORE)
        };
        let flusher = Flusher::open(Arc::clone(&start.storage), config, &env)
            .await
            .map_err(|error| SimError::Observer(error.to_string()))?;
        let config = PublisherConfig {
            task: "sim".into(),
            store_id: STORE,
            ranges: ranges.as_slice().to_vec(),
            start_ts: start.start_ts,
            global_checkpoint: start.pd.global(),
        };
        let sink: Arc<dyn ProgressSink> = Arc::clone(&start.pd) as _;
        let storage = Arc::clone(&start.storage);
        let publisher = Publisher::open(config, storage, sink, &env)
            .await
            .map_err(|error| SimError::Observer(error.to_string()))?;
        Ok(Node {
            cores: (0..SHARDS).map(core).collect(),
            queues: (0..SHARDS).map(|_| VecDeque::new()).collect(),
            flusher,
            publisher,
            schedule: FlushSchedule::new(FLUSH_INTERVAL, 1 << 20, start.now),
            pending: None,
            generations: 0,
            resolved: BTreeMap::new(),
            start,
        })
    }

    /// Where a subscription of `range` begins.
    pub fn frontier(&self, range: &EncodedRange) -> Ts {
        self.publisher.frontier().min_over(range)
    }

    /// Queues events; they reach their shards in order, but shards do not wait for each other.
    pub fn enqueue(&mut self, events: impl IntoIterator<Item = SourceEvent>) {
        for event in events {
            let shard = pitr_observer::router::shard_of(event.sub(), SHARDS);
            self.queues[shard].push_back(event);
        }
    }

    /// Drops what is queued of a subscription, as a broken connection does.
    pub fn lose_queued(&mut self, sub: SubId) {
        for queue in &mut self.queues {
            queue.retain(|event| event.sub() != sub);
        }
    }

    /// Applies up to `events` queued events of one shard.
    pub fn work(&mut self, shard: usize, events: usize) {
        let shard = shard % SHARDS;
        for _ in 0..events {
            let Some(event) = self.queues[shard].pop_front() else {
                return;
            };
            match &event {
                SourceEvent::Started {
                    sub, checkpoint_ts, ..
                } => {
                    self.resolved.insert(*sub, *checkpoint_ts);
                }
                SourceEvent::Resolved { sub, ts } => {
                    self.resolved
                        .entry(*sub)
                        .and_modify(|last| *last = (*last).max(*ts));
                }
                SourceEvent::Ended { sub } => {
                    self.resolved.remove(sub);
                }
                SourceEvent::Batch { .. } => {}
            }
            self.cores[shard].apply(event);
        }
    }

    /// Applies everything queued.
    pub fn work_all(&mut self) {
        for shard in 0..SHARDS {
            self.work(shard, usize::MAX);
        }
    }

    /// Objects that a crash now may leave behind at most.
    pub fn possible_orphans(&self) -> usize {
        self.pending
            .as_ref()
            .map_or(0, |generation| generation.slices().len())
    }

    /// Whether a generation waits for its flush.
    pub fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// One attempt to flush: the pending generation, else a new one. True if it succeeded. Rows
    /// of the world are never lost by an error here; only other errors than the storage's end it.
    pub async fn flush(&mut self, flush_ts: Ts, now: Duration) -> Result<bool, SimError> {
        let mut generation = match self.pending.take() {
            Some(generation) => generation,
            None => {
                self.generations += 1;
                let seals = self.cores.iter_mut().map(ShardCore::seal).collect();
                Generation::assemble(self.generations, seals, 1)
                    .map_err(|error| SimError::Observer(error.to_string()))?
            }
        };
        self.schedule.started(now);
        match self.flusher.flush(&mut generation, flush_ts).await {
            Ok(proof) => {
                let absorbed = self.publisher.absorb(&proof);
                self.schedule.succeeded();
                if absorbed.gaps > 0 {
                    return Err(SimError::Observer(format!("{} gaps", absorbed.gaps)));
                }
                if self.start.rule == Rule::Now {
                    self.publish_now().await;
                }
                Ok(true)
            }
            Err(error) if error.class() == pitr_format::Class::Retry => {
                self.schedule.failed(now);
                self.pending = Some(generation);
                Ok(false)
            }
            Err(error) => Err(SimError::Observer(error.to_string())),
        }
    }

    /// One attempt to publish what is proven; failures are repeated by the next call.
    pub async fn publish(&mut self) {
        if let Ok(published) = self.publisher.publish().await
            && let Some(global) = published.global
        {
            self.flusher.set_global_checkpoint(global);
        }
    }

    /// The checkpoint that is proven.
    pub fn checkpoint(&self) -> Ts {
        self.publisher.checkpoint()
    }

    /// The planted mistake: publishes what is resolved now.
    async fn publish_now(&mut self) {
        let Some(now) = self.resolved.values().min() else {
            return;
        };
        if let Ok(ts) = self.start.pd.raise_global(*now).await {
            let bytes = Bytes::copy_from_slice(&checkpoint_ts::encode(ts));
            let put = self
                .start
                .storage
                .put(&checkpoint_path(STORE), bytes.into())
                .await;
            // A failed write only makes the mistake later.
            drop(put);
        }
    }
}
