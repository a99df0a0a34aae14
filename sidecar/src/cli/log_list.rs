//! `log list`: the registered tasks, one line each.

use pitr_format::Ts;
use schemars::JsonSchema;
use serde::Serialize;

use super::Outcome;
use super::args::{OutputArgs, PdArgs};
use super::log_status::{self, TaskReport};
use crate::failure::Exit;
use crate::time;

/// Arguments of `log list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The tasks of a cluster.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Id of the cluster.
    cluster_id: u64,
    /// By name.
    tasks: Vec<Listed>,
}

/// One task.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Listed {
    /// Its name.
    name: String,
    /// `NORMAL`, `PAUSE` or `ERROR`, as BR says it.
    status: &'static str,
    /// Begin of its log.
    start: time::Shown,
    /// The archive can be restored up to here.
    checkpoint: time::Shown,
    /// PD's time minus the checkpoint.
    lag_seconds: f64,
    /// Its storage, without credentials.
    storage: String,
}

impl From<TaskReport> for Listed {
    fn from(task: TaskReport) -> Self {
        Listed {
            start: time::show(Ts::new(task.start_ts)),
            name: task.name,
            status: task.status,
            checkpoint: task.checkpoint_time,
            lag_seconds: task.lag_seconds,
            storage: task.storage,
        }
    }
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let cluster = args.pd.connect().await?;
    let report = Report {
        cluster_id: cluster.pd.cluster_id(),
        tasks: log_status::tasks(&cluster, &[], None)
            .await?
            .into_iter()
            .map(Listed::from)
            .collect(),
    };
    args.output.show(&report, || text(&report))?;
    Ok(Exit::Ok)
}

fn text(report: &Report) -> String {
    if report.tasks.is_empty() {
        return "no task is registered".to_owned();
    }
    let widest = report.tasks.iter().map(|task| task.name.len()).max();
    let width = widest.unwrap_or_default();
    let line = |task: &Listed| {
        format!(
            "{:width$}  {:6}  lag {:>8.1}s  {}",
            task.name, task.status, task.lag_seconds, task.storage
        )
    };
    report.tasks.iter().map(line).collect::<Vec<_>>().join("\n")
}
