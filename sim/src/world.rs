//! Store, stream, observer, PD and archive together; the seed decides every step.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_format::backup_meta::{self, LogBackupMeta};
use pitr_format::{EncodedKey, EncodedRange, Ts, object_name};
use pitr_observer::{Env, FlusherConfig, FrontierMap, Metrics, ObserverConfig};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::SimError;
use crate::bug::Bug;
use crate::calls::Calls;
use crate::doubles::{SimPd, SimStorage};
use crate::env::{EPOCH_MS, SimClock, SimRandom, SimSpawner};
use crate::node::{self, Board, STORE, Setup};
use crate::oracle::{Objects, Oracle};
use crate::restored;
use crate::source::Source;
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
    /// What happened, if asked for.
    pub trace: Vec<String>,
}

type Life = Pin<Box<dyn Future<Output = SimError>>>;

/// The world.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rng: StdRng,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) logical: u64,
    pub(crate) store: Store,
    pub(crate) source: Source,
    pub(crate) calls: Arc<Calls>,
    pub(crate) spawner: Arc<SimSpawner>,
    pub(crate) board: Arc<Mutex<Board>>,
    pub(crate) life: Option<Life>,
    pub(crate) metrics: Metrics,
    pub(crate) objects: Objects,
    pub(crate) oracle: Oracle,
    pub(crate) weather: Weather,
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    pub(crate) bug: Option<Bug>,
    /// Writes that the planted mistake holds back.
    pub(crate) held_back: Vec<(String, Bytes)>,
    /// What the store told as resolved, delivered or not.
    pub(crate) told: FrontierMap,
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
    observer: ObserverConfig,
    flusher: FlusherConfig,
    memory: u64,
    interval: Duration,
}

impl Sizes {
    fn choose(rng: &mut StdRng) -> Self {
        Sizes {
            observer: ObserverConfig {
                shards: rng.random_range(1..=3),
                queue_events: [2, 8, 64][rng.random_range(0..3)],
                slice_limit: [1000, 4000, 1 << 20][rng.random_range(0..3)],
                encoders: rng.random_range(1..=2),
            },
            flusher: FlusherConfig {
                merge_limit: [500, 3000, 1 << 20][rng.random_range(0..3)],
                concurrency: rng.random_range(1..=3),
                ..FlusherConfig::new(STORE)
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
            source: Source::new(bug),
            calls: Arc::default(),
            spawner: Arc::default(),
            board: Arc::default(),
            life: None,
            metrics,
            objects: Objects::new(),
            oracle: Oracle::new(ranges.clone()),
            weather: Weather::default(),
            calm: false,
            bug,
            held_back: Vec::new(),
            told: FrontierMap::new(Ts::ZERO),
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

    /// Starts the node, or starts it again, from what is durable.
    pub(crate) fn start_node(&mut self) {
        self.lives += 1;
        self.spawner = Arc::default();
        self.board = Arc::default();
        let env = Env {
            random: SimRandom::new(self.seed, self.lives),
            spawner: self.spawner.clone(),
            clock: self.clock.clone(),
            ..Env::system(self.metrics.clone(), MemoryBudget::new(self.sizes.memory))
        };
        self.life = Some(Box::pin(node::live(Setup {
            env,
            storage: Arc::new(SimStorage(self.calls.clone())),
            pd: Arc::new(SimPd(self.calls.clone())),
            observer: self.sizes.observer.clone(),
            flusher: self.sizes.flusher.clone(),
            interval: self.sizes.interval,
            start_ts: self.start_ts,
            ranges: self.ranges.clone(),
            bug: self.bug,
            board: self.board.clone(),
        })));
    }

    /// The node dies: its memory is lost, and each write under way had its effect or had not.
    pub(crate) fn crash(&mut self) -> Result<(), SimError> {
        self.trace.note(format_args!("crash"));
        self.outcome.crashes += 1;
        self.life = None;
        for id in self.calls.waiting() {
            if self.rng.random_bool(0.5) {
                self.take_effect(id)?;
            }
        }
        self.calls.clear();
        self.held_back.clear();
        self.note_board();
        self.board = Arc::default();
        self.source = Source::new(self.bug);
        self.told = FrontierMap::new(Ts::ZERO);
        for region in &mut self.store.regions {
            region.sub = None;
        }
        Ok(())
    }

    fn note_board(&mut self) {
        self.outcome.failed_flushes += std::mem::take(&mut self.board.lock().failed_flushes);
    }

    /// Lets the node's future go on; starts a node if there is none.
    pub(crate) fn poll_node(&mut self) -> Result<(), SimError> {
        let Some(life) = &mut self.life else {
            self.start_node();
            return Ok(());
        };
        let mut context = Context::from_waker(Waker::noop());
        match life.as_mut().poll(&mut context) {
            Poll::Pending => Ok(()),
            Poll::Ready(error) => Err(error),
        }
    }

    fn summary(mut self) -> Outcome {
        self.note_board();
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
