//! `log resume`: the sidecars read on from the checkpoint, as `br log resume` does. Refused when
//! GC has removed what they would have to read.

use std::time::Duration;

use pitr_cluster::tasks::keys;
use schemars::JsonSchema;
use serde::Serialize;

use super::Outcome;
use super::args::{OutputArgs, TaskArgs};
use super::log_pause::Standing;
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::pause::Pause;
use crate::serve::guard;
use crate::time;

/// GC stays held for so long, until the sidecars hold it themselves.
const RESUME_TTL: Duration = Duration::from_secs(1800);

/// Arguments of `log resume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A task that goes on.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Its name.
    task: String,
    /// Its log is read on from here.
    checkpoint: time::Shown,
    /// The pause that ended.
    pause: Pause,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let cluster = args.task.pd.connect().await?;
    let name = &args.task.task_name;
    keys::check_name(name)?;
    let standing = Standing::of(&cluster, name).await?;
    let not_paused = || Failure::new(Code::NotPaused, format!("task {name:?} is not paused"));
    let pause = standing.pause.ok_or_else(not_paused)?;
    let checkpoint = standing.checkpoint;
    let gc = cluster.pd.gc_safe_point().await?;
    if gc >= checkpoint {
        return Err(Failure::new(
            Code::HistoryGone,
            format!("GC passed the checkpoint of task {name:?} while it was paused"),
        )
        .at(format!(
            "checkpoint {}, GC safepoint {}",
            time::line(checkpoint),
            time::line(gc)
        )));
    }
    if !cluster.tasks.resume(name).await? {
        return Err(not_paused());
    }
    let (id, keep) = (guard::pause_service(name), checkpoint.prev());
    cluster.pd.hold_gc(&id, RESUME_TTL, keep).await?;
    let report = Report {
        task: args.task.task_name.clone(),
        checkpoint: time::show(checkpoint),
        pause,
    };
    args.output.show(&report, || {
        format!("task {} goes on\nfrom: {}", report.task, report.checkpoint)
    })?;
    Ok(Exit::Ok)
}
