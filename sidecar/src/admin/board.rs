//! The state that `/status.json` and `/healthz` show. Written by the task runners of `serve`,
//! read by the HTTP server; nothing decides anything by reading it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_cluster::tls::Standing;
use pitr_coordinator::CoordinatorStatus;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::members::StoreStatus;
use crate::time;

/// Where a task stands on this store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TaskState {
    /// Its storage is being opened and its regions registered.
    Loading,
    /// Changes are tailed and flushed.
    Running,
    /// The pause key exists: nothing is tailed.
    Paused,
    /// The archive reaches the end that the task was started with: nothing is tailed any more.
    Finished,
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

impl TaskState {
    /// As metrics call it.
    pub fn name(&self) -> &'static str {
        match self {
            TaskState::Loading => "loading",
            TaskState::Running => "running",
            TaskState::Paused => "paused",
            TaskState::Finished => "finished",
            TaskState::Failing { .. } => "failing",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskState::Failing {
                reason,
                since,
                attempts,
                ..
            } => write!(f, "failing since {since} ({attempts} times): {reason}"),
            state => f.write_str(state.name()),
        }
    }
}

/// What keeps a checkpoint from moving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldBy {
    /// The store that leads it, if it is known.
    #[serde(default)]
    pub store_id: Option<u64>,
    /// The region there, if it is known.
    pub region_id: Option<u64>,
    /// The first range that has got no further, hex.
    pub range: String,
    /// How far it has got.
    pub ts: time::Shown,
    /// Why, as far as known.
    pub reason: String,
    /// The lock that holds it, if it is one.
    #[serde(default)]
    pub lock: Option<HoldingLock>,
}

/// A lock of a transaction that is alive and holds a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldingLock {
    /// Raw key, hex.
    pub key: String,
    /// Raw key of the transaction's primary, hex.
    pub primary: String,
    /// The transaction.
    pub start_ts: u64,
    /// How long ago it began when it was looked.
    pub age_seconds: u64,
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.store_id {
            write!(f, "store {id}, ")?;
        }
        if let Some(id) = self.region_id {
            write!(f, "region {id}, ")?;
        }
        write!(f, "{} since {}: {}", self.range, self.ts, self.reason)
    }
}

/// One task on this store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Bytes that may be in memory.
    pub memory_budget_bytes: u64,
    /// Records a second, over the last seconds.
    pub events_per_second: f64,
    /// End of the last flush that became durable (RFC 3339, UTC).
    pub last_flush: Option<String>,
    /// What holds the checkpoint, when it lags more than flushing explains.
    pub held_by: Option<HeldBy>,
    /// The change stream and its regions, once they are followed.
    pub tracking: Option<RegionStatus>,
}

/// Regions of a task on this store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegionStatus {
    /// Stores whose regions are followed here: the own one, and those whose sidecars are gone.
    #[serde(default)]
    pub stores: Vec<u64>,
    /// Number of regions by state: `scanning`, `verifying` (scan complete, GC is being checked),
    /// `live`, `waiting` (for a scan), `failing` (within the last minutes) and `lost` (to GC).
    pub regions: BTreeMap<String, u64>,
    /// Ends of subscriptions in this session, by kind.
    pub ended: BTreeMap<String, u64>,
    /// Why the last one ended.
    pub last_end: Option<String>,
    /// What the stream holds.
    pub stream: StreamStatus,
}

/// Bytes of changes that are not with the observer yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamStatus {
    /// Waiting in memory.
    pub queued_bytes: u64,
    /// Waiting on disk.
    pub queued_disk_bytes: u64,
    /// Rows of unfinished transactions, in memory or on disk.
    pub unfinished_bytes: u64,
    /// Memory that these take.
    pub unfinished_memory_bytes: u64,
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
            memory_budget_bytes: 0,
            events_per_second: 0.0,
            last_flush: None,
            held_by: None,
            tracking: None,
        }
    }
}

/// The whole page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SidecarStatus {
    /// Version of the binary.
    pub version: String,
    /// The cluster, once PD answered.
    pub cluster_id: Option<u64>,
    /// The store that is tailed, once PD named it.
    pub store_id: Option<u64>,
    /// Id of this process, made anew at each start; it stands in the store's key in PD's etcd.
    #[serde(default)]
    pub daemon: String,
    /// What start-up or the task list waits for; empty when all is well.
    pub waiting_for: String,
    /// Tasks by name; a list in JSON.
    #[serde(with = "as_list")]
    #[schemars(with = "Vec<TaskStatus>")]
    pub tasks: BTreeMap<String, TaskStatus>,
    /// Who coordinates the checkpoints; null where the sidecar does not stand for election.
    #[serde(default)]
    pub coordinator: Option<CoordinatorStatus>,
    /// Every store of the cluster and its sidecar, as last read from PD.
    #[serde(default)]
    pub stores: Vec<StoreStatus>,
    /// Our certificate; null without TLS.
    #[serde(default)]
    pub certificate: Option<CertificateStatus>,
}

/// How the certificate stands that this process shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateStatus {
    /// When it ends (RFC 3339, UTC).
    pub ends_at: String,
    /// How often changed files were taken since the start.
    pub reloads: u64,
    /// Why the files that are there now are not used; empty when they are.
    pub problem: String,
}

impl From<Standing> for CertificateStatus {
    fn from(standing: Standing) -> Self {
        CertificateStatus {
            ends_at: time::utc_second(standing.not_after),
            reloads: standing.reloads,
            problem: standing.complaint.unwrap_or_default(),
        }
    }
}

mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::TaskStatus;

    pub fn serialize<S: Serializer>(
        tasks: &BTreeMap<String, TaskStatus>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(tasks.values())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, TaskStatus>, D::Error> {
        let tasks = Vec::<TaskStatus>::deserialize(deserializer)?;
        Ok(tasks
            .into_iter()
            .map(|task| (task.name.clone(), task))
            .collect())
    }
}

/// Shared by the runners and the server.
#[derive(Debug)]
pub struct Board {
    page: Mutex<SidecarStatus>,
    /// Lag above which the sidecar is not healthy.
    lag_limit: Duration,
}

impl Board {
    /// An empty board of this version.
    pub fn new(lag_limit: Duration) -> Self {
        let page = SidecarStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            waiting_for: "PD".to_owned(),
            ..SidecarStatus::default()
        };
        Board {
            page: Mutex::new(page),
            lag_limit,
        }
    }

    /// Whether everything that should run does and keeps up; the text says what does not.
    pub fn health(&self) -> Result<(), String> {
        self.page.lock().health(self.lag_limit)
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> SidecarStatus {
        self.page.lock().clone()
    }

    /// Changes the page.
    pub fn update(&self, change: impl FnOnce(&mut SidecarStatus)) {
        change(&mut self.page.lock());
    }

    /// Changes one task, if it is on the board.
    pub fn task(&self, name: &str, change: impl FnOnce(&mut TaskStatus)) {
        if let Some(task) = self.page.lock().tasks.get_mut(name) {
            change(task);
        }
    }

    /// Puts a task on the board, or a new state on the one that is there.
    pub fn set_state(&self, name: &str, start_ts: u64, state: TaskState) {
        let mut page = self.page.lock();
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

    /// Why a task fails, if it does.
    pub fn failing(&self, name: &str) -> Option<String> {
        match &self.page.lock().tasks.get(name)?.state {
            TaskState::Failing { reason, .. } => Some(reason.clone()),
            _ => None,
        }
    }

    /// Takes a task off.
    pub fn remove(&self, name: &str) {
        self.page.lock().tasks.remove(name);
    }
}

impl SidecarStatus {
    /// Whether it can do its work: PD is known and every task is loaded or told why it is not.
    pub fn readiness(&self) -> Result<(), String> {
        if !self.waiting_for.is_empty() {
            return Err(format!("waiting for {}", self.waiting_for));
        }
        let mut loading = self
            .tasks
            .values()
            .filter(|task| task.state == TaskState::Loading);
        match loading.next() {
            Some(task) => Err(format!("task {} is being loaded", task.name)),
            None => Ok(()),
        }
    }

    fn health(&self, lag_limit: Duration) -> Result<(), String> {
        if !self.waiting_for.is_empty() {
            return Err(format!("waiting for {}", self.waiting_for));
        }
        let wrong: Vec<String> = self
            .tasks
            .values()
            .filter_map(|task| Some(format!("{}: {}", task.name, task.wrong(lag_limit)?)))
            .collect();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(wrong.join("; ")),
        }
    }
}

impl TaskStatus {
    /// What is wrong with a task that should run.
    fn wrong(&self, lag_limit: Duration) -> Option<String> {
        let lag = self.lag_seconds.unwrap_or_default();
        match &self.state {
            TaskState::Failing { reason, .. } => Some(reason.clone()),
            TaskState::Running if lag > lag_limit.as_secs_f64() => {
                let held = self
                    .held_by
                    .as_ref()
                    .map(|held| format!("; held by {held}"));
                Some(format!(
                    "lags by {lag:.0} s, the limit is {}{}",
                    humantime::format_duration(lag_limit),
                    held.unwrap_or_default()
                ))
            }
            TaskState::Running | TaskState::Loading | TaskState::Paused | TaskState::Finished => {
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    #[test]
    fn attempts_count_up_while_a_task_keeps_failing_and_begin_anew_after_it_ran() {
        let board = Board::new(LIMIT);
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
        let board = Board::new(LIMIT);
        assert_eq!(board.health(), Err("waiting for PD".to_owned()));
        board.update(|page| page.waiting_for.clear());
        board.set_state("t", 7, TaskState::Paused);
        assert_eq!(board.health(), Ok(()));
        board.set_failing("t", "disk full", false);
        assert_eq!(board.health(), Err("t: disk full".to_owned()));
    }

    #[test]
    fn lag_over_the_limit_is_not_healthy_and_what_holds_it_is_named() {
        let board = Board::new(LIMIT);
        board.update(|page| page.waiting_for.clear());
        board.set_state("t", 7, TaskState::Running);
        board.task("t", |task| {
            task.lag_seconds = Some(601.0);
            task.held_by = Some(HeldBy {
                store_id: None,
                lock: None,
                region_id: Some(44),
                range: "[61, 62)".to_owned(),
                ts: time::show(7.into()),
                reason: "a lock".to_owned(),
            });
        });
        let why = board.health().unwrap_err();
        assert!(
            why.contains("601 s") && why.contains("region 44") && why.contains("a lock"),
            "{why}"
        );
        board.task("t", |task| task.lag_seconds = Some(600.0));
        assert_eq!(board.health(), Ok(()));
        board.task("t", |task| task.lag_seconds = Some(1e6));
        board.set_state("t", 7, TaskState::Paused);
        assert_eq!(board.health(), Ok(()), "a pause is wanted");
    }

    #[test]
    fn a_sidecar_is_ready_once_pd_is_known_and_its_tasks_are_loaded() {
        let board = Board::new(LIMIT);
        assert_eq!(
            board.snapshot().readiness(),
            Err("waiting for PD".to_owned())
        );
        board.update(|page| page.waiting_for.clear());
        assert_eq!(board.snapshot().readiness(), Ok(()));
        board.set_state("t", 7, TaskState::Loading);
        assert!(board.snapshot().readiness().unwrap_err().contains("task t"));
        board.set_failing("t", "storage is away", false);
        assert_eq!(
            board.snapshot().readiness(),
            Ok(()),
            "it is told, not waited for"
        );
    }

    #[test]
    fn the_page_is_read_back_as_it_was_written() {
        let board = Board::new(LIMIT);
        board.set_state("t", 7, TaskState::Running);
        board.set_failing("t", "disk full", true);
        let text = serde_json::to_string(&board.snapshot()).unwrap();
        let read: SidecarStatus = serde_json::from_str(&text).unwrap();
        assert_eq!(read, board.snapshot());
    }

    #[test]
    fn a_task_is_one_flat_object_in_json() {
        let board = Board::new(LIMIT);
        board.set_state("t", 7, TaskState::Running);
        board.task("t", |task| {
            task.tracking = Some(RegionStatus {
                ended: [("overrun".to_owned(), 2)].into(),
                ..RegionStatus::default()
            });
        });
        let json = serde_json::to_value(board.snapshot()).unwrap();
        assert_eq!(json["tasks"][0]["state"], "running");
        assert_eq!(json["tasks"][0]["start_ts"], 7);
        assert_eq!(json["tasks"][0]["tracking"]["ended"]["overrun"], 2);
    }
}
