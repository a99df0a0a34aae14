//! Environments of tests: a clock that is moved by hand or by whoever waits, names in order,
//! threads that are counted and can be stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use pitr_budget::MemoryBudget;
use pitr_env::{Clock, Random, Sleep, Spawn, SystemSpawner, Worker};
use pitr_restore_worker::Env;
use tokio::sync::Notify;
use uuid::Uuid;

/// Virtual time.
#[derive(Clone, Default)]
pub struct TestClock(Arc<Time>);

#[derive(Default)]
struct Time {
    now: AtomicU64,
    /// Nobody moves it: a wait is over at once, and the time has passed.
    hurries: AtomicBool,
    moved: Notify,
}

impl TestClock {
    /// A clock that jumps to the end of every wait.
    pub fn hurried() -> Self {
        let clock = TestClock::default();
        clock.0.hurries.store(true, SeqCst);
        clock
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.0.now.fetch_add(time.as_nanos() as u64, SeqCst);
        self.0.moved.notify_waiters();
    }
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.now.load(SeqCst))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now() + self.now()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let (clock, end) = (self.clone(), self.now() + time);
        Box::pin(async move {
            loop {
                let moved = clock.0.moved.notified();
                let mut moved = std::pin::pin!(moved);
                moved.as_mut().enable();
                let left = end.saturating_sub(clock.now());
                if left.is_zero() {
                    return;
                }
                match clock.0.hurries.load(SeqCst) {
                    true => clock.pass(left),
                    false => moved.await,
                }
            }
        })
    }
}

/// 0, 1, 2, …
#[derive(Default)]
pub struct Counted(AtomicU64);

impl Random for Counted {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(7, self.0.fetch_add(1, SeqCst))
    }
}

/// Threads of the runtime. After so many pieces of work, no other is ever done, and nobody is told.
pub struct Threads {
    left: AtomicU64,
    done: AtomicU64,
}

impl Threads {
    pub fn endless() -> Arc<Self> {
        Threads::until(u64::MAX)
    }

    pub fn until(left: u64) -> Arc<Self> {
        Arc::new(Threads {
            left: AtomicU64::new(left),
            done: AtomicU64::new(0),
        })
    }

    /// Pieces of work that were begun.
    pub fn done(&self) -> u64 {
        self.done.load(SeqCst)
    }

    /// Whether a piece of work was held back.
    pub fn stopped(&self) -> bool {
        self.left.load(SeqCst) == 0 && self.done.load(SeqCst) == u64::MAX
    }
}

impl Spawn for Threads {
    fn worker(&self, name: String, _: Box<dyn Worker>) -> io::Result<()> {
        Err(io::Error::other(format!("nobody asked for {name}")))
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let take = |left: u64| left.checked_sub(1);
        if self.left.fetch_update(SeqCst, SeqCst, take).is_err() {
            // The process was killed here: nothing of the work happens, also no cleaning up.
            std::mem::forget(work);
            self.done.store(u64::MAX, SeqCst);
            return Ok(());
        }
        self.done.fetch_add(1, SeqCst);
        SystemSpawner.blocking(work)
    }
}

/// An environment of the given parts, names in order.
pub fn env(clock: &TestClock, threads: &Arc<Threads>, budget: &Arc<MemoryBudget>) -> Env {
    Env {
        clock: Arc::new(clock.clone()),
        spawner: threads.clone(),
        random: Arc::new(Counted::default()),
        budget: Arc::clone(budget),
    }
}
