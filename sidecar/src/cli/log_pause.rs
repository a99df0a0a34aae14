//! `log pause`: the sidecars stop tailing and the checkpoint stays, as `br log pause` does. GC is
//! held for as long as `--gc-ttl` says.

use std::time::Duration;

use pitr_cluster::tasks::keys;
use pitr_format::Ts;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, TaskArgs};
use super::{Outcome, output};
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::pause::Pause;
use crate::serve::guard;
use crate::time;

/// Arguments of `log pause`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,
    /// How long GC keeps what the task still has to read.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    gc_ttl: Duration,
    /// Why, for those who look at the status.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A task that was paused.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Its name.
    task: String,
    /// The archive can be restored up to here.
    checkpoint: time::Shown,
    /// GC keeps what comes after the checkpoint for so long; resume before.
    gc_held_seconds: u64,
    /// What the pause key says.
    pause: Pause,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let cluster = args.task.pd.connect().await?;
    let name = &args.task.task_name;
    keys::check_name(name)?;
    let standing = Standing::of(&cluster, name).await?;
    if let Some(pause) = &standing.pause {
        return Err(already(name, pause));
    }
    let checkpoint = standing.checkpoint;
    let id = guard::pause_service(name);
    let held = cluster.pd.hold_gc(&id, args.gc_ttl, checkpoint.prev());
    let min = held.await?;
    if min >= checkpoint {
        output::say(&format!(
            "note: GC may have passed the checkpoint already: PD keeps what is after {}",
            time::line(min)
        ));
    }
    let pause = Pause::by_us(args.message.as_deref());
    let value = pause
        .encode()
        .map_err(|error| Failure::from_error(Code::Internal, &error))?;
    if !cluster.tasks.pause(name, value).await? {
        // Somebody was faster: stopped or paused it.
        let now = Standing::of(&cluster, name).await?;
        return Err(already(name, &now.pause.unwrap_or(pause)));
    }
    let report = Report {
        task: args.task.task_name.clone(),
        checkpoint: time::show(checkpoint),
        gc_held_seconds: args.gc_ttl.as_secs(),
        pause,
    };
    args.output.show(&report, || {
        format!(
            "task {} is paused\ncheckpoint: {}\nGC is held for {}; resume before that",
            report.task,
            report.checkpoint,
            humantime::format_duration(args.gc_ttl)
        )
    })?;
    Ok(Exit::Ok)
}

fn already(name: &str, pause: &Pause) -> Failure {
    Failure::new(
        Code::AlreadyPaused,
        format!("task {name:?} is paused already"),
    )
    .at(pause.one_line())
}

/// How a task stands, as `pause` and `resume` want to know it.
pub(super) struct Standing {
    /// What the archive can be restored to; the begin of the log before the first flush.
    pub checkpoint: Ts,
    /// The pause key, if there is one.
    pub pause: Option<Pause>,
}

impl Standing {
    /// Reads it from PD; fails if there is no such task.
    pub async fn of(cluster: &Cluster, name: &str) -> Result<Self, Failure> {
        let Some((info, _)) = cluster.tasks.registration(name).await? else {
            let what = format!("task {name:?} is not registered");
            return Err(Failure::new(Code::TaskNotFound, what));
        };
        let published = cluster.tasks.storage_checkpoints(name).await?;
        let start = Ts::new(info.start_ts);
        let pause = cluster.tasks.pause_value(name).await?;
        Ok(Standing {
            checkpoint: published.into_iter().map(|(_, ts)| ts).fold(start, Ts::max),
            pause: pause.map(|value| Pause::decode(&value)),
        })
    }
}
