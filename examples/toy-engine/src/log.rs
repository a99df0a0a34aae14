//! The toy's replicated log: commands in one order, applied by every replica before anybody hears
//! that they are accepted. No elections and no network: what matters here is the order.

use std::sync::Arc;

use parking_lot::RwLock;
use pitr_restore_worker::engine::EngineOp;
use tokio::sync::Mutex;

use crate::replica::Replica;

/// Hears every command behind its apply, in log order. It may wait: then the log waits.
#[async_trait::async_trait]
pub trait ApplyObserver: Send + Sync {
    /// The changes of one command.
    async fn applied(&self, ops: &[EngineOp]);
}

/// The log with its replicas.
pub struct ReplicatedLog {
    replicas: Vec<Arc<Replica>>,
    /// Held while a command is applied everywhere: whoever holds it sees a moment between two
    /// commands. The value is the index of the last one.
    applied: Mutex<u64>,
    observer: RwLock<Option<Arc<dyn ApplyObserver>>>,
}

impl ReplicatedLog {
    /// A log with `replicas` empty replicas.
    pub fn new(replicas: usize) -> Arc<Self> {
        Arc::new(ReplicatedLog {
            replicas: (0..replicas.max(1)).map(|_| Arc::default()).collect(),
            applied: Mutex::new(0),
            observer: RwLock::new(None),
        })
    }

    /// Appends a command; returns its index once every replica has applied it.
    pub async fn propose(&self, ops: &[EngineOp]) -> u64 {
        let mut applied = self.applied.lock().await;
        for replica in &self.replicas {
            replica.apply(ops);
        }
        *applied += 1;
        let observer = self.observer.read().clone();
        if let Some(observer) = observer {
            observer.applied(ops).await;
        }
        *applied
    }

    /// Runs `join` between two commands, with a replica as it is there, and installs the observer
    /// that it returns: that one hears of every command that the replica does not show yet.
    pub async fn observe<O: ApplyObserver + 'static>(
        &self,
        join: impl FnOnce(&Replica) -> Arc<O>,
    ) -> Arc<O> {
        let _between = self.applied.lock().await;
        let observer = join(&self.replicas[0]);
        *self.observer.write() = Some(observer.clone());
        observer
    }

    /// Runs `look` between two commands.
    pub async fn between<T>(&self, look: impl FnOnce() -> T) -> T {
        let _between = self.applied.lock().await;
        look()
    }

    /// The replicas.
    pub fn replicas(&self) -> &[Arc<Replica>] {
        &self.replicas
    }
}
