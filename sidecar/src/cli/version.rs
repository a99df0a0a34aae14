//! `version`: what this binary is and which forms of data it reads and writes.

use pitr_format::backup_meta::SCHEMA_VERSION;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::OutputArgs;
use super::{NAME, Outcome};
use crate::failure::Exit;

/// Arguments of `version`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

/// What this binary is.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// `tikv-pitr`.
    name: &'static str,
    /// Version of the release.
    version: &'static str,
    /// Commit that it was built from; null when the build did not know it.
    commit: Option<&'static str>,
    /// What it can do that another build may not.
    features: Vec<&'static str>,
    /// Forms of data.
    formats: Formats,
}

/// Forms of data that are read and written.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Formats {
    /// Schema version in `backupmeta`.
    backup_schema: u32,
    /// Version of `.meta` objects.
    log_meta: u32,
    /// Compression of log objects.
    compression: &'static str,
    /// Storages that an archive can rest on.
    storages: Vec<&'static str>,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let report = Report {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("PITR_COMMIT").filter(|commit| !commit.is_empty()),
        features: vec!["rocksdb"],
        formats: Formats {
            backup_schema: SCHEMA_VERSION,
            log_meta: 2,
            compression: "zstd",
            storages: vec!["local", "s3", "gcs", "azure"],
        },
    };
    args.output.show(&report, || {
        format!(
            "{NAME} {}\ncommit: {}\nfeatures: {}\nstorages: {}",
            report.version,
            report.commit.unwrap_or("unknown"),
            report.features.join(" "),
            report.formats.storages.join(" ")
        )
    })?;
    Ok(Exit::Ok)
}
