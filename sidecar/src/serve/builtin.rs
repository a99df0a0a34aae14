//! A daemon beside no store: every TiKV runs its own log backup, and this process only coordinates.
//!
//! Nothing is tailed and nothing written into archives here. The coordinator asks the stores' own
//! service, resolves the locks that hold them back, raises the checkpoint that the stores then
//! write, and keeps GC behind it. This module shows how the tasks stand, and notices when GC has
//! passed a checkpoint all the same: then history may be missing, and the task is declared broken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::tasks::{Task, TaskError, TaskEvent};
use pitr_cluster::tls::Security;
use pitr_format::Ts;
use pitr_observer::TaskStatus as MetricStatus;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::coordination::Coordination;
use super::{gap, stopped};
use crate::admin::{Board, Metrics, TaskState};
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::config::Config;
use crate::failure::Failure;
use crate::{storage, time};

/// How often the checkpoints are read.
const LOOK: Duration = Duration::from_secs(2);
/// Stands for "no store" where a store id is asked for.
const NO_STORE: u64 = 0;

/// Coordinates until `stop` turns true.
pub(super) async fn serve(
    config: &Config,
    security: &Security,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Failure> {
    let cluster = tokio::select! {
        connected = Cluster::connect(&config.pd_endpoints, security) => connected?,
        () = stopped(stop) => return Ok(()),
    };
    let daemon = uuid::Uuid::new_v4().to_string();
    board.update(|page| {
        page.cluster_id = Some(cluster.pd.cluster_id());
        page.daemon.clone_from(&daemon);
        page.waiting_for.clear();
    });
    let cluster_id = cluster.pd.cluster_id();
    tracing::info!(cluster = cluster_id, "coordinating TiKV's own log backup");
    let coordination =
        Coordination::start(config, &cluster, &daemon, board.clone(), metrics.clone());
    let desk = Desk {
        cluster,
        board,
        metrics,
    };
    let ended = desk.follow(stop).await;
    coordination.leave().await;
    ended
}

/// What every watcher needs.
#[derive(Clone)]
struct Desk {
    cluster: Cluster,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

/// A task that is watched.
struct Watched(JoinHandle<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Desk {
    async fn follow(self, stop: &mut watch::Receiver<bool>) -> Result<(), Failure> {
        let mut events = self.cluster.tasks.events();
        let mut watched = BTreeMap::new();
        loop {
            let event = tokio::select! {
                () = stopped(stop) => return Ok(()),
                event = events.recv() => event,
            };
            let Some(event) = event else {
                let what = "the follower of the task registry ended";
                return Err(Failure::new(Code::Internal, what));
            };
            match event {
                TaskEvent::Added(task) => {
                    let name = task.name.clone();
                    self.show(&task);
                    let watcher = tokio::spawn(self.clone().watch(task));
                    watched.insert(name, Watched(watcher));
                }
                TaskEvent::Removed(name) => {
                    watched.remove(&name);
                    self.board.remove(&name);
                    self.metrics.forget_task(&name);
                    tracing::info!(task = name, "the task is gone");
                }
                TaskEvent::Paused(name) => self.set_state(&name, 0, TaskState::Paused),
                TaskEvent::Resumed(task) => self.show(&task),
                TaskEvent::Disconnected(error) => {
                    tracing::warn!(error, "the task registry cannot be read");
                }
            }
        }
    }

    fn show(&self, task: &Task) {
        let state = match task.paused {
            true => TaskState::Paused,
            false => TaskState::Running,
        };
        self.set_state(&task.name, task.info.start_ts, state);
        self.board.task(&task.name, |status| {
            status.storage = storage::uri_of_task(&task.info);
        });
    }

    fn set_state(&self, task: &str, start_ts: u64, state: TaskState) {
        let metric = match state {
            TaskState::Paused => MetricStatus::Paused,
            _ => MetricStatus::Running,
        };
        self.board.set_state(task, start_ts, state);
        self.metrics.observer.set_task_status(task, metric);
    }

    /// Shows a task until it is gone.
    async fn watch(self, task: Task) {
        let mut broken = false;
        loop {
            match self.look(&task).await {
                Ok(Some(reason)) if !broken => {
                    broken = true;
                    gap::declare(
                        &self.cluster,
                        &self.board,
                        &self.metrics,
                        &task.name,
                        NO_STORE,
                        &reason,
                    )
                    .await;
                }
                Ok(_) => {}
                Err(failure) => {
                    tracing::debug!(
                        task = task.name,
                        reason = failure.one_line(),
                        "PD does not answer"
                    );
                }
            }
            sleep(LOOK).await;
        }
    }

    /// How the task stands; why it is broken, if it is.
    async fn look(&self, task: &Task) -> Result<Option<String>, Failure> {
        let tasks = &self.cluster.tasks;
        let refused = |error: TaskError| Failure::from(error);
        let start = Ts::new(task.info.start_ts);
        let archives = tasks
            .storage_checkpoints(&task.name)
            .await
            .map_err(refused)?;
        let archive = archives.into_iter().map(|(_, ts)| ts).max();
        let global = tasks.global_checkpoint(&task.name).await.map_err(refused)?;
        let global = global.unwrap_or(start).max(start);
        let now = self.cluster.now().await?;
        let safe_point = self.cluster.pd.gc_safe_point().await?;
        let reached = archive.unwrap_or(start).max(start);
        self.metrics.observer.set_lag(&task.name, now, reached);
        self.metrics.show_gc_margin(&task.name, global, safe_point);
        self.board.task(&task.name, |status| {
            status.checkpoint = archive.map(time::show);
            status.lag_seconds = Some(time::lag(now, reached).as_secs_f64());
            status.gc_safe_point = Some(safe_point.get());
        });
        Ok((safe_point > global).then(|| gap::reason(global, safe_point)))
    }
}
