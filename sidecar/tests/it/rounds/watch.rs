//! Watches what is published while things go wrong: the storage checkpoint in PD (what `log status`
//! tells) may never be ahead of the archive's `.ts`, nor that ahead of PD's global checkpoint, and
//! neither ever falls.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::tasks::TaskRegistry;
use pitr_format::object_name;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::TASK;
use super::archive::Archive;
use super::source::Source;

/// A running watch.
pub struct Watch {
    reported: Arc<AtomicU64>,
    steps: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts it.
    pub fn start(source: &Source, archive: &Archive) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (reported, steps) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let look = Look {
            tasks: TaskRegistry::new(EtcdClient::new(&[source.pd()]).unwrap()),
            file: archive.file(&object_name::checkpoint_path(1)),
            reported: reported.clone(),
            steps: steps.clone(),
            object: 0,
        };
        Watch {
            reported,
            steps,
            stop,
            task: tokio::spawn(look.run(stopped)),
        }
    }

    /// The largest checkpoint that PD has reported so far.
    pub fn reported(&self) -> u64 {
        self.reported.load(Ordering::SeqCst)
    }

    /// How often the archive's `.ts` was seen to move.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    /// Ends it; fails if a rule was broken at any time.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.await.unwrap();
    }
}

struct Look {
    tasks: TaskRegistry,
    file: PathBuf,
    reported: Arc<AtomicU64>,
    steps: Arc<AtomicU64>,
    object: u64,
}

impl Look {
    async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            self.look().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reads in the order that proves: what is read later may only be larger.
    async fn look(&mut self) {
        let Ok(storage) = self.tasks.storage_checkpoints(TASK).await else {
            return;
        };
        let storage = storage.iter().map(|(_, ts)| ts.get()).max().unwrap_or(0);
        let before = self.reported.fetch_max(storage, Ordering::SeqCst);
        assert!(
            before <= storage,
            "the storage checkpoint fell from {before} to {storage}"
        );
        let object = match std::fs::read(&self.file) {
            Ok(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
            Err(_) => 0,
        };
        assert!(
            object >= self.object,
            "the .ts fell from {} to {object}",
            self.object
        );
        assert!(
            object >= storage,
            "PD reports {storage}, the .ts says {object}"
        );
        if object > self.object {
            self.steps.fetch_add(1, Ordering::SeqCst);
        }
        self.object = object;
        let Ok(global) = self.tasks.global_checkpoint(TASK).await else {
            return;
        };
        let global = global.map_or(0, |ts| ts.get());
        assert!(
            global >= object,
            "the .ts says {object}, PD's global is {global}"
        );
    }
}
