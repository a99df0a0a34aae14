//! One worker a path: whoever comes second waits, or goes another way.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

#[derive(Default)]
pub(super) struct Turns {
    locks: Arc<Mutex<HashMap<PathBuf, Lock>>>,
}

/// The turn; ends on drop.
#[derive(Debug)]
pub(super) struct Turn {
    path: PathBuf,
    locks: Arc<Mutex<HashMap<PathBuf, Lock>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn.
    pub(super) async fn wait(&self, path: &Path) -> Turn {
        let lock = self.lock_of(path);
        let guard = lock.lock_owned().await;
        self.turn(path, guard)
    }

    /// The turn, if nobody has it.
    pub(super) fn try_now(&self, path: &Path) -> Option<Turn> {
        let guard = self.lock_of(path).try_lock_owned().ok()?;
        Some(self.turn(path, guard))
    }

    fn lock_of(&self, path: &Path) -> Lock {
        Arc::clone(self.locks.lock().entry(path.to_owned()).or_default())
    }

    fn turn(&self, path: &Path, guard: OwnedMutexGuard<()>) -> Turn {
        Turn {
            path: path.to_owned(),
            locks: Arc::clone(&self.locks),
            guard: Some(guard),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut locks = self.locks.lock();
        self.guard = None;
        // Only the map still knows it: nobody waits.
        if locks
            .get(&self.path)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            locks.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_has_one_worker_at_a_time_and_leaves_nothing_behind() {
        let turns = Arc::new(Turns::default());
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        let first = turns.wait(a).await;
        assert!(turns.try_now(a).is_none());
        drop(turns.try_now(b).unwrap());
        let waiting = {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { drop(turns.wait(Path::new("/a")).await) })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
        assert!(turns.locks.lock().is_empty());
    }
}
