//! The state that `/status.json` and `/healthz` show. Written by the task runners of `serve`,
//! read by the HTTP server; nothing decides anything by reading it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::time;

/// Where a task stands on this store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TaskState {
    /// Its storage is being opened and its regions registered.
    Loading,
    /// Changes are tailed and flushed.
    Running,
    /// The pause key exists: nothing is tailed.
    Paused,
    /// Something is wrong; it is tried again unless `gap` is set.
    Failing {
        /// What, where and what to do.
        reason: String,
        /// Since when (RFC 3339, UTC).
        since: String,
        /// Failed attempts in a row.
        attempts: u64,
        /// History that this task needs was removed by GC: only a new full copy helps.
        gap: bool,
    },
}

/// One task on this store.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct TaskStatus {
    /// Name of the task.
    pub name: String,
    /// Where it stands.
    #[serde(flatten)]
    pub state: TaskState,
    /// Its storage, without credentials.
    pub storage: String,
    /// Begin of its log.
    pub start_ts: u64,
    /// Restorable up to here (the value of this store's `.ts` object), if any was published.
    pub checkpoint: Option<time::Shown>,
    /// PD's time at the last flush minus the checkpoint.
    pub lag_seconds: Option<f64>,
    /// Effective GC safepoint when it was last read.
    pub gc_safe_point: Option<u64>,
    /// Records taken over from the store since the sidecar started.
    pub events: u64,
    /// Bytes of log made durable since the sidecar started.
    pub bytes: u64,
    /// Flushes that became durable since the sidecar started.
    pub flushes: u64,
    /// Bytes in memory, not yet flushed.
    pub buffered_bytes: u64,
}

impl TaskStatus {
    /// A task that has just been seen.
    pub fn new(name: &str, start_ts: u64, state: TaskState) -> Self {
        TaskStatus {
            name: name.to_owned(),
            state,
            storage: String::new(),
            start_ts,
            checkpoint: None,
            lag_seconds: None,
            gc_safe_point: None,
            events: 0,
            bytes: 0,
            flushes: 0,
            buffered_bytes: 0,
        }
    }
}

/// The whole page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct SidecarStatus {
    /// Version of the binary.
    pub version: String,
    /// The cluster, once PD answered.
    pub cluster_id: Option<u64>,
    /// The store that is tailed, once PD named it.
    pub store_id: Option<u64>,
    /// What start-up or the task list waits for; empty when all is well.
    pub waiting_for: String,
    /// Tasks by name; a list in JSON.
    #[serde(serialize_with = "as_list")]
    #[schemars(with = "Vec<TaskStatus>")]
    pub tasks: BTreeMap<String, TaskStatus>,
}

fn as_list<S: Serializer>(
    tasks: &BTreeMap<String, TaskStatus>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tasks.values())
}

/// Shared by the runners and the server.
#[derive(Debug, Default)]
pub struct Board(Mutex<SidecarStatus>);

impl Board {
    /// An empty board of this version.
    pub fn new() -> Self {
        Board(Mutex::new(SidecarStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            waiting_for: "PD".to_owned(),
            ..SidecarStatus::default()
        }))
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> SidecarStatus {
        self.0.lock().clone()
    }

    /// Changes the page.
    pub fn update(&self, change: impl FnOnce(&mut SidecarStatus)) {
        change(&mut self.0.lock());
    }

    /// Changes one task, if it is on the board.
    pub fn task(&self, name: &str, change: impl FnOnce(&mut TaskStatus)) {
        if let Some(task) = self.0.lock().tasks.get_mut(name) {
            change(task);
        }
    }

    /// Puts a task on the board, or a new state on the one that is there.
    pub fn set_state(&self, name: &str, start_ts: u64, state: TaskState) {
        let mut page = self.0.lock();
        match page.tasks.get_mut(name) {
            Some(task) => task.state = state,
            None => {
                let task = TaskStatus::new(name, start_ts, state);
                page.tasks.insert(name.to_owned(), task);
            }
        }
    }

    /// Notes a failure: attempts count up while it keeps failing, and since when stays.
    pub fn set_failing(&self, name: &str, reason: &str, gap: bool) {
        self.task(name, |task| {
            let (since, attempts) = match &task.state {
                TaskState::Failing {
                    since, attempts, ..
                } => (since.clone(), attempts + 1),
                _ => (time::show(time::local_now()).utc, 1),
            };
            task.state = TaskState::Failing {
                reason: reason.to_owned(),
                since,
                attempts,
                gap,
            };
        });
    }

    /// Takes a task off.
    pub fn remove(&self, name: &str) {
        self.0.lock().tasks.remove(name);
    }
}

impl SidecarStatus {
    /// Whether everything that should run does; the text says what does not.
    pub fn health(&self) -> Result<(), String> {
        if !self.waiting_for.is_empty() {
            return Err(format!("waiting for {}", self.waiting_for));
        }
        let failing: Vec<String> = self
            .tasks
            .values()
            .filter_map(|task| match &task.state {
                TaskState::Failing { reason, .. } => Some(format!("{}: {reason}", task.name)),
                _ => None,
            })
            .collect();
        if failing.is_empty() {
            Ok(())
        } else {
            Err(failing.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_count_up_while_a_task_keeps_failing_and_begin_anew_after_it_ran() {
        let board = Board::new();
        board.set_state("t", 7, TaskState::Loading);
        let attempts = |board: &Board| match board.snapshot().tasks["t"].state {
            TaskState::Failing { attempts, .. } => attempts,
            _ => 0,
        };
        board.set_failing("t", "storage is away", false);
        board.set_failing("t", "storage is away", false);
        assert_eq!(attempts(&board), 2);
        board.set_state("t", 7, TaskState::Running);
        board.set_failing("t", "storage is away", false);
        assert_eq!(attempts(&board), 1);
    }

    #[test]
    fn health_names_what_is_wrong() {
        let board = Board::new();
        assert_eq!(board.snapshot().health(), Err("waiting for PD".to_owned()));
        board.update(|page| page.waiting_for.clear());
        board.set_state("t", 7, TaskState::Paused);
        assert_eq!(board.snapshot().health(), Ok(()));
        board.set_failing("t", "disk full", false);
        assert_eq!(board.snapshot().health(), Err("t: disk full".to_owned()));
    }

    #[test]
    fn a_task_is_one_flat_object_in_json() {
        let board = Board::new();
        board.set_state("t", 7, TaskState::Running);
        let json = serde_json::to_value(board.snapshot()).unwrap();
        assert_eq!(json["tasks"][0]["state"], "running");
        assert_eq!(json["tasks"][0]["start_ts"], 7);
    }
}
