//! `verify data`: every byte of an archive against what its metadata says. Needs the storage
//! alone. Damage ends with code 20; objects that nothing refers to are listed and are no fault.

use pitr_restore_worker::verify::{VerifyError, VerifyOptions, VerifyReport};
use pitr_restore_worker::{Archive, verify};
use serde::Serialize;

use super::args::{OutputArgs, StorageArgs};
use super::{Outcome, output};
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

#[derive(Debug, Serialize)]
struct Report<'a> {
    storage: String,
    metas: u64,
    objects: u64,
    slices: u64,
    records: u64,
    bytes: u64,
    problems: Vec<Problem<'a>>,
    unreferenced: &'a [String],
    warnings: &'a [String],
}

#[derive(Debug, Serialize)]
struct Problem<'a> {
    object: &'a str,
    what: &'a str,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let storage = storage::open_existing(&args.storage.storage)?;
    let uri = storage.uri();
    let archive = Archive::open(storage).await?;
    let found = verify(&archive, &VerifyOptions::default()).await?;
    if args.output.json {
        output::json(&report(&uri, &found))?;
    } else {
        print_text(&uri, &found);
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

fn print_text(uri: &str, found: &VerifyReport) {
    output::data(&format!("storage: {uri}"));
    output::data(&format!("metas: {}", found.metas));
    output::data(&format!("log objects: {}", found.objects));
    output::data(&format!("slices: {}", found.slices));
    output::data(&format!("records: {}", found.records));
    output::data(&format!("read: {}", output::bytes(found.bytes)));
    for damage in &found.problems {
        output::data(&format!("damaged: {}: {}", damage.object, damage.what));
    }
    for object in &found.unreferenced {
        output::data(&format!("unreferenced: {object}"));
    }
    for warning in &found.warnings {
        output::say(&format!("warning: {warning}"));
    }
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
        Exit::Damage,
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
            VerifyError::Worker(_) => Failure::from_error(Exit::Internal, &error),
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
        assert_eq!(failure.exit, Exit::Damage);
        assert!(failure.to_string().contains("v1/a.log"), "{failure}");
        assert!(failure.what.contains("and 1 more"));
    }
}
