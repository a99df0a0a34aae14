//! `explain`: the page of an error code, or the list of all codes.

use schemars::JsonSchema;
use serde::Serialize;

use super::Outcome;
use super::args::OutputArgs;
use crate::codes::{self, Code};
use crate::failure::{Exit, Failure};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The code, for example `PITR1302` or `1302`.
    #[arg(value_name = "CODE")]
    code: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The pages asked for.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// One page, or all of them.
    codes: Vec<Explained>,
}

/// The page of one code.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Explained {
    /// `PITRnnnn`.
    code: String,
    /// What happened, in a few words.
    title: &'static str,
    /// Why it happens.
    cause: &'static str,
    /// What it means for the data.
    effect: &'static str,
    /// What to do.
    action: &'static str,
    /// Exit code of a verb that ends so.
    exit_code: u8,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let wanted = match &args.code {
        None => codes::ALL.to_vec(),
        Some(text) => vec![Code::parse(text).ok_or_else(|| {
            Failure::new(Code::UnknownCode, format!("there is no code {text:?}"))
        })?],
    };
    let report = Report {
        codes: wanted.into_iter().map(explained).collect(),
    };
    args.output.show(&report, || match &args.code {
        Some(_) => report.codes.iter().map(page).collect(),
        None => list(&report.codes),
    })?;
    Ok(Exit::Ok)
}

fn explained(code: Code) -> Explained {
    let page = code.page();
    Explained {
        code: code.to_string(),
        title: page.title,
        cause: page.cause,
        effect: page.effect,
        action: page.action,
        exit_code: code.exit() as u8,
    }
}

fn page(code: &Explained) -> String {
    format!(
        "{}: {}\n\ncause:  {}\neffect: {}\ndo:     {}\nexit:   {}",
        code.code, code.title, code.cause, code.effect, code.action, code.exit_code
    )
}

fn list(codes: &[Explained]) -> String {
    let lines = codes
        .iter()
        .map(|code| format!("{}  {}", code.code, code.title));
    lines.collect::<Vec<_>>().join("\n")
}
