//! Clock, threads and randomness of the simulated process.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use pitr_env::{Clock, Random, Spawn, Step, Worker};
use uuid::Uuid;

/// Virtual unix time at which every run begins.
pub const EPOCH_MS: u64 = 1_800_000_000_000;

/// Virtual time, moved by the world only.
#[derive(Default)]
pub struct SimClock(AtomicU64);

impl SimClock {
    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// Milliseconds since the beginning.
    pub fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.ms())
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(EPOCH_MS + self.ms())
    }
}

/// Names from the seed, the life of the node and a count.
pub struct SimRandom {
    seed: u64,
    next: AtomicU64,
}

impl SimRandom {
    /// The names of one life.
    pub fn new(seed: u64, life: u64) -> Arc<Self> {
        Arc::new(SimRandom {
            seed,
            next: AtomicU64::new(life << 32),
        })
    }
}

impl Random for SimRandom {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.seed, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Keeps workers and jobs, and runs them when the world says so.
#[derive(Default)]
pub struct SimSpawner {
    workers: Mutex<Vec<Box<dyn Worker>>>,
    jobs: Mutex<VecDeque<Job>>,
}

impl SimSpawner {
    /// Workers that are not over.
    pub fn workers(&self) -> usize {
        self.workers.lock().len()
    }

    /// Lets one worker take one step; one that is over is forgotten.
    pub fn step(&self, worker: usize) -> Step {
        let mut workers = self.workers.lock();
        let Some(running) = workers.get_mut(worker) else {
            return Step::Idle;
        };
        let step = running.step();
        if step == Step::Over {
            workers.remove(worker);
        }
        step
    }

    /// Runs the oldest job; whether there was one.
    pub fn run_job(&self) -> bool {
        let job = self.jobs.lock().pop_front();
        let any = job.is_some();
        if let Some(job) = job {
            job();
        }
        any
    }
}

impl Spawn for SimSpawner {
    fn worker(&self, _name: String, worker: Box<dyn Worker>) -> io::Result<()> {
        self.workers.lock().push(worker);
        Ok(())
    }

    fn blocking(&self, work: Job) -> io::Result<()> {
        self.jobs.lock().push_back(work);
        Ok(())
    }
}
