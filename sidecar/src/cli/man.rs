//! `man`: the manual pages, written to a directory or printed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::OutputArgs;
use super::{Cli, Outcome};
use crate::codes::Code;
use crate::failure::{Exit, Failure};

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write one file a verb here; without it all pages are printed.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The manual.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Where the pages were written; null when they are here.
    dir: Option<String>,
    /// One page a verb.
    pages: Vec<Page>,
}

/// One page.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Page {
    /// Name of the file, `tikv-pitr-log-start.1`.
    file: String,
    /// Roff; null when it was written to a file.
    roff: Option<String>,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    render(&command, &mut pages).map_err(|error| Failure::from_error(Code::Internal, &error))?;
    if let Some(dir) = &args.dir {
        write(dir, &mut pages).map_err(|error| {
            Failure::from_error(Code::CannotWriteFile, &error).at(dir.display().to_string())
        })?;
    }
    let report = Report {
        dir: args.dir.map(|dir| dir.display().to_string()),
        pages,
    };
    args.output.show(&report, || text(&report))?;
    Ok(Exit::Ok)
}

/// The pages of a verb and of those below it.
fn render(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    let man = Man::new(command.clone());
    let mut roff = Vec::new();
    man.render(&mut roff)?;
    pages.push(Page {
        file: man.get_filename(),
        roff: Some(String::from_utf8_lossy(&roff).into_owned()),
    });
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        if sub.get_name() != "help" {
            render(sub, pages)?;
        }
    }
    Ok(())
}

fn write(dir: &Path, pages: &mut [Page]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for page in pages {
        fs::write(dir.join(&page.file), page.roff.take().unwrap_or_default())?;
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let lines: Vec<&str> = match report.dir {
        Some(_) => report.pages.iter().map(|page| page.file.as_str()).collect(),
        None => {
            let roff = report.pages.iter().filter_map(|page| page.roff.as_deref());
            roff.map(str::trim_end).collect()
        }
    };
    lines.join("\n")
}
