//! `log status`: the tasks and how far their logs reach. The JSON members are those of
//! `br log status --json` (pingcap/tidb `br/pkg/stream/stream_status.go`) and some of ours.

use std::fmt;
use std::time::Duration;

use pitr_cluster::tasks::Task;
use pitr_format::Ts;
use schemars::JsonSchema;
use serde::Serialize;

use super::Outcome;
use super::args::{OutputArgs, PdArgs};
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::members::{self, StoreStatus, TaskOnStore};
use crate::pause::Pause;
use crate::serve::GAP_CODE;
use crate::{ranges, storage, time};

/// Arguments of `log status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    /// Only this task.
    #[arg(long, value_name = "NAME")]
    task_name: Option<String>,
    /// End with code 21 when a task lags by more than this.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_lag: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The tasks of a cluster and how far their logs reach.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    cluster_id: u64,
    now: u64,
    gc_safe_point: u64,
    tasks: Vec<TaskReport>,
}

/// One task.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TaskReport {
    /// Its name.
    pub name: String,
    /// Begin of its log.
    pub start_ts: u64,
    /// BR's "no end"; never enforced.
    end_ts: u64,
    /// `NORMAL`, `PAUSE` or `ERROR`.
    pub status: &'static str,
    /// For display only: the ranges decide.
    table_filter: Vec<String>,
    /// Its key ranges, hex.
    ranges: Vec<String>,
    /// The parts of them in which the change stream proves nothing (keys that begin with `r`), hex. TiKV's own
    /// log backup has them.
    pub unproven_ranges: Vec<String>,
    /// What each store has published.
    progress: Vec<StoreProgress>,
    /// Where it stands on each store, as the sidecars say.
    pub stores: Vec<TaskOnStore>,
    /// Its storage, without credentials.
    pub storage: String,
    /// BR's `checkpoint[global]`: what the archive can be restored to.
    pub checkpoint: u64,
    /// The same in all forms.
    pub checkpoint_time: time::Shown,
    /// The checkpoint in PD; the archive's follows it.
    central_global: Option<u64>,
    /// PD's time minus the checkpoint.
    pub lag_seconds: f64,
    /// What stores reported.
    pub last_errors: Vec<StoreError>,
    /// Who paused the task, when and why; null when it is not paused.
    pub extra_pause_information: Option<Pause>,
}

impl TaskReport {
    /// A line about what the log may lack.
    pub fn note_of_unproven(&self) -> Option<String> {
        (!self.unproven_ranges.is_empty()).then(|| {
            format!(
                "note: not proven in {} where sidecars tail: TiKV's change stream loses changes of keys that begin with `r`",
                self.unproven_ranges.join(" ")
            )
        })
    }
}

/// What a store has published.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StoreProgress {
    store_id: u64,
    checkpoint: u64,
}

/// The last error of a store.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StoreError {
    store_id: u64,
    last_error: LastError,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LastError {
            error_code,
            error_message,
            ..
        } = &self.last_error;
        write!(f, "[store={}]: {error_code} {error_message}", self.store_id)
    }
}

/// An error as it stands in PD.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LastError {
    happen_at: u64,
    error_code: String,
    error_message: String,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let cluster = args.pd.connect().await?;
    let stores = members::stores(&cluster).await?;
    let tasks = tasks(&cluster, &stores, args.task_name.as_deref()).await?;
    let report = Report {
        cluster_id: cluster.pd.cluster_id(),
        now: cluster.now().await?.get(),
        gc_safe_point: cluster.pd.gc_safe_point().await?.get(),
        tasks,
    };
    args.output.show(&report, || text(&report))?;
    judge(&report.tasks, args.max_lag)
}

/// The tasks as they stand in PD, all or the one that is named.
pub(super) async fn tasks(
    cluster: &Cluster,
    stores: &[StoreStatus],
    wanted: Option<&str>,
) -> Result<Vec<TaskReport>, Failure> {
    let (tasks, _) = cluster.tasks.list().await?;
    let now = cluster.now().await?;
    let mut found = Vec::new();
    for task in &tasks {
        if wanted.is_none_or(|name| name == task.name) {
            let stores = stores.iter().map(|store| store.task(&task.name));
            found.push(describe(cluster, task, stores.collect(), now).await?);
        }
    }
    match wanted {
        Some(name) if found.is_empty() => Err(Failure::new(
            Code::TaskNotFound,
            format!("task {name:?} is not registered"),
        )),
        _ => Ok(found),
    }
}

/// The exit code of what was found.
pub(super) fn judge(tasks: &[TaskReport], max_lag: Option<Duration>) -> Outcome {
    for task in tasks {
        let gap = task
            .last_errors
            .iter()
            .find(|error| error.last_error.error_code == GAP_CODE);
        if let Some(error) = gap {
            let what = &error.last_error.error_message;
            return Err(Failure::new(Code::HistoryGone, what)
                .at(format!("task {}, store {}", task.name, error.store_id))
                .effect(format!(
                    "the archive can be restored up to {} only",
                    task.checkpoint
                )));
        }
        if let Some(limit) = max_lag
            && task.lag_seconds > limit.as_secs_f64()
        {
            let what = format!(
                "task {} lags by {:.1} s, the limit is {}",
                task.name,
                task.lag_seconds,
                humantime::format_duration(limit)
            );
            return Err(Failure::new(Code::LagOverLimit, what));
        }
    }
    Ok(Exit::Ok)
}

async fn describe(
    cluster: &Cluster,
    task: &Task,
    stores: Vec<TaskOnStore>,
    now: Ts,
) -> Result<TaskReport, Failure> {
    let progress = cluster.tasks.storage_checkpoints(&task.name).await?;
    let errors = cluster.tasks.last_errors(&task.name).await?;
    let central = cluster.tasks.global_checkpoint(&task.name).await?;
    let pause = cluster.tasks.pause_value(&task.name).await?;
    let pause = pause.map(|value| Pause::decode(&value));
    let unproven = ranges::unproven(&task.ranges);
    let start = Ts::new(task.info.start_ts);
    let checkpoint = progress.iter().map(|(_, ts)| *ts).fold(start, Ts::max);
    Ok(TaskReport {
        name: task.name.clone(),
        start_ts: task.info.start_ts,
        end_ts: task.info.end_ts,
        status: match &pause {
            _ if !errors.is_empty() => "ERROR",
            Some(pause) if pause.is_error() => "ERROR",
            Some(_) => "PAUSE",
            None => "NORMAL",
        },
        table_filter: task.info.table_filter.clone(),
        ranges: task.ranges.iter().map(ranges::show).collect(),
        unproven_ranges: unproven.iter().map(ranges::show).collect(),
        progress: progress
            .iter()
            .map(|(store_id, ts)| StoreProgress {
                store_id: *store_id,
                checkpoint: ts.get(),
            })
            .collect(),
        stores,
        storage: storage::uri_of_task(&task.info),
        checkpoint: checkpoint.get(),
        checkpoint_time: time::show(checkpoint),
        central_global: central.map(Ts::get),
        lag_seconds: time::lag(now, checkpoint).as_secs_f64(),
        last_errors: errors
            .into_iter()
            .map(|(store_id, error)| StoreError {
                store_id,
                last_error: LastError {
                    happen_at: error.happen_at,
                    error_code: error.error_code,
                    error_message: error.error_message,
                },
            })
            .collect(),
        extra_pause_information: pause,
    })
}

fn text(report: &Report) -> String {
    if report.tasks.is_empty() {
        return "no task is registered".to_owned();
    }
    let mut lines = Vec::new();
    for task in &report.tasks {
        lines.push(format!("name: {}", task.name));
        lines.push(format!("status: {}", task.status));
        lines.push(format!("start: {}", time::line(Ts::new(task.start_ts))));
        lines.push(format!("storage: {}", task.storage));
        lines.push(format!("ranges: {}", task.ranges.join(" ")));
        lines.extend(task.note_of_unproven());
        lines.push(format!(
            "checkpoint[global]: {}; gap={:.1}s",
            task.checkpoint_time, task.lag_seconds
        ));
        if let Some(pause) = &task.extra_pause_information {
            lines.push(format!("paused: {}", pause.one_line()));
        }
        let errors = task.last_errors.iter();
        lines.extend(errors.map(|error| format!("error{error}")));
        lines.extend(members::table(&task.stores));
        lines.extend(members::holds(&task.stores));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lag_seconds: f64, code: Option<&str>) -> Vec<TaskReport> {
        let last_error = |code: &str| StoreError {
            store_id: 1,
            last_error: LastError {
                happen_at: 1,
                error_code: code.to_owned(),
                error_message: "GC passed".to_owned(),
            },
        };
        let task = TaskReport {
            name: "t".to_owned(),
            start_ts: 1,
            end_ts: 2,
            status: "NORMAL",
            table_filter: Vec::new(),
            ranges: Vec::new(),
            unproven_ranges: Vec::new(),
            progress: Vec::new(),
            stores: Vec::new(),
            storage: String::new(),
            checkpoint: 7,
            checkpoint_time: time::show(Ts::new(7)),
            central_global: None,
            lag_seconds,
            last_errors: code.map(last_error).into_iter().collect(),
            extra_pause_information: None,
        };
        vec![task]
    }

    #[test]
    fn lag_over_the_limit_and_a_gap_have_their_own_codes() {
        let limit = Some(Duration::from_secs(10));
        assert_eq!(judge(&report(9.0, None), limit), Ok(Exit::Ok));
        assert_eq!(judge(&report(11.0, None), None), Ok(Exit::Ok));
        assert_eq!(
            judge(&report(11.0, None), limit).unwrap_err().exit(),
            Exit::Lag
        );
        let gap = judge(&report(0.0, Some(GAP_CODE)), None).unwrap_err();
        assert_eq!(gap.exit(), Exit::Gap);
        assert!(gap.effect.contains("up to 7"));
        assert_eq!(
            judge(&report(0.0, Some("KV:LogBackup:Pd")), None),
            Ok(Exit::Ok)
        );
    }
}
