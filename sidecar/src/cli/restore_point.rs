//! `restore point`: an archive into an empty cluster, up to a point in time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pitr_budget::MemoryBudget;
use pitr_format::Ts;
use pitr_format::digest::ScanDigest;
use pitr_restore_worker::restore::{Stage, target_ranges};
use pitr_restore_worker::rewrite::Rewrite;
use pitr_restore_worker::{Archive, Env, Plan, Progress, Report, RestoreOptions};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, PdArgs, StorageArgs};
use super::interrupt::Interrupt;
use super::{Outcome, output, progress};
use crate::cluster::{Cluster, now_or_local};
use crate::codes::Code;
use crate::config::ByteSize;
use crate::failure::{Exit, Failure};
use crate::ranges::RawRange;
use crate::restore::{self, checks, import_mode::ImportMode, target::ClusterTarget};
use crate::time::{self, Point};
use crate::{scan, storage};

/// Arguments of `restore point`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    #[command(flatten)]
    storage: StorageArgs,
    /// The moment: TSO, `2026-11-22T09:10:28+08:00`, `2026-11-22 09:10:28+0800`, `-10m` or
    /// `latest`. Default: `latest`.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    restored_ts: Option<String>,
    /// Restore the changes since the log's start although the archive does not prove that there
    /// was nothing before.
    #[arg(long)]
    log_only: bool,
    /// Print the plan and stop.
    #[arg(long)]
    dry_run: bool,
    /// Where sort runs and SST files wait. Default: the system's temporary directory.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// Bound of the list of slices to be read (a quarter of it), sort runs and fetched slices in
    /// memory; more of the latter spills to the temporary directory.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    memory: ByteSize,
    #[command(flatten)]
    output: OutputArgs,
}

/// What the verb prints: the plan with `--dry-run`, else what was restored.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Printed {
    /// With `--dry-run`.
    Plan(PlanReport),
    /// Without.
    Restored(RestoreReport),
}

/// What would be restored.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PlanReport {
    /// The archive, without credentials.
    archive: String,
    /// Changes after this are restored.
    start: time::Shown,
    /// Changes up to this, inclusive, are restored.
    restored: time::Shown,
    /// Slices to read.
    slices: u64,
    /// Records in them.
    records: u64,
    /// Their bytes as stored.
    stored_bytes: u64,
    /// Their bytes without compression.
    plain_bytes: u64,
    /// Objects to read from.
    objects: u64,
    /// Read requests to them.
    requests: usize,
}

/// What was restored.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RestoreReport {
    /// The archive, without credentials.
    archive: String,
    /// The target.
    cluster_id: u64,
    /// Changes after this were restored.
    start: time::Shown,
    /// Changes up to this, inclusive, were restored.
    restored: time::Shown,
    /// Records read from the archive.
    records_read: u64,
    /// Records that were left out, by reason.
    filtered: FilteredReport,
    /// Records that came twice.
    duplicates: u64,
    /// Records written to the target.
    records_written: u64,
    /// Their bytes.
    bytes_written: u64,
    /// SST files that the target took.
    files: u64,
    /// Time of the restore without the proof.
    seconds: f64,
    /// Bytes written per second, in 10^6.
    mb_per_second: f64,
    /// Digest over all records written.
    record_digest: String,
    /// Digest over what a reader of the target sees at the restored time.
    scan_digest: String,
    /// Keys that such a reader sees.
    keys: u64,
    /// Whether the target shows, then and now, what the archive holds.
    verified: bool,
}

/// Records left out.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct FilteredReport {
    /// All of them.
    total: u64,
    /// Committed before the start or after the restored time.
    out_of_window: u64,
    /// Locks and rollbacks hold no data.
    lock_or_rollback: u64,
    /// Keys outside of the ranges.
    out_of_range: u64,
    /// Values that no record to restore refers to.
    unreferenced_value: u64,
}

/// Runs the verb. SIGINT and SIGTERM end it in order at every point: the target's stores leave
/// import mode, and the message says what the target holds.
pub async fn run(args: Args) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    let ready = tokio::select! {
        ready = prepare(&args) => ready?,
        () = interrupt.received() => return Err(restore::interrupted(false, 0)),
    };
    match ready {
        Some(ready) => ready.restore(&args, interrupt).await,
        None => Ok(Exit::Ok),
    }
}

/// A restore that may begin.
struct Ready {
    archive: Archive,
    plan: Plan,
    cluster: Cluster,
    restored: Ts,
}

/// Everything up to the first byte; `None` if the plan was all that was asked for.
async fn prepare(args: &Args) -> Result<Option<Ready>, Failure> {
    let point = args.restored_ts.as_deref().map(Point::parse).transpose();
    let point = point.map_err(|error| Failure::from_error(Code::BadTime, &error))?;
    let env = Env::system(MemoryBudget::new(args.memory.get()));
    let archive = Archive::open(storage::open_existing(&args.storage.storage)?, env).await?;
    let now = match point {
        Some(Point::Ago(_)) => now_or_local(&args.pd.pd, &args.pd.security()?).await,
        _ => time::local_now(),
    };
    let restored = restore::restored_ts(&archive, point.as_ref(), now)?;
    let plan = restore::plan(&archive, restored, args.log_only).await?;
    if args.dry_run {
        show_plan(args, &plan)?;
        return Ok(None);
    }
    let cluster = args.pd.connect().await?;
    let source = archive
        .info
        .backup_meta
        .as_ref()
        .map(|meta| meta.cluster_id);
    let ranges = target_ranges(&plan, &Rewrite::identity());
    checks::target(&cluster, source, restored, &ranges).await?;
    Ok(Some(Ready {
        archive,
        plan,
        cluster,
        restored,
    }))
}

impl Ready {
    async fn restore(self, args: &Args, mut interrupt: Interrupt) -> Outcome {
        let Ready {
            archive,
            plan,
            cluster,
            restored,
        } = self;
        output::say(&format!(
            "restoring {} to {}",
            plan.uri,
            time::line(restored)
        ));
        let began = Instant::now();
        let report = write(args, &archive, &plan, &cluster, &mut interrupt).await?;
        let elapsed = began.elapsed();
        output::say(&format!(
            "restored {} records in {:.1} s ({:.1} MB/s); reading the target for the proof",
            report.written,
            elapsed.as_secs_f64(),
            output::mb_per_second(report.written_bytes, elapsed),
        ));
        let everything = [RawRange::default()];
        let proof = tokio::select! {
            proof = proof(&cluster, &everything, restored) => proof,
            () = interrupt.received() => Err(Failure::new(Code::Interrupted, "ended by a signal")),
        };
        let proof = proof.map_err(unverified)?;
        print(args, &plan, &cluster, &report, elapsed, &proof)?;
        judge(&proof, &report.expected_scan)
    }
}

/// What readers of the target see.
struct Proof {
    /// At the restored ts.
    then: ScanDigest,
    /// Now: the same, unless the target holds newer records that a reader at the restored ts does
    /// not see, for example deletes of a former life that hide what was restored.
    now: ScanDigest,
}

impl Proof {
    fn holds(&self, expected: &ScanDigest) -> bool {
        self.then == *expected && self.now == *expected
    }
}

async fn proof(cluster: &Cluster, ranges: &[RawRange], restored: Ts) -> Result<Proof, Failure> {
    let now = cluster.now().await?;
    let bar = progress::counter("keys read for the proof");
    let seen = |keys| bar.set_position(keys);
    Ok(Proof {
        then: scan::digest(cluster, ranges, restored, seen).await?,
        now: scan::digest(cluster, ranges, now, seen).await?,
    })
}

fn judge(proof: &Proof, expected: &ScanDigest) -> Outcome {
    if proof.holds(expected) {
        return Ok(Exit::Ok);
    }
    let line = |digest: &ScanDigest| format!("{digest} over {} keys", digest.count());
    let (what, seen) = match proof.then == *expected {
        true => (
            "the target does not show now what it shows at the restored time: \
             it held newer records before, or somebody writes to it",
            &proof.now,
        ),
        false => (
            "the target does not show what the archive holds",
            &proof.then,
        ),
    };
    Err(Failure::new(Code::TargetDiffers, what)
        .at(format!(
            "scan digest {}, expected {}",
            line(seen),
            line(expected)
        ))
        .effect("do not use the target")
        .action("restore again into a new, empty cluster; make sure that nobody writes to it"))
}

/// The data is there, but the proof could not be made.
fn unverified(failure: Failure) -> Failure {
    Failure {
        code: Code::ProofNotMade,
        what: format!(
            "restored, but the target could not be read for the proof: {}",
            failure.what
        ),
        ..failure
    }
    .effect("the record digests agree; what a reader sees was not compared")
    .action("run `tikv-pitr verify scan` on the target and on the source and compare")
}

fn show_plan(args: &Args, plan: &Plan) -> Outcome {
    let report = Printed::Plan(PlanReport {
        archive: plan.uri.clone(),
        start: time::show(plan.start),
        restored: time::show(plan.restored),
        slices: plan.write.slices + plan.default.slices,
        records: plan.write.records + plan.default.records,
        stored_bytes: plan.write.stored_bytes + plan.default.stored_bytes,
        plain_bytes: plan.write.plain_bytes + plan.default.plain_bytes,
        objects: plan.reads.objects(),
        requests: plan.reads.len(),
    });
    args.output.show(&report, || {
        let (from, to) = (time::line(plan.start), time::line(plan.restored));
        format!("{plan}\nfrom:     {from}\nto:       {to}")
    })?;
    Ok(Exit::Ok)
}

/// Runs the restore and shows how far it is.
async fn write(
    args: &Args,
    archive: &Archive,
    plan: &Plan,
    cluster: &Cluster,
    interrupt: &mut Interrupt,
) -> Result<Report, Failure> {
    let temp_dir = args.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
    let options = RestoreOptions::rocks(temp_dir, archive.env().clone());
    let mode = ImportMode::enter(cluster).await;
    let progress = Arc::new(Progress::default());
    let target = ClusterTarget::new(cluster);
    let storage = archive.storage().clone();
    let mut restoring = Box::pin(pitr_restore_worker::restore(
        plan,
        storage,
        &target,
        options,
        progress.clone(),
    ));
    let bar = progress::bytes();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let ended = loop {
        tokio::select! {
            ended = &mut restoring => break Some(ended),
            () = interrupt.received() => break None,
            _ = tick.tick() => draw(&bar, &progress),
        }
    };
    // Cancels what still runs, so that nothing is ingested after the way back to normal mode.
    drop(restoring);
    bar.finish_and_clear();
    mode.leave().await;
    let (touched, written) = (progress.target_touched(), progress.ingested_amount().1);
    match ended {
        Some(ended) => ended.map_err(|error| restore::restore_failure(&error, touched, written)),
        None => Err(restore::interrupted(touched, written)),
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let (read, total) = progress.plain_bytes();
    let (ingested, _) = progress.ingested_amount();
    let (message, position) = match progress.stage() {
        Stage::Waiting => ("waiting", 0),
        Stage::Reading => ("reading", read),
        Stage::Ingesting | Stage::Done => ("ingesting", ingested.min(total)),
    };
    bar.set_message(message);
    bar.set_length(total);
    bar.set_position(position);
}

fn print(
    args: &Args,
    plan: &Plan,
    cluster: &Cluster,
    report: &Report,
    elapsed: Duration,
    proof: &Proof,
) -> Result<(), Failure> {
    let verified = proof.holds(&report.expected_scan);
    let seen = &proof.then;
    let printed = Printed::Restored(RestoreReport {
        archive: plan.uri.clone(),
        cluster_id: cluster.pd.cluster_id(),
        start: time::show(report.start),
        restored: time::show(report.restored),
        records_read: report.read,
        filtered: FilteredReport {
            total: report.filtered.total(),
            out_of_window: report.filtered.out_of_window,
            lock_or_rollback: report.filtered.lock_or_rollback,
            out_of_range: report.filtered.out_of_range,
            unreferenced_value: report.filtered.unreferenced_value,
        },
        duplicates: report.duplicates,
        records_written: report.written,
        bytes_written: report.written_bytes,
        files: report.ssts,
        seconds: elapsed.as_secs_f64(),
        mb_per_second: output::mb_per_second(report.written_bytes, elapsed),
        record_digest: report.digest_out.to_string(),
        scan_digest: seen.to_string(),
        keys: seen.count(),
        verified,
    });
    args.output.show(&printed, || {
        let verified = if verified { "yes" } else { "no" };
        format!(
            "{report}\nrestored to: {}\nscan digest: {seen} over {} keys\nverified:    {verified}",
            time::line(report.restored),
            seen.count()
        )
    })
}
