//! Stores, streams, observers, coordinators, PD and archive together; the seed decides every step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pitr_budget::MemoryBudget;
use pitr_coordinator::Policy;
use pitr_format::backup_meta::{self, LogBackupMeta};
use pitr_format::{EncodedKey, EncodedRange, Ts, object_name};
use pitr_observer::{Env, FlusherConfig, Metrics, ObserverConfig};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::SimError;
use crate::bug::Bug;
use crate::coordinator;
use crate::doubles::{SimPd, SimStorage};
use crate::env::{EPOCH_MS, SimClock, SimRandom};
use crate::node::{self, Setup};
use crate::oracle::{Objects, Oracle, STORES};
use crate::process::Process;
use crate::restored;
use crate::store::Store;
use crate::trace::Trace;

/// How likely what goes wrong, in percent of the calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) before: u32,
    pub(crate) after: u32,
    pub(crate) slow: u32,
    pub(crate) pd_away: bool,
}

/// What a run showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Hash over the trace and every object.
    pub fingerprint: String,
    /// Checkpoints that were checked.
    pub checkpoints: u64,
    /// Metas that were read.
    pub metas: u64,
    /// Crashes.
    pub crashes: u64,
    /// Flushes that failed.
    pub failed_flushes: u64,
    /// Events that were refused for lack of room.
    pub refused: u64,
    /// Calls that failed before and after their effect.
    pub faults: u64,
    /// Records restored at the end.
    pub restored: u64,
    /// Moves of leaders between stores.
    pub moves: u64,
    /// Candidates that led and raised the checkpoint, one after the other.
    pub leaders: u64,
    /// What happened, if asked for.
    pub trace: Vec<String>,
}

/// The world.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rng: StdRng,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) logical: u64,
    pub(crate) store: Store,
    /// One for each store.
    pub(crate) processes: Vec<Process>,
    /// The election in PD: revision of a key → until when its lease lives.
    pub(crate) candidates: BTreeMap<u64, u64>,
    pub(crate) revision: u64,
    /// Who raised the checkpoint last.
    pub(crate) last_leader: u64,
    pub(crate) metrics: Metrics,
    pub(crate) objects: Objects,
    pub(crate) oracle: Oracle,
    pub(crate) weather: Weather,
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    pub(crate) bug: Option<Bug>,
    pub(crate) ranges: Vec<EncodedRange>,
    pub(crate) start_ts: Ts,
    pub(crate) next_sub: u64,
    pub(crate) lives: u64,
    pub(crate) trace: Trace,
    pub(crate) outcome: Outcome,
    sizes: Sizes,
}

/// Sizes that the seed chooses once.
#[derive(Clone, Debug)]
struct Sizes {
    stores: u64,
    observer: ObserverConfig,
    flusher: FlusherConfig,
    memory: u64,
    interval: Duration,
}

impl Sizes {
    fn choose(rng: &mut StdRng) -> Self {
        Sizes {
            stores: rng.random_range(1..=STORES),
            observer: ObserverConfig {
                shards: rng.random_range(1..=3),
                queue_events: [2, 8, 64][rng.random_range(0..3)],
                slice_limit: [1000, 4000, 1 << 20][rng.random_range(0..3)],
                encoders: rng.random_range(1..=2),
            },
            flusher: FlusherConfig {
                merge_limit: [500, 3000, 1 << 20][rng.random_range(0..3)],
                concurrency: rng.random_range(1..=3),
                ..FlusherConfig::new(1)
            },
            // An open slice takes about 1.5 KB, however few rows it has.
            memory: [30_000, 100_000, 1 << 20][rng.random_range(0..3)],
            interval: Duration::from_secs(rng.random_range(1..=4)),
        }
    }
}

/// Plays one seed: chaos, then a calm in which the checkpoint must arrive, then a restore.
pub fn play(seed: u64, bug: Option<Bug>, keep_trace: bool) -> (Outcome, Result<(), SimError>) {
    let mut world = match World::new(seed, bug, keep_trace) {
        Ok(world) => world,
        Err(error) => return (Outcome::default(), Err(error)),
    };
    let result = world.run();
    if let Err(error) = &result {
        world.trace.note(format_args!("FAILED: {error}"));
    }
    (world.summary(), result)
}

impl World {
    fn new(seed: u64, bug: Option<Bug>, keep_trace: bool) -> Result<Self, SimError> {
        let mut rng = StdRng::seed_from_u64(seed);
        let key = |raw: &[u8]| EncodedKey::encode(raw).into_bytes();
        let ranges = match rng.random_bool(0.5) {
            true => vec![EncodedRange::ALL],
            false => vec![
                EncodedRange::new(key(b"m"), key(b"n")),
                EncodedRange::new(key(b"t"), key(b"u")),
            ],
        };
        let metrics =
            Metrics::new(&Registry::new()).map_err(|e| SimError::Observer(e.to_string()))?;
        let sizes = Sizes::choose(&mut rng);
        let mut trace = Trace::new(keep_trace);
        trace.note(format_args!("seed {seed}, bug {bug:?}, {sizes:?}"));
        let mut world = World {
            seed,
            store: Store::new(rng.random_bool(0.3)),
            rng,
            clock: Arc::default(),
            logical: 0,
            processes: (1..=sizes.stores).map(|id| Process::new(id, bug)).collect(),
            candidates: BTreeMap::new(),
            revision: 0,
            last_leader: 0,
            metrics,
            objects: Objects::new(),
            oracle: Oracle::new(ranges.clone()),
            weather: Weather::default(),
            calm: false,
            bug,
            ranges,
            start_ts: Ts::ZERO,
            next_sub: 1,
            lives: 0,
            trace,
            outcome: Outcome::default(),
            sizes,
        };
        world.start_ts = world.tso();
        let head = backup_meta::encode(&LogBackupMeta {
            cluster_id: 1,
            cluster_version: String::new(),
            start_ts: world.start_ts,
            backup_schema_version: 1,
        });
        let path = object_name::BACKUP_META.to_owned();
        world.objects.insert(path, head);
        Ok(world)
    }

    fn run(&mut self) -> Result<(), SimError> {
        let steps = self.rng.random_range(300..1000);
        for _ in 0..steps {
            self.chaos()?;
        }
        self.settle()?;
        self.outcome.restored = restored::check(self)?;
        Ok(())
    }

    /// A fresh timestamp.
    pub(crate) fn tso(&mut self) -> Ts {
        self.logical += 1;
        Ts::compose(EPOCH_MS + self.clock.ms(), self.logical)
    }

    /// Starts a node, or starts it again, from what is durable.
    fn start_node(&mut self, at: usize) {
        self.lives += 1;
        let process = &mut self.processes[at];
        process.spawner = Arc::default();
        process.board = Arc::default();
        let env = Env {
            random: SimRandom::new(self.seed, self.lives),
            spawner: process.spawner.clone(),
            clock: self.clock.clone(),
            ..Env::system(self.metrics.clone(), MemoryBudget::new(self.sizes.memory))
        };
        let pd = SimPd {
            calls: process.calls.clone(),
            store: process.store,
            board: process.board.clone(),
        };
        process.life = Some(Box::pin(node::live(Setup {
            env,
            store: process.store,
            storage: Arc::new(SimStorage(process.calls.clone())),
            pd: Arc::new(pd),
            observer: self.sizes.observer.clone(),
            flusher: FlusherConfig {
                store_id: process.store,
                ..self.sizes.flusher.clone()
            },
            interval: self.sizes.interval,
            start_ts: self.start_ts,
            ranges: self.ranges.clone(),
            bug: self.bug,
            board: process.board.clone(),
        })));
    }

    fn start_candidate(&mut self, at: usize) {
        let stores = (1..=self.sizes.stores).collect();
        let process = &mut self.processes[at];
        process.candidate = Some(Box::pin(coordinator::live(coordinator::Setup {
            calls: process.candidate_calls.clone(),
            clock: self.clock.clone(),
            stores,
            ranges: self.ranges.clone(),
            policy: Policy {
                flush_interval: self.sizes.interval,
                lag_limit: Duration::MAX,
                standstill: None,
            },
            heard: process.heard.clone(),
            bug: self.bug,
        })));
    }

    /// A process dies: its memory is lost, and each write under way had its effect or had not. Its
    /// place in the election stays until the lease ends.
    pub(crate) fn crash(&mut self, at: usize) -> Result<(), SimError> {
        self.trace.note(format_args!("{} crashes", at + 1));
        self.outcome.crashes += 1;
        self.processes[at].life = None;
        self.processes[at].candidate = None;
        for of_candidate in [false, true] {
            let calls = self.processes[at].calls(of_candidate).clone();
            for id in calls.waiting() {
                if self.rng.random_bool(0.5) {
                    self.take_effect(at, of_candidate, id)?;
                }
            }
            calls.clear();
        }
        self.note_board(at);
        let store = self.processes[at].store;
        self.processes[at] = Process::new(store, self.bug);
        for region in &mut self.store.regions {
            if region.leader == Some(store) {
                region.sub = None;
            }
        }
        Ok(())
    }

    fn note_board(&mut self, at: usize) {
        let board = &mut self.processes[at].board.lock();
        self.outcome.failed_flushes += std::mem::take(&mut board.failed_flushes);
    }

    /// Lets a process go on; starts it if it does not run.
    pub(crate) fn poll_process(&mut self, at: usize) -> Result<(), SimError> {
        let mut context = Context::from_waker(Waker::noop());
        match &mut self.processes[at].candidate {
            Some(candidate) => {
                // It never ends.
                let _ = candidate.as_mut().poll(&mut context);
            }
            None => self.start_candidate(at),
        }
        let Some(life) = &mut self.processes[at].life else {
            self.start_node(at);
            return Ok(());
        };
        match life.as_mut().poll(&mut context) {
            Poll::Pending => Ok(()),
            Poll::Ready(error) => Err(error),
        }
    }

    fn summary(mut self) -> Outcome {
        (0..self.processes.len()).for_each(|at| self.note_board(at));
        let objects = self.objects.iter();
        let named = objects.map(|(name, bytes)| (name.as_str(), &bytes[..]));
        Outcome {
            fingerprint: self.trace.fingerprint(named),
            checkpoints: self.oracle.checkpoints,
            metas: self.oracle.metas,
            refused: self.metrics.refused_events.get(),
            trace: self.trace.take_lines(),
            ..self.outcome
        }
    }
}
