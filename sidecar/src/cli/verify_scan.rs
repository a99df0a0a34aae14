//! `verify scan`: the digest over what a running cluster shows at one ts. Two clusters that show
//! the same have the same digest: that is how a restore is compared with its source.

use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, PdArgs};
use super::{Outcome, progress};
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::ranges::{self, RawRange};
use crate::scan;
use crate::time::{self, Point};

/// Arguments of `verify scan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    /// The moment: TSO, time, `-10m`. Default: now.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// A range of keys, hex. May be repeated. Default: everything.
    #[arg(long = "range", value_name = "START_HEX:END_HEX", value_parser = ranges::parse_range)]
    ranges: Vec<RawRange>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a cluster shows at one moment.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Id of the cluster.
    cluster_id: u64,
    /// The moment.
    at: time::Shown,
    /// Visible keys.
    keys: u64,
    /// Digest over (user key, value) of all of them.
    digest: String,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let usage = |error: &dyn std::error::Error| Failure::from_error(Code::BadTime, error);
    let point = args.at.as_deref().map(Point::parse).transpose();
    let point = point.map_err(|error| usage(&error))?;
    let wanted = ranges::task_ranges(args.ranges)
        .map_err(|error| Failure::from_error(Code::BadRange, &error))?;
    let cluster = args.pd.connect().await?;
    let now = cluster.now().await?;
    let at = point.unwrap_or(Point::Tso(now)).resolve(now, Some(now));
    let at = at.map_err(|error| usage(&error))?;
    if at > now {
        // A read ahead of PD's clock can abort a TiKV.
        return Err(Failure::new(
            Code::BadTime,
            format!("{} lies in the future", time::line(at)),
        )
        .at(format!("PD's now is {}", time::line(now))));
    }
    let digest = {
        let bar = progress::counter("keys read");
        scan::digest(&cluster, &wanted, at, |keys| bar.set_position(keys)).await?
    };
    let report = Report {
        cluster_id: cluster.pd.cluster_id(),
        at: time::show(at),
        keys: digest.count(),
        digest: digest.to_string(),
    };
    args.output.show(&report, || {
        format!(
            "at: {}\nkeys: {}\nscan digest: {}",
            time::line(at),
            report.keys,
            report.digest
        )
    })?;
    Ok(Exit::Ok)
}
