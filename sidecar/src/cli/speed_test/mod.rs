//! `speed-test`: what this machine and a storage can do, so that a slow backup or restore can be
//! compared with its limits. Writes only below a temporary prefix of its own, which is removed at
//! the end, after a failure and after an interruption; only a kill leaves it behind, and the next
//! run says so.

mod machine;
mod objects;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pitr_storage::SharedStorage;
use schemars::JsonSchema;
use serde::Serialize;

use self::machine::Stage;
use self::objects::{Measured, Workload};
use super::args::OutputArgs;
use super::interrupt::Interrupt;
use super::{Outcome, output, progress};
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::storage;

/// Beginning of the names of all temporary objects.
pub const PREFIX: &str = "tikv-pitr/speed-test-";
/// A local write that was not finished for that long belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// Arguments of `speed-test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A storage to measure; without it only the machine is.
    #[arg(short = 's', long, value_name = "URL")]
    storage: Option<String>,
    /// Time for each stage of the machine.
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Small objects that latencies are measured with.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    objects: u32,
    /// MiB of each of the large objects that throughput is measured with.
    #[arg(long, value_name = "MIB", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    large: u32,
    /// Remove what runs left behind that were killed. No other `speed-test` may run on the storage.
    #[arg(long, requires = "storage")]
    remove_leftovers: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a machine and a storage can do.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Each stage on one thread of this machine.
    machine: Vec<Stage>,
    /// The storage, if one was given.
    storage: Option<StorageReport>,
}

/// What a storage can do.
#[derive(Debug, Serialize, JsonSchema)]
struct StorageReport {
    /// The storage, without credentials.
    storage: String,
    /// What was measured.
    #[serde(flatten)]
    measured: Measured,
    /// Objects that killed runs left behind.
    leftovers: u64,
    /// Whether they were removed.
    leftovers_removed: bool,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    // The storage is opened first: a wrong URL should not cost the time of the machine's part.
    let storage = args.storage.as_deref().map(storage::open).transpose()?;
    let machine = measure_machine(args.time, &mut interrupt).await?;
    let storage = match storage {
        Some(storage) => Some(measure_storage(&storage, &args, &machine, &mut interrupt).await?),
        None => None,
    };
    let report = Report { machine, storage };
    args.output.show(&report, || text(&report))?;
    if let Some(storage) = &report.storage {
        say_leftovers(storage);
    }
    Ok(Exit::Ok)
}

async fn measure_machine(time: Duration, interrupt: &mut Interrupt) -> Result<Vec<Stage>, Failure> {
    let bar = progress::spinner("measuring the machine");
    let work = tokio::task::spawn_blocking(move || machine::measure(time));
    let stages = tokio::select! {
        stages = work => stages.map_err(|error| Failure::from_error(Code::Internal, &error))?,
        () = interrupt.received() => Err(interrupted("nothing was written")),
    };
    bar.finish_and_clear();
    stages
}

async fn measure_storage(
    storage: &SharedStorage,
    args: &Args,
    machine: &[Stage],
    interrupt: &mut Interrupt,
) -> Result<StorageReport, Failure> {
    let leftovers = objects::listed(storage, PREFIX).await?;
    if args.remove_leftovers {
        objects::remove(storage, &leftovers).await?;
        storage.remove_leftovers(ABANDONED).await?;
    }
    let workload = Workload {
        prefix: format!("{PREFIX}{}/", uuid::Uuid::new_v4()),
        small: args.objects,
        large_bytes: u64::from(args.large) << 20,
        memory_copy: machine.first().map_or(0.0, |stage| stage.mb_per_second),
    };
    let bar = progress::spinner("measuring the storage; temporary objects are removed at the end");
    let measured = run_and_clean(storage, &workload, interrupt).await;
    bar.finish_and_clear();
    Ok(StorageReport {
        storage: storage.uri(),
        measured: measured?,
        leftovers: leftovers.len() as u64,
        leftovers_removed: args.remove_leftovers,
    })
}

/// Measures, and removes every temporary object however that ends. At the first signal the call
/// that is under way is waited for, since it may still write; at the second nothing is.
async fn run_and_clean(
    storage: &SharedStorage,
    workload: &Workload,
    interrupt: &mut Interrupt,
) -> Result<Measured, Failure> {
    let stop = AtomicBool::new(false);
    let left = format!("temporary objects may be left below {}", workload.prefix);
    let measured = {
        let work = objects::measure(storage, workload, &stop);
        tokio::pin!(work);
        tokio::select! {
            measured = &mut work => measured,
            () = interrupt.received() => {
                output::say("interrupted: temporary objects are being removed");
                stop.store(true, Ordering::Relaxed);
                tokio::select! {
                    _ = &mut work => Err(interrupted("all temporary objects were removed")),
                    () = interrupt.received() => return Err(interrupted(&left)),
                }
            }
        }
    };
    let cleaned = tokio::select! {
        cleaned = objects::clean(storage, &workload.prefix) => cleaned,
        () = interrupt.received() => return Err(interrupted(&left)),
    };
    match (measured, cleaned) {
        (Ok(measured), Ok(())) => Ok(measured),
        (Err(failure), Ok(())) => Err(failure),
        (_, Err(failure)) => Err(failure.effect(left)),
    }
}

fn interrupted(effect: &str) -> Failure {
    Failure::new(Code::Interrupted, "interrupted").effect(effect)
}

fn say_leftovers(report: &StorageReport) {
    let StorageReport { leftovers, .. } = report;
    match (leftovers, report.leftovers_removed) {
        (0, _) => {}
        (_, true) => output::say(&format!("{leftovers} objects of killed runs were removed")),
        (_, false) => output::say(&format!(
            "warning: killed runs left {leftovers} objects below {PREFIX}*; `--remove-leftovers` \
             removes them"
        )),
    }
}

fn text(report: &Report) -> String {
    let head = format!("{:<22} {:>12} {:>22}", "STAGE", "MB/s", "OF MEMORY COPY");
    let mut lines = vec![head];
    let line = |name: &str, mb: f64, ratio: f64| format!("{name:<22} {mb:>12.1} {ratio:>22.4}");
    let machine = report.machine.iter();
    lines.extend(machine.map(|stage| line(&stage.name, stage.mb_per_second, stage.of_memory_copy)));
    let Some(storage) = &report.storage else {
        return lines.join("\n");
    };
    let measured = &storage.measured;
    for (name, speed) in [
        ("storage put", &measured.put_large),
        ("storage get", &measured.get_large),
    ] {
        lines.push(line(name, speed.mb_per_second, speed.of_memory_copy));
    }
    lines.push(String::new());
    lines.push(format!("storage: {}", storage.storage));
    lines.push(format!(
        "{:<10} {:>8} {:>10} {:>10} {:>10}",
        "CALL", "CALLS", "p50 ms", "p99 ms", "max ms"
    ));
    for (name, latency) in [
        ("put", &measured.put),
        ("get", &measured.get),
        ("list", &measured.list),
        ("delete", &measured.delete),
    ] {
        lines.push(format!(
            "{name:<10} {:>8} {:>10.2} {:>10.2} {:>10.2}",
            latency.calls, latency.p50_ms, latency.p99_ms, latency.max_ms
        ));
    }
    lines.join("\n")
}
