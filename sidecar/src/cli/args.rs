//! Flags that several verbs share, in BR's words.

use clap::Args;
use serde::Serialize;

use super::output;
use crate::failure::Failure;

/// How to reach the cluster.
#[derive(Clone, Debug, Args)]
pub struct PdArgs {
    /// Client URLs of PD, separated by commas.
    #[arg(
        short = 'u',
        long = "pd",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    pub pd: Vec<String>,
}

/// A task of the cluster.
#[derive(Clone, Debug, Args)]
pub struct TaskArgs {
    /// The cluster.
    #[command(flatten)]
    pub pd: PdArgs,
    /// Name of the task.
    #[arg(long, value_name = "NAME")]
    pub task_name: String,
}

/// Where the archive is.
#[derive(Clone, Debug, Args)]
pub struct StorageArgs {
    /// The archive, for example `local:///backup/log`.
    #[arg(short = 's', long = "storage", value_name = "URL")]
    pub storage: String,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// Prints a result to stdout: as one JSON document, or as the text that `text` makes of it.
    pub fn show(
        self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.json {
            true => output::json(document)?,
            false => output::data(&text()),
        }
        Ok(())
    }
}
