//! The JSON documents that the binary prints, with the schema of each. `docs/schemas/` holds the
//! same schemas for readers; a test keeps both equal. A verb's document is named as the verb,
//! `log start` → `log-start`.
//!
//! To add a verb with `--json`: derive `JsonSchema` for its report, add a line to [`schemas`], and run
//! `PITR_UPDATE_DOCS=1 cargo test -p pitr-sidecar documents`.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::{archive, completions, config, explain, log_list, log_metadata, log_pause, log_resume};
use super::{log_start, log_status, log_stop, logs, man, restore_point, speed_test, status};
use super::{verify_data, verify_scan, version};
use crate::admin::SidecarStatus;
use crate::failure::FailureDocument;

/// Name and schema of every document.
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![
        ("archive-cat", schema::<archive::cat::Line>()),
        ("archive-find", schema::<archive::record::Record>()),
        ("archive-ls", schema::<archive::ls::Report>()),
        ("archive-stat", schema::<archive::stat::Report>()),
        ("completions", schema::<completions::Report>()),
        ("config-check", schema::<config::Checked>()),
        ("config-schema", schema::<Map<String, Value>>()),
        ("config-show", schema::<config::Shown>()),
        ("error", schema::<FailureDocument>()),
        ("explain", schema::<explain::Report>()),
        ("log-list", schema::<log_list::Report>()),
        ("log-metadata", schema::<log_metadata::Report>()),
        ("log-pause", schema::<log_pause::Report>()),
        ("log-resume", schema::<log_resume::Report>()),
        ("log-start", schema::<log_start::Report>()),
        ("log-status", schema::<log_status::Report>()),
        ("log-stop", schema::<log_stop::Report>()),
        ("man", schema::<man::Report>()),
        ("restore-point", schema::<restore_point::Printed>()),
        ("serve", schema::<logs::Line>()),
        ("sidecar-status", schema::<SidecarStatus>()),
        ("speed-test", schema::<speed_test::Report>()),
        ("status", schema::<status::Report>()),
        ("verify-data", schema::<verify_data::Report<'static>>()),
        ("verify-scan", schema::<verify_scan::Report>()),
        ("version", schema::<version::Report>()),
    ]
}

fn schema<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::PathBuf;

    use clap::CommandFactory;

    use super::*;
    use crate::codes;

    fn docs() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
    }

    /// Compares generated files with those in `docs/`, or writes them when asked to.
    fn same_in_docs(dir: &str, ending: &str, generated: BTreeMap<String, String>) {
        let dir = docs().join(dir);
        if std::env::var_os("PITR_UPDATE_DOCS").is_some() {
            fs::create_dir_all(&dir).unwrap();
            for (name, text) in &generated {
                fs::write(dir.join(name), text).unwrap();
            }
        }
        let files = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let found: BTreeMap<_, _> = files
            .filter(|path| path.is_file() && path.to_str().unwrap().ends_with(ending))
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(&path).unwrap())
            })
            .collect();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            generated.keys().collect::<Vec<_>>(),
            "run the test again with PITR_UPDATE_DOCS=1; remove what is gone"
        );
        for (name, text) in &generated {
            assert_eq!(
                &found[name], text,
                "{name} is stale: run with PITR_UPDATE_DOCS=1"
            );
        }
    }

    #[test]
    fn the_schemas_in_docs_are_those_of_the_documents() {
        let generated = schemas().into_iter().map(|(name, schema)| {
            let text = serde_json::to_string_pretty(&schema).unwrap();
            (format!("{name}.json"), format!("{text}\n"))
        });
        same_in_docs("schemas", ".json", generated.collect());
    }

    #[test]
    fn the_schema_of_the_configuration_in_docs_is_that_of_the_struct() {
        let text = format!("{:#}\n", crate::config::schema());
        let file = ("config.schema.json".to_owned(), text);
        same_in_docs("", ".schema.json", BTreeMap::from([file]));
    }

    #[test]
    fn the_reference_of_error_codes_in_docs_is_that_of_the_table() {
        let page = ("errors.md".to_owned(), codes::reference());
        same_in_docs("", "errors.md", BTreeMap::from([page]));
    }

    /// Paths of all verbs, `log start` as `log-start`.
    fn verbs(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for sub in command.get_subcommands() {
            let path = match path {
                "" => sub.get_name().to_owned(),
                path => format!("{path}-{}", sub.get_name()),
            };
            match sub.has_subcommands() {
                true => verbs(sub, &path, found),
                false => found.push((path, sub.clone())),
            }
        }
    }

    #[test]
    fn every_verb_takes_json_and_has_a_schema() {
        let mut found = Vec::new();
        verbs(&super::super::Cli::command(), "", &mut found);
        assert!(found.len() >= 8);
        let schemas = schemas();
        for (name, verb) in found {
            let json = verb.get_arguments().any(|arg| arg.get_id() == "json");
            assert!(json, "{name} has no --json");
            assert!(
                schemas.iter().any(|(known, _)| *known == name),
                "{name} has no schema"
            );
        }
    }
}
