//! `log stop`: removes a task and the safepoints that held GC for it.

use pitr_coordinator::coordinator::SERVICE as COORDINATOR_SERVICE;
use schemars::JsonSchema;
use serde::Serialize;

use super::Outcome;
use super::args::{OutputArgs, TaskArgs};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::serve::guard;

/// Arguments of `log stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A task that was removed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Its name.
    task: String,
    /// Service safepoints that do not hold GC any more.
    released: Vec<String>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let cluster = args.task.pd.connect().await?;
    cluster.tasks.stop(&args.task.task_name).await?;
    // The sidecars remove theirs when they see the task go; those that do not run cannot.
    let released = safe_points_of(&cluster, &args.task.task_name).await?;
    for id in &released {
        cluster.pd.release_gc(id).await?;
    }
    let report = Report {
        task: args.task.task_name,
        released,
    };
    args.output.show(&report, || {
        format!(
            "task {} is stopped; its archive stays as it is",
            report.task
        )
    })?;
    Ok(Exit::Ok)
}

async fn safe_points_of(cluster: &Cluster, task: &str) -> Result<Vec<String>, Failure> {
    let mut ids = vec![guard::pause_service(task)];
    for store in cluster.tikv_stores().await? {
        ids.push(guard::store_service(task, store.id));
    }
    if cluster.tasks.list().await?.0.is_empty() {
        ids.push(COORDINATOR_SERVICE.to_owned());
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}
