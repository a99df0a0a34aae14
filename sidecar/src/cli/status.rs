//! `status`: everything on one page, from PD and from the running sidecar.

use std::time::Duration;

use pitr_format::Ts;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{OutputArgs, PdArgs};
use super::log_status::{self, TaskReport};
use super::{Outcome, output};
use crate::admin::{SidecarStatus, client};
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::members::{self, StoreStatus};
use crate::time;

/// Where a sidecar listens unless told otherwise.
const DEFAULT_SIDECAR: &str = "127.0.0.1:20190";

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pd: PdArgs,
    /// Admin address of the sidecar. Default: 127.0.0.1:20190; when given, a sidecar that does not
    /// answer is a failure.
    #[arg(long, value_name = "HOST:PORT")]
    sidecar: Option<String>,
    /// Only this task.
    #[arg(long, value_name = "NAME")]
    task_name: Option<String>,
    /// Print the page again and again until interrupted.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s",
        value_parser = humantime::parse_duration)]
    watch: Option<Duration>,
    /// End with code 21 when a task lags by more than this.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_lag: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The whole story.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Report {
    /// Id of the cluster.
    cluster_id: u64,
    /// PD's time.
    now: time::Shown,
    /// Effective GC safepoint: history before it is gone.
    gc_safe_point: time::Shown,
    /// The running sidecar.
    sidecar: SidecarReport,
    /// Every store and its sidecar, as they say in PD's etcd.
    stores: Vec<StoreStatus>,
    /// Tasks as they stand in PD.
    tasks: Vec<TaskReport>,
}

/// What the sidecar said.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SidecarReport {
    /// Where it was asked.
    address: String,
    /// Why there is no page; null when there is.
    problem: Option<String>,
    /// Its page.
    page: Option<SidecarStatus>,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let Some(every) = args.watch else {
        let (report, silent) = look(&args).await?;
        args.output.show(&report, || text(&report))?;
        return judge(&args, &report, silent);
    };
    loop {
        match look(&args).await {
            Ok((report, _)) if args.output.json => output::json_line(&report)?,
            Ok((report, _)) => {
                output::new_screen();
                output::data(&text(&report));
            }
            // PD may come back: that is what one watches for.
            Err(failure) if failure.exit() == Exit::TryAgain => {
                output::failure(&failure, args.output.json);
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(every.max(Duration::from_millis(100))).await;
    }
}

/// Reads everything; the failure is that of the sidecar, which does not keep the rest from being
/// shown.
async fn look(args: &Args) -> Result<(Report, Option<Failure>), Failure> {
    let address = args.sidecar.as_deref().unwrap_or(DEFAULT_SIDECAR);
    let security = args.pd.security()?;
    let cluster = Cluster::connect(&args.pd.pd, &security);
    let (cluster, page) = tokio::join!(cluster, client::status(&security, address));
    let cluster = cluster?;
    let cluster_id = cluster.pd.cluster_id();
    let stores = members::stores(&cluster).await?;
    let tasks = log_status::tasks(&cluster, &stores, args.task_name.as_deref()).await?;
    let page = page.and_then(|page| of_this_cluster(page, cluster_id, address));
    let (page, silent) = match page {
        Ok(page) => (Some(page), None),
        Err(failure) => (None, Some(failure)),
    };
    let report = Report {
        cluster_id,
        now: time::show(cluster.now().await?),
        gc_safe_point: time::show(cluster.pd.gc_safe_point().await?),
        sidecar: SidecarReport {
            address: address.to_owned(),
            problem: silent.as_ref().map(|failure| failure.what.clone()),
            page,
        },
        stores,
        tasks,
    };
    Ok((report, silent))
}

/// A sidecar of another cluster says nothing about this one.
fn of_this_cluster(
    page: SidecarStatus,
    cluster_id: u64,
    address: &str,
) -> Result<SidecarStatus, Failure> {
    match page.cluster_id {
        Some(other) if other != cluster_id => {
            let what = format!("the sidecar there belongs to cluster {other}, not {cluster_id}");
            Err(Failure::new(Code::SidecarSilent, what).at(address))
        }
        _ => Ok(page),
    }
}

fn judge(args: &Args, report: &Report, silent: Option<Failure>) -> Outcome {
    log_status::judge(&report.tasks, args.max_lag)?;
    match silent {
        Some(failure) if args.sidecar.is_some() => Err(failure),
        _ => Ok(Exit::Ok),
    }
}

fn text(report: &Report) -> String {
    let mut lines = vec![
        format!("cluster:      {}", report.cluster_id),
        format!("now:          {}", report.now),
        format!("GC safepoint: {}", report.gc_safe_point),
        sidecar_line(&report.sidecar),
    ];
    for store in &report.stores {
        let who = store.sidecar.as_ref().map(ToString::to_string);
        let who = who.as_deref().unwrap_or("no sidecar: nothing is captured");
        lines.push(format!("store {}:      {who}", store.store_id));
    }
    if report.tasks.is_empty() {
        lines.push("\nno task is registered".to_owned());
    }
    for task in &report.tasks {
        lines.push(String::new());
        let page = report.sidecar.page.as_ref();
        task_lines(task, page, &mut lines);
    }
    lines.join("\n")
}

fn sidecar_line(sidecar: &SidecarReport) -> String {
    let what = match (&sidecar.page, &sidecar.problem) {
        (Some(page), _) => {
            let waits = match page.waiting_for.is_empty() {
                true => String::new(),
                false => format!(", waits for {}", page.waiting_for),
            };
            let store = page.store_id.map(|id| format!(", store {id}"));
            format!(
                "version {}{}{waits}",
                page.version,
                store.unwrap_or_default()
            )
        }
        (None, problem) => problem.clone().unwrap_or_default(),
    };
    format!("sidecar:      {} at {}", what, sidecar.address)
}

fn task_lines(task: &TaskReport, page: Option<&SidecarStatus>, lines: &mut Vec<String>) {
    lines.push(format!("task {}: {}", task.name, task.status));
    lines.push(format!("  storage:     {}", task.storage));
    let start = time::show(Ts::new(task.start_ts));
    lines.push(format!("  recoverable: {start}"));
    lines.push(format!("           to: {}", task.checkpoint_time));
    lines.push(format!("  lag:         {:.1} s", task.lag_seconds));
    if let Some(pause) = &task.extra_pause_information {
        lines.push(format!("  paused:      {}", pause.one_line()));
    }
    for error in &task.last_errors {
        lines.push(format!("  error:       {error}"));
    }
    lines.extend(task.note_of_unproven().map(|note| format!("  {note}")));
    for line in members::table(&task.stores) {
        lines.push(format!("  {line}"));
    }
    lines.extend(members::holds(&task.stores).map(|line| format!("  {line}")));
    let Some(here) = page.and_then(|page| page.tasks.get(&task.name)) else {
        return;
    };
    lines.push(format!("  here:        {}", here.state));
    if let Some(held) = &here.held_by {
        lines.push(format!("  held by:     {held}"));
    }
    lines.push(format!(
        "  rate:        {:.0} events/s, {} events, {} in {} flushes",
        here.events_per_second,
        here.events,
        output::bytes(here.bytes),
        here.flushes
    ));
    lines.push(format!(
        "  memory:      {} of {}",
        output::bytes(here.buffered_bytes),
        output::bytes(here.memory_budget_bytes)
    ));
    let flushed = here.last_flush.as_deref().unwrap_or("none yet");
    lines.push(format!("  last flush:  {flushed}"));
}
