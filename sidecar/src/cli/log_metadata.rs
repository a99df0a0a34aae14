//! `log metadata`: the window that an archive covers. Needs the storage alone.

use pitr_format::Ts;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, StorageArgs};
use super::{Outcome, output};
use crate::codes::Code;
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

/// The window that an archive covers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// The storage, without credentials.
    storage: String,
    /// The cluster that it was taken from.
    cluster_id: u64,
    /// Begin of the log.
    start: time::Shown,
    /// Smallest restored-ts.
    min: time::Shown,
    /// Largest restored-ts; equal to `min` while there is no checkpoint.
    max: time::Shown,
    /// Whether the archive proves that the ranges were empty at the start.
    proven_empty: bool,
    /// What a reader should know about the archive.
    warnings: Vec<String>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let info = archive::info(storage.as_ref()).await?;
    let Some(meta) = &info.backup_meta else {
        return Err(
            Failure::new(Code::NoBackupMeta, "the storage has no `backupmeta`")
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
    args.output.show(&report, || text(&report))?;
    if !args.output.json {
        for warning in &report.warnings {
            output::say(&format!("warning: {warning}"));
        }
    }
    Ok(Exit::Ok)
}

fn text(report: &Report) -> String {
    let base = match report.proven_empty {
        true => "not needed: the ranges were empty at the start",
        false => "needed: nothing proves that the ranges were empty at the start",
    };
    format!(
        "storage: {}\ncluster: {}\nstart: {}\nmin-ts: {}\nmax-ts: {}\nbase snapshot: {base}",
        report.storage, report.cluster_id, report.start, report.min, report.max
    )
}
