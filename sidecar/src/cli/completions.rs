//! `completions`: the script that completes verbs and flags in a shell.

use clap::CommandFactory;
use clap_complete::Shell;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::OutputArgs;
use super::{Cli, NAME, Outcome};
use crate::failure::Exit;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
    #[command(flatten)]
    output: OutputArgs,
}

/// A completion script.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// The shell.
    shell: String,
    /// What it has to source.
    script: String,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    let report = Report {
        shell: args.shell.to_string(),
        script: String::from_utf8_lossy(&script).into_owned(),
    };
    args.output
        .show(&report, || report.script.trim_end().to_owned())?;
    Ok(Exit::Ok)
}
