//! Store, observer, PD and archive together, moved step by step from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::Ts;
use pitr_observer::{Metrics, SourceEvent};
use pitr_storage::fault::{FaultPlan, FaultyStorage};
use pitr_storage::{SharedStorage, open_url};
use prometheus::Registry;

use crate::SimError;
use crate::archive::Archive;
use crate::node::{Node, Rule, Start};
use crate::pd::SimPd;
use crate::store::Store;

/// Virtual unix time at which every run begins.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// Time and timestamps; nothing here reads a real clock.
struct Clock {
    since_epoch: Duration,
    logical: u64,
}

impl Clock {
    fn tso(&mut self) -> Ts {
        self.logical += 1;
        Ts::compose(EPOCH_MS + self.since_epoch.as_millis() as u64, self.logical)
    }
}

/// What was checked in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Checkpoints at which a restore was compared with the model.
    pub checkpoints: u64,
    /// Flushes that failed.
    pub failed_flushes: u64,
    /// Crashes of the observer.
    pub crashes: u64,
    /// The last checkpoint.
    pub last: Option<Ts>,
}

/// The world.
pub struct World {
    clock: Clock,
    /// The store, for steps that have no method here.
    pub store: Store,
    /// PD.
    pub pd: Arc<SimPd>,
    node: Node,
    archive: SharedStorage,
    faulty: Arc<FaultyStorage>,
    metrics: Metrics,
    start_ts: Ts,
    seed: u64,
    lives: u32,
    rule: Rule,
    orphans_allowed: usize,
    checked: Checked,
}

impl World {
    /// An empty store, observed from the beginning. The seed only names objects; what happens is
    /// up to the scenario.
    pub async fn new(seed: u64, rule: Rule) -> Result<Self, SimError> {
        let archive = open_url("memory://")?;
        let faulty = FaultyStorage::new(Arc::clone(&archive), FaultPlan::none());
        let pd = Arc::new(SimPd::default());
        let metrics = Metrics::new(&Registry::new())
            .map_err(|error| SimError::Observer(error.to_string()))?;
        let mut clock = Clock {
            since_epoch: Duration::ZERO,
            logical: 0,
        };
        let start_ts = clock.tso();
        let node = Node::start(Start {
            storage: faulty.clone(),
            pd: Arc::clone(&pd),
            metrics: metrics.clone(),
            start_ts,
            names: (seed, 1),
            rule,
            now: clock.since_epoch,
        })
        .await?;
        let mut world = World {
            clock,
            store: Store::new(),
            pd,
            node,
            archive,
            faulty,
            metrics,
            start_ts,
            seed,
            lives: 1,
            rule,
            orphans_allowed: 0,
            checked: Checked::default(),
        };
        world.subscribe();
        Ok(world)
    }

    /// Lets virtual time pass.
    pub fn pass(&mut self, time: Duration) {
        self.clock.since_epoch += time;
        self.clock.logical = 0;
    }

    /// Begins a transaction.
    pub fn prewrite(&mut self, writes: BTreeMap<Vec<u8>, Option<Bytes>>) {
        let start_ts = self.clock.tso();
        self.store.prewrite(start_ts, writes);
    }

    /// Commits an open transaction.
    pub fn commit(&mut self, index: usize) {
        let commit_ts = self.clock.tso();
        let events = self.store.commit(index, commit_ts);
        self.node.enqueue(events);
    }

    /// Writes one key in one transaction.
    pub fn write(&mut self, key: &[u8], value: impl Into<Bytes>) {
        self.prewrite([(key.to_vec(), Some(value.into()))].into());
        if let Some(last) = self.store.open_transactions().checked_sub(1) {
            self.commit(last);
        }
    }

    /// The store resolves its regions.
    pub fn resolve(&mut self) {
        let now = self.clock.tso();
        self.node.enqueue(self.store.resolve(now));
    }

    /// A shard works on its queue.
    pub fn work(&mut self, shard: usize, events: usize) {
        self.node.work(shard, events);
    }

    /// All shards empty their queues.
    pub fn work_all(&mut self) {
        self.node.work_all();
    }

    /// Splits a region; both halves are subscribed again.
    pub fn split(&mut self, key: &[u8]) {
        let ended = self.store.split(key);
        self.node.enqueue(ended);
        self.subscribe();
    }

    /// The connection of a region breaks: queued events may be lost, then it is subscribed again.
    pub fn reconnect(&mut self, region: usize, lose: bool) {
        if let Some(ended) = self.store.unsubscribe(region) {
            if lose {
                self.node.lose_queued(ended.sub());
            }
            self.node.enqueue([ended]);
        }
        self.subscribe();
    }

    fn subscribe(&mut self) {
        let node = &self.node;
        let events: Vec<SourceEvent> = self.store.subscribe_missing(|range| node.frontier(range));
        self.node.enqueue(events);
    }

    /// Replaces what fails in the storage.
    pub fn set_faults(&mut self, plan: FaultPlan) {
        self.faulty.set_plan(plan);
    }

    /// The observer dies and starts again, with a storage that works for that long.
    pub async fn crash(&mut self) -> Result<(), SimError> {
        self.checked.crashes += 1;
        self.orphans_allowed += self.node.possible_orphans();
        self.lives += 1;
        self.store.forget_subscriptions();
        self.set_faults(FaultPlan::none());
        self.node = Node::start(Start {
            storage: self.faulty.clone(),
            pd: Arc::clone(&self.pd),
            metrics: self.metrics.clone(),
            start_ts: self.start_ts,
            names: (self.seed, self.lives),
            rule: self.rule,
            now: self.clock.since_epoch,
        })
        .await?;
        self.subscribe();
        self.check().await
    }

    /// Whether the schedule asks for a flush.
    pub fn flush_is_due(&self) -> bool {
        self.node.schedule.due(self.clock.since_epoch, 0).is_some()
    }

    /// Tries to flush and to publish; whether the flush succeeded. Checks the invariant.
    pub async fn flush(&mut self) -> Result<bool, SimError> {
        let flush_ts = self.clock.tso();
        let flushed = self.node.flush(flush_ts, self.clock.since_epoch).await?;
        self.checked.failed_flushes += u64::from(!flushed);
        self.publish().await?;
        Ok(flushed)
    }

    /// Tries to publish what is proven. Checks the invariant.
    pub async fn publish(&mut self) -> Result<(), SimError> {
        self.node.publish().await;
        self.check().await
    }

    /// Restore at the largest `.ts` = the store at that ts; and nothing lies around that no crash
    /// explains.
    pub async fn check(&mut self) -> Result<(), SimError> {
        let archive = Archive::read(&self.archive).await?;
        let pending = self.node.possible_orphans();
        if archive.unreferenced.len() > self.orphans_allowed + pending {
            return Err(SimError::Stuck(format!(
                "{} objects without reference, {} allowed",
                archive.unreferenced.len(),
                self.orphans_allowed + pending
            )));
        }
        if archive.checkpoint < self.checked.last {
            return Err(SimError::Stuck("the checkpoint went back".to_owned()));
        }
        let Some(ts) = archive
            .checkpoint
            .filter(|_| archive.checkpoint > self.checked.last)
        else {
            return Ok(());
        };
        self.checked.last = Some(ts);
        self.checked.checkpoints += 1;
        let (restored, model) = (archive.restore(ts)?, self.store.image_at(ts));
        if restored == model {
            return Ok(());
        }
        let differs = model.keys().chain(restored.keys());
        let key = differs
            .into_iter()
            .find(|key| model.get(*key) != restored.get(*key));
        Err(SimError::Violation {
            ts: ts.get(),
            what: format!(
                "{key:?} differs from the store: {} keys restored, {} in the store",
                restored.len(),
                model.len()
            ),
        })
    }

    /// Faults end; everything committed must become restorable within a few flushes.
    pub async fn settle(&mut self) -> Result<Checked, SimError> {
        self.set_faults(FaultPlan::none());
        self.pd.refuse(0);
        while self.store.open_transactions() > 0 {
            self.commit(0);
        }
        let wanted = self.clock.tso();
        // One flush for a pending generation, one for what came after it.
        for _ in 0..3 {
            self.pass(Duration::from_secs(10));
            self.resolve();
            self.work_all();
            self.flush().await?;
        }
        if self.checked.last < Some(wanted) {
            let last = self.checked.last.unwrap_or(Ts::ZERO);
            return Err(SimError::Stuck(format!(
                "checkpoint {last} stays below {wanted}"
            )));
        }
        if self.pd.global() != self.checked.last
            || self.pd.storage_checkpoint() != self.checked.last.unwrap_or(Ts::ZERO)
        {
            return Err(SimError::Stuck("PD and archive disagree".to_owned()));
        }
        Ok(self.checked)
    }

    /// Every object with its bytes: equal for equal runs.
    pub async fn objects(&self) -> Result<Vec<(String, Bytes)>, SimError> {
        let mut objects = Vec::new();
        for object in self.archive.list("").await? {
            let bytes = self.archive.get(&object.path).await?;
            objects.push((object.path, bytes));
        }
        Ok(objects)
    }

    /// What was checked so far.
    pub fn checked(&self) -> Checked {
        self.checked
    }

    /// Whether a failed generation waits.
    pub fn has_pending(&self) -> bool {
        self.node.has_pending()
    }

    /// The checkpoint that is proven.
    pub fn proven(&self) -> Ts {
        self.node.checkpoint()
    }
}
