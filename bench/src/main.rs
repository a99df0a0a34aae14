//! `tikv-pitr-bench`: what each path of data costs, as a ratio to what the libraries under it need
//! for the same bytes.
//!
//! Every bench measures, in turn and in one process, the bare library calls of a path (its
//! *limits*), our code for single stages, and the whole path; each line is the best of several
//! rounds. The limit of a path is composed: `1 / Σ (1 / rate)` over the calls that it cannot do
//! without. See [`bench`] for the method and [`limits`] for the calls.

mod apply;
mod archive;
mod bench;
mod capture;
mod clock;
mod core;
mod feed;
mod growth;
mod grpc;
mod limits;
mod pause;
mod restore;
mod rows;
mod sink;
mod stages;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The allocator of the daemon.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// Measures the paths of tikv-pitr against the machine.
///
/// Lines: `limit NAME MB/s` (bare library calls, nothing of this project), `bench NAME MB/s RATIO`
/// (ratio to the limits of the same bytes), `growth NAME x=N NS/EVENT RATIO` (ratio to the first x),
/// `pause NAME p50=MS p99=MS max=MS`.
///
/// MB are 10^6 bytes of log records (length fields, keys, values). MB/s means per CPU second: the CPU
/// time of the whole process, kernel and all threads included, so that the numbers mean one core
/// and hold on a busy machine. The process keeps to one processor; the sender of a change stream to
/// the others. Compare ratios of one run; absolute numbers belong to a machine.
#[derive(Parser)]
#[command(name = "tikv-pitr-bench", version)]
struct Args {
    /// Only benches whose name begins with this, for example `capture-grpc` or `restore-sst-long`.
    #[arg(long, default_value = "")]
    filter: String,
    /// Wall seconds for each bench, at least two rounds; setting up comes on top.
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// MB of records that one round works on.
    #[arg(long, default_value_t = 32)]
    megabytes: usize,
    /// Largest number of regions and of slices in the growth benches and of regions in the pause
    /// bench.
    #[arg(long, default_value_t = 10_000)]
    regions: usize,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a change stream; started by the bench itself, so that the sender's CPU time is not
    /// counted.
    #[command(hide = true)]
    Feed {
        #[arg(long)]
        shape: rows::Shape,
        #[arg(long)]
        megabytes: usize,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Feed { shape, megabytes }) => {
            core::leave().and_then(|()| feed::serve(*shape, *megabytes))
        }
        None => core::keep_to_one().and_then(|()| run(&args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let rounds = bench::Rounds {
        wall: std::time::Duration::try_from_secs_f64(args.seconds)?,
    };
    let mut ran = 0;
    let mut wanted = |name: &str| {
        let wanted = name.starts_with(&args.filter) || args.filter.starts_with(&format!("{name}-"));
        ran += usize::from(wanted);
        wanted
    };
    for shape in rows::Shape::ALL {
        let named = |path: &str| format!("{path}-{shape}");
        type Make = fn(rows::Shape, usize) -> Result<bench::Bench>;
        let benches: [(&str, Make); 4] = [
            ("capture", capture::bench),
            ("capture-grpc", grpc::bench),
            ("restore-sst", restore::bench),
            ("restore-apply", apply::bench),
        ];
        for (path, make) in benches {
            if wanted(&named(path)) {
                make(shape, args.megabytes)?.run(rounds)?;
            }
        }
    }
    if wanted("growth") {
        growth::run(args.regions, args.megabytes)?;
    }
    if wanted("pause") {
        pause::run(args.regions)?;
    }
    match ran {
        0 => Err(format!("no bench has a name that begins with {:?}", args.filter).into()),
        _ => Ok(()),
    }
}
