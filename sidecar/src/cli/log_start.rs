//! `log start`: registers a task as `br log start` does, with key ranges instead of tables.

use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, PdArgs, StorageArgs};
use super::{Outcome, output};
use crate::codes::Code;
use crate::config::Source;
use crate::failure::{Exit, Failure};
use crate::ranges::{self, RawRange};
use crate::start::{self, Request, Started};
use crate::time::{self, Point, TimeError};

/// Arguments of `log start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    #[command(flatten)]
    storage: StorageArgs,
    /// Name of the task.
    #[arg(long, value_name = "NAME")]
    task_name: String,
    /// Begin of the log: TSO, time, `-10m`. Default: now.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    start_ts: Option<String>,
    /// End of the log: TSO or time. The archive never promises more, and nothing is tailed once it
    /// reaches it. Default: none.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    end_ts: Option<String>,
    /// A range of keys, hex, either side may be empty. May be repeated. Default: everything.
    #[arg(long = "range", value_name = "START_HEX:END_HEX", value_parser = ranges::parse_range)]
    ranges: Vec<RawRange>,
    /// All keys that begin with this text. May be repeated.
    #[arg(long = "prefix", value_name = "TEXT")]
    prefixes: Vec<String>,
    /// Who tails the stores and writes the log: sidecars, or TiKV's own log backup (`builtin`), for which one
    /// `serve` with the same `source` coordinates. Asks each store whether it fits.
    #[arg(long, value_enum, value_name = "SOURCE", default_value_t)]
    source: Source,
    /// Start although the TiKV (8.5.0 to 8.5.3) can abort while its changes are tailed.
    #[arg(long)]
    allow_unsafe_version: bool,
    /// Start although there are keys that begin with `r`, whose changes TiKV's change stream loses.
    #[arg(long)]
    allow_r: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// A task that was registered.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Its name.
    task: String,
    /// Its storage, without credentials.
    storage: String,
    /// Begin of its log.
    start: time::Shown,
    /// Its key ranges, hex.
    ranges: Vec<String>,
    /// It goes on with an archive that was there.
    restarted: bool,
    /// Whether the ranges were empty at the start; null when it was not looked (a restart).
    ranges_were_empty: Option<bool>,
    /// What the caller should read.
    notes: Vec<String>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let mut wanted = args.ranges.clone();
    let prefixes = args.prefixes.iter();
    wanted.extend(prefixes.map(|prefix| ranges::prefix_range(prefix.as_bytes())));
    let wanted =
        ranges::task_ranges(wanted).map_err(|error| Failure::from_error(Code::BadRange, &error))?;
    let parse = |text: &Option<String>| text.as_deref().map(Point::parse).transpose();
    let refused = |error: TimeError| Failure::from_error(Code::BadTime, &error);
    let start = parse(&args.start_ts).map_err(refused)?;
    let end = parse(&args.end_ts).map_err(refused)?;
    let cluster = args.pd.connect().await?;
    let started = start::start(
        &cluster,
        Request {
            task: args.task_name.clone(),
            storage_url: args.storage.storage.clone(),
            start,
            end,
            ranges: wanted,
            source: args.source,
            allow_unsafe_version: args.allow_unsafe_version,
            allow_r: args.allow_r,
        },
    )
    .await?;
    print(&args, &started)?;
    Ok(Exit::Ok)
}

fn print(args: &Args, started: &Started) -> Result<(), Failure> {
    for note in &started.notes {
        output::say(&format!("note: {note}"));
    }
    let report = Report {
        task: args.task_name.clone(),
        storage: started.storage.clone(),
        start: time::show(started.start_ts),
        ranges: started.ranges.iter().map(ranges::show).collect(),
        restarted: started.restarted,
        ranges_were_empty: started.ranges_were_empty,
        notes: started.notes.clone(),
    };
    args.output.show(&report, || {
        format!(
            "task: {}\nstorage: {}\nstart: {}\nranges: {}",
            report.task,
            report.storage,
            time::line(started.start_ts),
            report.ranges.join(" ")
        )
    })
}
