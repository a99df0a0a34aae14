//! The command line: verbs, exit codes, what goes to stdout and what to stderr. One file a verb;
//! a verb returns an [`Exit`] or a [`Failure`], and only this file prints failures and ends the
//! process.

mod archive;
mod args;
mod completions;
mod config;
#[cfg(test)]
mod documents;
mod explain;
mod interrupt;
mod log_list;
mod log_metadata;
mod log_pause;
mod log_resume;
mod log_start;
mod log_status;
mod log_stop;
mod logs;
mod man;
mod output;
mod progress;
mod restore_point;
mod serve;
mod speed_test;
mod status;
mod verify_data;
mod verify_scan;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::interrupt::Interrupt;
use crate::codes::Code;
use crate::failure::{Exit, Failure};

/// Name of the binary.
const NAME: &str = "tikv-pitr";

/// Point-in-time recovery for TiKV: keeps a log of every change in object storage and brings a
/// store back to a chosen second.
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the sidecar of one store.
    Serve(serve::Args),
    /// Show everything on one page: lag and what holds it, rate, memory, recoverable window.
    Status(status::Args),
    /// Life cycle of a log backup.
    #[command(subcommand)]
    Log(LogVerb),
    /// Bring data back.
    #[command(subcommand)]
    Restore(RestoreVerb),
    /// Check an archive or a cluster.
    #[command(subcommand)]
    Verify(VerifyVerb),
    /// Look into an archive: objects, totals, records.
    #[command(subcommand)]
    Archive(archive::Verb),
    /// Measure this machine and a storage.
    SpeedTest(speed_test::Args),
    /// Look at a configuration file without starting anything.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print the page of an error code; without a code, list all.
    Explain(explain::Args),
    /// Print the script that completes verbs and flags in a shell.
    Completions(completions::Args),
    /// Print the manual pages, or write them to a directory.
    Man(man::Args),
    /// Print version, commit and the forms of data that this binary knows.
    Version(version::Args),
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    /// Register a task, so that the sidecars begin to write its log.
    Start(log_start::Args),
    /// Stop tailing for a while; GC is held and the checkpoint stays.
    Pause(log_pause::Args),
    /// Go on with a paused task from its checkpoint.
    Resume(log_resume::Args),
    /// List the registered tasks.
    List(log_list::Args),
    /// Show the tasks and how far their logs reach.
    Status(log_status::Args),
    /// Remove a task; its archive stays.
    Stop(log_stop::Args),
    /// Show the time window that an archive covers.
    Metadata(log_metadata::Args),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Check a file.
    Check(config::FileArgs),
    /// Show every key with its value and where that comes from.
    Show(config::FileArgs),
    /// Print the JSON schema of the configuration.
    Schema(config::SchemaArgs),
}

#[derive(Debug, Subcommand)]
enum RestoreVerb {
    /// Restore an archive into an empty cluster, up to a point in time.
    Point(restore_point::Args),
}

#[derive(Debug, Subcommand)]
enum VerifyVerb {
    /// Check every object of an archive: digests, counts, bounds, what is missing or too much.
    Data(verify_data::Args),
    /// Print the digest over what a running cluster shows at one moment.
    Scan(verify_scan::Args),
}

/// What a verb gives back.
pub type Outcome = Result<Exit, Failure>;

/// Parses the arguments of the process, runs the verb and gives its exit code.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// [`main`] with the arguments given, program name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Looked for here as well, since a command line that cannot be parsed has to be answered too.
    let json = args.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => return end(Err(misused(&error)), json),
        Err(error) => {
            // Nothing is left to do when even that cannot be printed.
            let _ = error.print();
            let exit = match error.use_stderr() {
                true => Code::BadArguments.exit(),
                false => Exit::Ok,
            };
            return ExitCode::from(exit as u8);
        }
    };
    logs::init(matches!(&cli.verb, Verb::Serve(args) if args.json));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(Failure::from_error(Code::Internal, &error)), json),
    };
    let outcome = runtime.block_on(dispatch(cli.verb));
    // Threads that wait for a storage that hangs must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    end(outcome, json)
}

/// What clap found wrong, without its usage lines.
fn misused(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what);
    Failure::new(Code::BadArguments, what.replace('\n', " "))
}

async fn dispatch(verb: Verb) -> Outcome {
    match verb {
        Verb::Serve(args) => serve::run(args).await,
        Verb::Log(LogVerb::Start(args)) => interruptible(log_start::run(args)).await,
        Verb::Log(LogVerb::Status(args)) => interruptible(log_status::run(args)).await,
        Verb::Log(LogVerb::Stop(args)) => interruptible(log_stop::run(args)).await,
        Verb::Log(LogVerb::Metadata(args)) => interruptible(log_metadata::run(args)).await,
        Verb::Restore(RestoreVerb::Point(args)) => restore_point::run(args).await,
        Verb::Archive(verb) => interruptible(archive::run(verb)).await,
        Verb::SpeedTest(args) => speed_test::run(args).await,
        Verb::Status(args) => interruptible(status::run(args)).await,
        Verb::Log(LogVerb::Pause(args)) => interruptible(log_pause::run(args)).await,
        Verb::Log(LogVerb::Resume(args)) => interruptible(log_resume::run(args)).await,
        Verb::Log(LogVerb::List(args)) => interruptible(log_list::run(args)).await,
        Verb::Config(ConfigVerb::Check(args)) => config::check(args),
        Verb::Config(ConfigVerb::Show(args)) => config::show(args),
        Verb::Config(ConfigVerb::Schema(args)) => config::schema(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Completions(args) => completions::run(args),
        Verb::Man(args) => man::run(args),
        Verb::Version(args) => version::run(args),
        Verb::Verify(VerifyVerb::Data(args)) => interruptible(verify_data::run(args)).await,
        Verb::Verify(VerifyVerb::Scan(args)) => interruptible(verify_scan::run(args)).await,
    }
}

/// Ends a verb at SIGINT and SIGTERM. `serve`, `restore point` and `speed-test` have their own way.
async fn interruptible(verb: impl Future<Output = Outcome>) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    tokio::select! {
        outcome = verb => outcome,
        () = interrupt.received() => Err(Failure::new(Code::Interrupted, "interrupted")
            .effect("what was written so far stays; the verb can be run again")),
    }
}

fn end(outcome: Outcome, json: bool) -> ExitCode {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            output::failure(&failure, json);
            failure.exit()
        }
    };
    ExitCode::from(exit as u8)
}
