//! What the embedder supplies: clock, threads, randomness and memory.
//!
//! Everything that a restore, a check and the import service need from their process comes in
//! through [`Env`]; the library calls no clock, starts no thread and draws no random number
//! elsewhere.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use pitr_budget::MemoryBudget;
use pitr_env::{Clock, Random, Spawn, SystemClock, SystemRandom, SystemSpawner, unblock};

/// Budget of [`Env::default`].
pub const DEFAULT_MEMORY: u64 = 512 << 20;

/// The environment of an archive, a restore, a check or an import service; clones share it.
#[derive(Clone)]
pub struct Env {
    /// For waits between attempts, limits of speed and what is given up when it grows old.
    pub clock: Arc<dyn Clock>,
    /// Runs what takes the processor or a disk for a while.
    pub spawner: Arc<dyn Spawn>,
    /// Names of files.
    pub random: Arc<dyn Random>,
    /// What metas, sort runs, requests in flight and cached slices reserve from.
    pub budget: Arc<MemoryBudget>,
}

impl Env {
    /// Clock and randomness of the operating system; blocking work goes to the tokio runtime that
    /// polls the library's futures.
    pub fn system(budget: Arc<MemoryBudget>) -> Self {
        Env {
            clock: Arc::new(SystemClock::new()),
            spawner: Arc::new(SystemSpawner),
            random: Arc::new(SystemRandom),
            budget,
        }
    }

    /// Runs blocking `work` and waits for its result.
    pub(crate) async fn unblock<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        unblock(self.spawner.as_ref(), work).await
    }
}

impl Default for Env {
    /// The operating system's, with a budget of its own of [`DEFAULT_MEMORY`].
    fn default() -> Self {
        Env::system(MemoryBudget::new(DEFAULT_MEMORY))
    }
}

/// What `work` gives within `time`, else `None`.
pub(crate) async fn within<T>(
    clock: &dyn Clock,
    time: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    match select(std::pin::pin!(work), clock.sleep(time)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_takes_too_long_is_given_up_and_what_is_there_counts_even_without_time() {
        let clock = SystemClock::new();
        let never = std::future::pending::<()>();
        assert_eq!(within(&clock, Duration::from_millis(5), never).await, None);
        let there = std::future::ready(7);
        assert_eq!(within(&clock, Duration::ZERO, there).await, Some(7));
    }
}
