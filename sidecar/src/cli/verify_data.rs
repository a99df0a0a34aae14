//! `verify data`: every byte of an archive against what its metadata says. Needs the storage
//! alone. Damage ends with code 20; objects that nothing refers to are listed and are no fault.

use pitr_restore_worker::verify::{VerifyError, VerifyOptions, VerifyReport};
use pitr_restore_worker::{Archive, Env, verify};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, StorageArgs};
use super::{Outcome, output, progress};
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::storage;

/// Arguments of `verify data`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was found in an archive.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report<'a> {
    /// The storage, without credentials.
    storage: String,
    /// Metas read.
    metas: u64,
    /// Log objects that they name.
    objects: u64,
    /// Slices read.
    slices: u64,
    /// Records in them.
    records: u64,
    /// Bytes read.
    bytes: u64,
    /// Damage; the exit code is 20 if there is any.
    problems: Vec<Problem<'a>>,
    /// Log objects that no meta names; no fault.
    unreferenced: &'a [String],
    /// What a reader should know about the archive.
    warnings: &'a [String],
}

/// One damaged object.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Problem<'a> {
    /// Its name.
    object: &'a str,
    /// What is wrong with it.
    what: &'a str,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let uri = storage.uri();
    let archive = Archive::open(storage, Env::default()).await?;
    let bar = progress::spinner("reading and checking every object");
    let found = verify(&archive, &VerifyOptions::default()).await?;
    bar.finish_and_clear();
    let report = report(&uri, &found);
    args.output.show(&report, || text(&report))?;
    if !args.output.json {
        for warning in &found.warnings {
            output::say(&format!("warning: {warning}"));
        }
    }
    judge(&uri, &found)
}

fn report<'a>(uri: &str, found: &'a VerifyReport) -> Report<'a> {
    let problems = found.problems.iter();
    Report {
        storage: uri.to_owned(),
        metas: found.metas,
        objects: found.objects,
        slices: found.slices,
        records: found.records,
        bytes: found.bytes,
        problems: problems
            .map(|damage| Problem {
                object: &damage.object,
                what: &damage.what,
            })
            .collect(),
        unreferenced: &found.unreferenced,
        warnings: &found.warnings,
    }
}

fn text(report: &Report) -> String {
    let mut lines = vec![
        format!("storage: {}", report.storage),
        format!("metas: {}", report.metas),
        format!("log objects: {}", report.objects),
        format!("slices: {}", report.slices),
        format!("records: {}", report.records),
        format!("read: {}", output::bytes(report.bytes)),
    ];
    let problems = report.problems.iter();
    lines.extend(problems.map(|problem| format!("damaged: {}: {}", problem.object, problem.what)));
    let unreferenced = report.unreferenced.iter();
    lines.extend(unreferenced.map(|object| format!("unreferenced: {object}")));
    lines.join("\n")
}

fn judge(uri: &str, found: &VerifyReport) -> Outcome {
    let Some(first) = found.problems.first() else {
        return Ok(Exit::Ok);
    };
    let others = match found.problems.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    Err(Failure::new(
        Code::ArchiveDamaged,
        format!("the archive is damaged: {}{others}", first.what),
    )
    .at(format!("{} in {uri}", first.object))
    .effect("a restore that needs the object stops before it writes")
    .action("bring the object back from a copy, or restore to a time before it was written"))
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Storage(error) => error.into(),
            VerifyError::Worker(_) => Failure::from_error(Code::Internal, &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use pitr_restore_worker::Damage;

    use super::*;

    #[test]
    fn damage_names_the_object_and_unreferenced_objects_alone_are_no_fault() {
        let mut found = VerifyReport {
            unreferenced: vec!["v1/x.log".to_owned()],
            ..VerifyReport::default()
        };
        assert_eq!(judge("local:///a", &found), Ok(Exit::Ok));
        found.problems = vec![
            Damage::new("v1/a.log", "sha256 differs"),
            Damage::new("v1/b.log", "the object is missing"),
        ];
        let failure = judge("local:///a", &found).unwrap_err();
        assert_eq!(failure.exit(), Exit::Damage);
        assert!(failure.to_string().contains("v1/a.log"), "{failure}");
        assert!(failure.what.contains("and 1 more"));
    }
}
