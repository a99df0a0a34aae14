//! `log metadata`: the window that an archive covers. Needs the storage alone.

use pitr_format::Ts;
use serde::Serialize;

use super::args::{OutputArgs, StorageArgs};
use super::{Outcome, output};
use crate::failure::{Exit, Failure};
use crate::{archive, storage, time};

/// Arguments of `log metadata`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    storage: String,
    cluster_id: u64,
    /// Begin of the log.
    start: time::Shown,
    /// Smallest restored-ts.
    min: time::Shown,
    /// Largest restored-ts; equal to `min` while there is no checkpoint.
    max: time::Shown,
    /// Whether the ranges were empty at the start: `None` = nobody looked.
    proven_empty: bool,
    warnings: Vec<String>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let info = archive::info(storage.as_ref()).await?;
    let Some(meta) = &info.backup_meta else {
        return Err(
            Failure::new(Exit::NotFound, "the storage has no `backupmeta`")
                .at(storage.uri())
                .action("`tikv-pitr verify data` can still check what is there"),
        );
    };
    let min = info.log_min();
    let max = info.log_max.unwrap_or(Ts::ZERO).max(min);
    let report = Report {
        storage: storage.uri(),
        cluster_id: meta.cluster_id,
        start: time::show(meta.start_ts),
        min: time::show(min),
        max: time::show(max),
        proven_empty: info.proven_empty(),
        warnings: info.warnings(),
    };
    if args.output.json {
        output::json(&report)?;
        return Ok(Exit::Ok);
    }
    output::data(&format!("storage: {}", report.storage));
    output::data(&format!("cluster: {}", report.cluster_id));
    output::data(&format!("start: {}", time::line(meta.start_ts)));
    output::data(&format!("min-ts: {}", time::line(min)));
    output::data(&format!("max-ts: {}", time::line(max)));
    let base = match report.proven_empty {
        true => "not needed: the ranges were empty at the start",
        false => "needed: nothing proves that the ranges were empty at the start",
    };
    output::data(&format!("base snapshot: {base}"));
    for warning in &report.warnings {
        output::say(&format!("warning: {warning}"));
    }
    Ok(Exit::Ok)
}
