//! Runs the binary and looks at what it said. Whatever is asked with `--json` is compared with
//! the schema in `docs/schemas/`, results and failures alike.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// Documents of which there is one a line.
const STREAMS: [&str; 2] = ["archive-cat", "archive-find"];

/// What a run of `tikv-pitr` gave.
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl Ran {
    /// Checks the code and that stderr contains each text.
    #[track_caller]
    pub fn fails_with(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in {}", self.stderr);
        }
    }

    /// Checks that it went well and gives its JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }

    /// The failure that a verb with `--json` told, from the last line of stderr.
    #[track_caller]
    pub fn error(&self) -> Value {
        let last = self.stderr.lines().last().unwrap_or_default();
        let document: Value = serde_json::from_str(last).expect(&self.stderr);
        document["error"].clone()
    }
}

/// Runs the binary with these arguments to its end.
#[track_caller]
pub fn tikv_pitr(args: &[&str]) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(args)
        .env("TIKV_PITR_LOG", "warn")
        .output()
        .expect("the binary starts");
    let ran = Ran {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    };
    if args.contains(&"--json") {
        keeps_its_schema(args, &ran);
    }
    ran
}

/// Stdout holds one document of the verb's schema, or nothing; a failure is told by the schema of
/// failures, with the code that the process ended with.
#[track_caller]
fn keeps_its_schema(args: &[&str], ran: &Ran) {
    let schema = schema_of(args);
    if STREAMS.contains(&&*schema) {
        for line in ran.stdout.lines() {
            fits(&schema, line);
        }
    } else if ran.code == 0 || !ran.stdout.is_empty() {
        fits(&schema, &ran.stdout);
    }
    if ran.code != 0 {
        fits("error", ran.stderr.lines().last().unwrap_or_default());
        assert_eq!(ran.error()["exit_code"], ran.code, "{}", ran.stderr);
    }
}

/// The schema of a verb: its words joined, as far as there is a schema of that name.
#[track_caller]
fn schema_of(args: &[&str]) -> String {
    let words: Vec<_> = args
        .iter()
        .take_while(|arg| !arg.starts_with('-'))
        .collect();
    let names = (1..=words.len()).rev().map(|n| {
        let words: Vec<_> = words[..n].iter().map(|word| **word).collect();
        words.join("-")
    });
    let mut names = names.filter(|name| schema_file(name).exists());
    names
        .next()
        .unwrap_or_else(|| panic!("no schema for {args:?}"))
}

fn schema_file(name: &str) -> PathBuf {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas");
    docs.join(format!("{name}.json"))
}

/// Checks a JSON text against a schema of `docs/schemas/`.
#[track_caller]
pub fn fits(schema: &str, text: &str) {
    let document: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let schema_text = std::fs::read(schema_file(schema)).unwrap();
    let rules: Value = serde_json::from_slice(&schema_text).unwrap();
    if let Err(error) = jsonschema::validate(&rules, &document) {
        panic!("{schema}: {error} at {}: {text}", error.instance_path());
    }
}
