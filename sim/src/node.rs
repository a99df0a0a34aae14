//! The life of the observer beside one store: start from the durable truth, flush, tell, publish
//! what it learns, until it dies. The sidecar's session in small, over the same parts.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_format::{Class, EncodedRange, Ts};
use pitr_observer::{
    Env, FlushSchedule, Flusher, FlusherConfig, Generation, Observer, ObserverConfig,
    ObserverHandle, Publisher, PublisherConfig, RangeProgress, SharedFrontier,
};

use crate::SimError;
use crate::bug::Bug;
use crate::coordinator::Lines;
use crate::doubles::{SimPd, SimStorage};
use crate::planted::Planted;

/// A step that failed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// What a node is given.
pub struct Setup {
    /// Its environment.
    pub env: Env,
    /// The store beside it.
    pub store: u64,
    /// The archive.
    pub storage: Arc<SimStorage>,
    /// PD.
    pub pd: Arc<SimPd>,
    /// Sizes.
    pub observer: ObserverConfig,
    /// Sizes.
    pub flusher: FlusherConfig,
    /// Time between flushes.
    pub interval: Duration,
    /// Start ts of the task.
    pub start_ts: Ts,
    /// Its key ranges.
    pub ranges: Vec<EncodedRange>,
    /// The planted mistake.
    pub bug: Option<Bug>,
    /// What others see of the node.
    pub board: Arc<Mutex<Board>>,
}

/// What the world sees of a node.
#[derive(Default)]
pub struct Board {
    /// Once it runs: where events go, and where subscriptions begin.
    pub running: Option<(ObserverHandle, SharedFrontier)>,
    /// What the source told so far: only planted mistakes look at it.
    pub told: Vec<RangeProgress>,
    /// The global checkpoint as PD's watch told it.
    pub global: Option<Ts>,
    /// The last flush table: what polls are answered with.
    pub table: Vec<TableLine>,
    /// Tables that were not sent to the coordinator yet.
    pub unsent: VecDeque<Lines>,
    /// Generations made durable.
    pub flushes: u64,
    /// Flushes that failed.
    pub failed_flushes: u64,
}

/// A line of a flush table.
#[derive(Clone, Debug)]
pub struct TableLine {
    /// The region.
    pub region: u64,
    /// Its version.
    pub version: u64,
    /// Its range.
    pub range: EncodedRange,
    /// Up to where it is durable.
    pub ts: Ts,
}

impl Board {
    /// A flush became durable.
    pub fn flushed(&mut self, table: Vec<TableLine>) {
        let line = |line: &TableLine| (line.range.clone(), line.ts);
        self.unsent.push_back(table.iter().map(line).collect());
        self.table = table;
    }
}

struct Node {
    setup: Setup,
    observer: ObserverHandle,
    flusher: Flusher,
    publisher: Publisher,
    planted: Option<Planted>,
    generation: Option<Generation>,
    publish_again: Option<Duration>,
}

/// Lives until something cannot be mended by trying again. Dropping it is a crash.
pub async fn live(setup: Setup) -> SimError {
    let mut node = loop {
        match Node::start(&setup).await {
            Some(parts) => break parts.into_node(setup),
            None => sleep(&setup.env, AGAIN).await,
        }
    };
    let env = node.setup.env.clone();
    // Below the budget, or a large scan would get one budget of rows per interval.
    let size_limit = env.budget.limit() / 3;
    let mut schedule = FlushSchedule::new(node.setup.interval, size_limit, env.clock.now());
    loop {
        let now = env.clock.now();
        let starved = node.observer.is_starved();
        let buffered = if starved {
            u64::MAX
        } else {
            node.observer.buffered_bytes()
        };
        if schedule.due(now, buffered).is_some() {
            schedule.started(now);
            match node.flush().await {
                Ok(true) => schedule.succeeded(),
                Ok(false) => {
                    node.setup.board.lock().failed_flushes += 1;
                    schedule.failed(env.clock.now());
                }
                Err(error) => return error,
            }
        }
        let told = node.setup.board.lock().global;
        let is_news = told > node.publisher.published().global;
        if is_news || node.publish_again.is_some_and(|at| at <= env.clock.now()) {
            node.learn(told);
            node.publish().await;
        }
        pause().await;
    }
}

struct Parts {
    observer: ObserverHandle,
    flusher: Flusher,
    publisher: Publisher,
    planted: Option<Planted>,
}

impl Parts {
    fn into_node(self, setup: Setup) -> Node {
        Node {
            setup,
            observer: self.observer,
            flusher: self.flusher,
            publisher: self.publisher,
            planted: self.planted,
            generation: None,
            publish_again: None,
        }
    }
}

impl Node {
    async fn start(setup: &Setup) -> Option<Parts> {
        let global = setup.pd.load_global().await?;
        let storage = setup.storage.clone();
        let opened = Flusher::open(storage.clone(), setup.flusher.clone(), &setup.env).await;
        let flusher = opened.ok()?;
        let config = PublisherConfig {
            task: "sim".to_owned(),
            store_id: setup.store,
            ranges: setup.ranges.clone(),
            start_ts: setup.start_ts,
            end_ts: Ts::MAX,
            global_checkpoint: global,
        };
        let pd = setup.pd.clone();
        let opened = Publisher::open(config, storage, pd, &setup.env).await;
        let publisher = opened.ok()?;
        let ranges = setup.ranges.clone();
        let observer = Observer::start(setup.observer.clone(), setup.env.clone(), ranges).ok()?;
        let planted = setup.bug.map(|bug| {
            let start = global.unwrap_or(setup.start_ts);
            let doubles = (setup.storage.clone(), setup.board.clone());
            Planted::new(bug, start, setup.ranges.clone(), doubles, setup.store)
        });
        setup.board.lock().running = Some((observer.clone(), publisher.frontier()));
        Some(Parts {
            observer,
            flusher,
            publisher,
            planted,
        })
    }

    /// One attempt to make the kept generation durable, or a new one; whether it succeeded.
    async fn flush(&mut self) -> Result<bool, SimError> {
        let repeated = self.generation.is_some();
        let mut generation = match self.generation.take() {
            Some(kept) => kept,
            None => self.observer.seal().await.map_err(gave_up)?,
        };
        if self.setup.bug == Some(Bug::PublishBeforeUpload) {
            self.tell_planted(generation.progress()).await;
        }
        let Some(flush_ts) = self.setup.pd.tso().await else {
            self.generation = Some(generation);
            return Ok(false);
        };
        let proof = match self.flusher.flush(&mut generation, flush_ts).await {
            Ok(proof) => proof,
            Err(error) if error.class() == Class::Retry => {
                self.generation = Some(generation);
                return Ok(false);
            }
            Err(error) => return Err(gave_up(error)),
        };
        self.setup.board.lock().flushes += 1;
        if let Some(fault) = generation.faults().first() {
            return Err(SimError::Observer(fault.reason.clone()));
        }
        let absorbed = self.publisher.absorb(&proof);
        if absorbed.gaps > 0 && self.setup.bug.is_none() {
            return Err(SimError::Observer(format!("{} gaps", absorbed.gaps)));
        }
        match self.setup.bug {
            Some(Bug::ProgressFromNow) => self.tell_planted(&self.told()).await,
            Some(Bug::RetryWithFreshProgress) if repeated => {
                self.tell_planted(&self.told()).await;
            }
            Some(Bug::RegionIgnored | Bug::ObjectBeforeGlobal | Bug::ScanFromResolved) => {
                self.tell_planted(proof.progress()).await;
            }
            _ => self.publish().await,
        }
        Ok(true)
    }

    fn told(&self) -> Vec<RangeProgress> {
        self.setup.board.lock().told.clone()
    }

    async fn tell_planted(&mut self, claims: &[RangeProgress]) {
        if let Some(planted) = &mut self.planted {
            planted.tell(claims).await;
        }
    }

    fn learn(&mut self, global: Option<Ts>) {
        if let Some(global) = global {
            self.publisher.learn(global);
            if let Some(planted) = &mut self.planted {
                planted.learn(global);
            }
        }
    }

    async fn publish(&mut self) {
        match self.publisher.publish().await {
            Ok(published) => {
                self.publish_again = None;
                if let Some(global) = published.global {
                    self.flusher.set_global_checkpoint(global);
                }
            }
            Err(_) => self.publish_again = Some(self.setup.env.clock.now() + AGAIN),
        }
    }
}

fn gave_up(error: impl ToString) -> SimError {
    SimError::Observer(error.to_string())
}

async fn sleep(env: &Env, time: Duration) {
    let until = env.clock.now() + time;
    while env.clock.now() < until {
        pause().await;
    }
}

/// Lets the world take one step.
pub async fn pause() {
    let mut paused = false;
    poll_fn(|_| {
        if std::mem::replace(&mut paused, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
