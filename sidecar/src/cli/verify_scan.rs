//! `verify scan`: the digest over what a running cluster shows at one ts. Two clusters that show
//! the same have the same digest: that is how a restore is compared with its source.

use serde::Serialize;

use super::args::{OutputArgs, PdArgs};
use super::{Outcome, output};
use crate::cluster::Cluster;
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

#[derive(Debug, Serialize)]
struct Report {
    cluster_id: u64,
    at: time::Shown,
    keys: u64,
    digest: String,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let usage = |error: &dyn std::error::Error| Failure::from_error(Exit::Usage, error);
    let point = args.at.as_deref().map(Point::parse).transpose();
    let point = point.map_err(|error| usage(&error))?;
    let wanted = ranges::task_ranges(args.ranges).map_err(|error| usage(&error))?;
    let cluster = Cluster::connect(&args.pd.pd).await?;
    let now = cluster.now().await?;
    let at = point.unwrap_or(Point::Tso(now)).resolve(now, Some(now));
    let at = at.map_err(|error| usage(&error))?;
    if at > now {
        // A read ahead of PD's clock can abort a TiKV.
        return Err(Failure::new(
            Exit::Usage,
            format!("{} lies in the future", time::line(at)),
        )
        .at(format!("PD's now is {}", time::line(now))));
    }
    let digest = scan::digest(&cluster, &wanted, at).await?;
    let report = Report {
        cluster_id: cluster.pd.cluster_id(),
        at: time::show(at),
        keys: digest.count(),
        digest: digest.to_string(),
    };
    if args.output.json {
        output::json(&report)?;
    } else {
        output::data(&format!("at: {}", time::line(at)));
        output::data(&format!("keys: {}", report.keys));
        output::data(&format!("scan digest: {}", report.digest));
    }
    Ok(Exit::Ok)
}
