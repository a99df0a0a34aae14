//! `log stop`: removes a task and the safepoints that held GC for it.

use pitr_format::Ts;

use super::args::PdArgs;
use super::{Outcome, output};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::serve::guard;

/// Arguments of `log stop`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    /// Name of the task.
    #[arg(long, value_name = "NAME")]
    task_name: String,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let cluster = Cluster::connect(&args.pd.pd).await?;
    cluster.tasks.stop(&args.task_name).await?;
    // The sidecars remove theirs when they see the task go; those that do not run cannot.
    for id in safe_points_of(&cluster, &args.task_name).await? {
        cluster.pd.set_service_safe_point(&id, 0, Ts::ZERO).await?;
    }
    output::say(&format!(
        "task {} is stopped; its archive stays as it is",
        args.task_name
    ));
    Ok(Exit::Ok)
}

async fn safe_points_of(cluster: &Cluster, task: &str) -> Result<Vec<String>, Failure> {
    let mut ids = vec![format!("{task}_pause_safepoint")];
    for store in cluster.tikv_stores().await? {
        ids.extend(guard::to_release(task, store.id).map(|point| point.id));
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}
