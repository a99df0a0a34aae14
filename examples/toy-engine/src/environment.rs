//! What the engine supplies to both libraries: its clock, its threads, its randomness, its metrics
//! registry and parts of its memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_env::{Clock, Random, Spawn, Worker};
use pitr_observer::{Env, Metrics};
use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::{Builder, Uuid};

/// The engine's clock.
pub struct EngineClock(Instant);

impl Clock for EngineClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The engine's threads: it names and counts them, as it does with its own.
#[derive(Default)]
pub struct EngineThreads {
    started: AtomicUsize,
}

impl EngineThreads {
    /// Threads started for the libraries so far: one for each worker, one for each piece of
    /// blocking work.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}

impl Spawn for EngineThreads {
    fn worker(&self, name: String, worker: Box<dyn Worker>) -> io::Result<()> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let name = format!("toy-{name}");
        let thread = std::thread::Builder::new().name(name);
        thread.spawn(move || worker.run()).map(drop)
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let name = "toy-blocking".to_owned();
        std::thread::Builder::new().name(name).spawn(work).map(drop)
    }
}

/// The engine's generator of random numbers.
pub struct EngineRandom(Mutex<StdRng>);

impl Random for EngineRandom {
    fn uuid(&self) -> Uuid {
        Builder::from_random_bytes(self.0.lock().random()).into_uuid()
    }
}

impl EngineRandom {
    fn new() -> Self {
        EngineRandom(Mutex::new(StdRng::from_os_rng()))
    }
}

/// The environment of the engine's restore, which takes at most `memory` bytes.
pub fn restore_environment(memory: u64) -> (pitr_restore_worker::Env, Arc<EngineThreads>) {
    let threads = Arc::new(EngineThreads::default());
    let env = pitr_restore_worker::Env {
        clock: Arc::new(EngineClock(Instant::now())),
        spawner: threads.clone(),
        random: Arc::new(EngineRandom::new()),
        budget: MemoryBudget::new(memory),
    };
    (env, threads)
}

/// The environment of the engine's backup: metrics go to `registry`, rows take at most `memory`
/// bytes.
pub fn environment(
    registry: &Registry,
    memory: u64,
) -> Result<(Env, Arc<EngineThreads>), prometheus::Error> {
    let threads = Arc::new(EngineThreads::default());
    let mut env = Env::system(Metrics::new(registry)?, MemoryBudget::new(memory));
    env.clock = Arc::new(EngineClock(Instant::now()));
    env.spawner = threads.clone();
    env.random = Arc::new(EngineRandom::new());
    Ok((env, threads))
}
