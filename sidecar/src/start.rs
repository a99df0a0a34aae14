//! Registering a task: the steps of `br log start` (pingcap/tidb `br/pkg/task/stream.go`) in
//! their order, with a probe whether the ranges were empty. Called by `cli::log_start`.
//!
//! Nothing is visible to a sidecar before the last step, one transaction in PD's etcd. Before it
//! the archive's head is written, `backupmeta` last, so that an interrupted start can be repeated.

use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::tasks::{Task, TaskError, keys};
use pitr_format::Ts;
use pitr_format::start_probe::StartProbe;
use pitr_proto::backup::{CompressionType, StreamBackupTaskInfo};
use pitr_proto::metapb;
use pitr_restore_worker::archive::ArchiveInfo;
use uuid::Uuid;

use crate::archive::{self, Found};
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::config::Source;
use crate::failure::Failure;
use crate::ranges::RawRange;
use crate::scan;
use crate::time::{self, Point};
use crate::{fitness, juicefs, own_log_backup};

/// BR's "no end".
const NO_END: u64 = 999_999_999_999_999_999;
/// Time to live of the safepoint that holds GC until the sidecars hold it.
const START_TTL: Duration = Duration::from_secs(1800);
/// Tasks of BR that must not run at the same time as a log backup begins.
const BRIE_IMPORT: &[u8] = b"/tidb/brie/import";

/// What to register.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name of the task.
    pub task: String,
    /// Where its log goes.
    pub storage_url: String,
    /// Begin of the log; now if `None`.
    pub start: Option<Point>,
    /// End of the log; none if `None`.
    pub end: Option<Point>,
    /// Raw ranges, sorted, not overlapping.
    pub ranges: Vec<RawRange>,
    /// Who will tail the stores.
    pub source: Source,
    /// Also on a TiKV that can abort under a change stream.
    pub allow_unsafe_version: bool,
    /// Also with keys that a change stream loses.
    pub allow_r: bool,
}

/// What was registered.
#[derive(Clone, Debug)]
pub struct Started {
    /// The storage, without secrets.
    pub storage: String,
    /// Begin of this task's log.
    pub start_ts: Ts,
    /// Its ranges.
    pub ranges: Vec<RawRange>,
    /// It goes on with an archive that was there.
    pub restarted: bool,
    /// What the probe of a first start found.
    pub ranges_were_empty: Option<bool>,
    /// What the caller should read.
    pub notes: Vec<String>,
}

/// Registers the task.
pub async fn start(cluster: &Cluster, request: Request) -> Result<Started, Failure> {
    keys::check_name(&request.task)?;
    let storage = crate::storage::open(&request.storage_url)?;
    let backend = pitr_storage::backend_of_url(&request.storage_url)?;
    let stores = cluster.tikv_stores().await?;
    refuse_versions(&stores, &request)?;
    refuse_running(cluster, &request, &storage.uri()).await?;
    refuse_import(cluster).await?;
    let now = cluster.now().await?;
    let end_ts = resolve_end(request.end.as_ref(), now)?;
    let mut notes = notes_of_source(cluster, &request, &stores, now).await?;
    notes.extend(juicefs::notes(cluster, &request.ranges, now).await?);
    let mut started = Started {
        storage: storage.uri(),
        start_ts: resolve_start(request.start.as_ref(), now)?,
        ranges: request.ranges.clone(),
        restarted: false,
        ranges_were_empty: None,
        notes,
    };
    match archive::look(&storage).await? {
        Found::Archive(info) => {
            resume(cluster, &request, &info, &mut started)?;
            hold_gc(cluster, started.start_ts).await?;
        }
        Found::Nothing { locked } => {
            hold_gc(cluster, started.start_ts).await?;
            archive::claim(&storage, locked).await?;
            let empty = scan::is_empty(cluster, &request.ranges, started.start_ts).await?;
            started.ranges_were_empty = Some(empty);
            if !empty {
                started.notes.push(
                    "the ranges were not empty: a restore needs a base snapshot as well, or \
                     `--log-only` to restore the changes alone"
                        .to_owned(),
                );
            }
            let version = cluster_version(&stores);
            let cluster_id = cluster.pd.cluster_id();
            let found = StartProbe {
                task: request.task.clone(),
                start_ts: started.start_ts,
                empty,
                ranges: request.ranges.clone(),
            };
            archive::create(&storage, cluster_id, &version, &found).await?;
        }
    }
    let info = StreamBackupTaskInfo {
        storage: Some(backend),
        start_ts: started.start_ts.get(),
        end_ts,
        name: request.task.clone(),
        table_filter: vec!["*.*".to_owned()],
        compression_type: CompressionType::Zstd as i32,
        security_config: None,
    };
    let task = Task {
        name: request.task,
        info,
        ranges: request.ranges,
        paused: false,
    };
    cluster.tasks.start(&task).await?;
    Ok(started)
}

/// Which versions will do depends on who tails them.
fn refuse_versions(stores: &[metapb::Store], request: &Request) -> Result<(), Failure> {
    match request.source {
        Source::Builtin => fitness::backs_up_by_itself(stores),
        Source::Cdc => {
            fitness::new_enough(stores)?;
            match request.allow_unsafe_version {
                true => Ok(()),
                false => fitness::safe_version(stores),
            }
        }
    }
}

/// Refuses what whoever tails would not log, or not for long; else what the caller should know.
async fn notes_of_source(
    cluster: &Cluster,
    request: &Request,
    stores: &[metapb::Store],
    now: Ts,
) -> Result<Vec<String>, Failure> {
    match request.source {
        Source::Builtin => own_log_backup::check(cluster, stores, &request.ranges, now).await,
        Source::Cdc => {
            if !request.allow_r {
                refuse_keys_that_get_lost(cluster, &request.ranges, now).await?;
            }
            Ok(Vec::new())
        }
    }
}

async fn refuse_keys_that_get_lost(
    cluster: &Cluster,
    ranges: &[RawRange],
    now: Ts,
) -> Result<(), Failure> {
    let unproven = crate::ranges::unproven(ranges);
    if scan::is_empty(cluster, &unproven, now).await? {
        return Ok(());
    }
    let shown: Vec<_> = unproven.iter().map(crate::ranges::show).collect();
    let what = "there are keys that begin with `r`, whose changes TiKV's change stream loses";
    Err(Failure::new(Code::KeysNotCaptured, what).at(shown.join(" ")))
}

/// An archive is that of one task: a checkpoint in it speaks for all of its log.
async fn refuse_running(cluster: &Cluster, request: &Request, uri: &str) -> Result<(), Failure> {
    let (tasks, _) = cluster.tasks.list().await?;
    let asked = Task {
        name: request.task.clone(),
        info: StreamBackupTaskInfo::default(),
        ranges: request.ranges.clone(),
        paused: false,
    };
    // The transaction at the end refuses it too; nothing should have been written by then.
    let in_the_way = |task: &Task| {
        let same_storage = crate::storage::uri_of_task(&task.info) == uri;
        // TiKV's own log backup knows one task at a time.
        let only_one = request.source == Source::Builtin;
        only_one || same_storage || task.name == asked.name || task.overlaps(&asked)
    };
    match tasks.into_iter().find(in_the_way) {
        None => Ok(()),
        Some(task) => Err(TaskError::Exists {
            existing: task.name,
        }
        .into()),
    }
}

async fn refuse_import(cluster: &Cluster) -> Result<(), Failure> {
    let (imports, _) = cluster.etcd.get_prefix(BRIE_IMPORT).await?;
    match imports.first() {
        None => Ok(()),
        Some(import) => Err(
            Failure::new(Code::ImportRunning, "an import or a restore is running")
                .at(String::from_utf8_lossy(&import.key).into_owned())
                .effect("nothing was changed; what it writes would not be in the log")
                .action("wait for its end"),
        ),
    }
}

fn resolve_start(start: Option<&Point>, now: Ts) -> Result<Ts, Failure> {
    let Some(point) = start else {
        return Ok(now);
    };
    let ts = point
        .resolve(now, Some(now))
        .map_err(|error| Failure::from_error(Code::BadTime, &error))?;
    if ts > now || ts.is_zero() {
        let what = format!("start-ts {} is not in the past", time::line(ts));
        return Err(Failure::new(Code::BadTime, what)
            .at(format!("PD's now is {}", time::line(now)))
            .action("leave `--start-ts` out to start now"));
    }
    Ok(ts)
}

/// A log that ends before it begins would promise everything at once.
fn resolve_end(end: Option<&Point>, now: Ts) -> Result<u64, Failure> {
    let Some(point) = end else {
        return Ok(NO_END);
    };
    let ts = point
        .resolve(now, Some(now))
        .map_err(|error| Failure::from_error(Code::BadTime, &error))?;
    if ts <= now {
        let what = format!("end-ts {} is not in the future", time::line(ts));
        return Err(Failure::new(Code::BadTime, what)
            .at(format!("PD's now is {}", time::line(now)))
            .action("leave `--end-ts` out for a log without an end"));
    }
    Ok(ts.get())
}

/// The ranges that the archive was begun with. Only our own starts tell them; an archive of others
/// that holds anything has the two that BR registers. `None` = it holds nothing yet.
fn begun_with(info: &ArchiveInfo) -> Option<Vec<RawRange>> {
    if let Some(probe) = &info.start_probe {
        return Some(probe.ranges.clone());
    }
    let range = |start: &'static [u8], end: &'static [u8]| -> RawRange {
        (Bytes::from_static(start), Bytes::from_static(end))
    };
    info.log_max
        .map(|_| vec![range(b"m", b"n"), range(b"t", b"u")])
}

/// The task goes on where the archive ends.
fn resume(
    cluster: &Cluster,
    request: &Request,
    info: &ArchiveInfo,
    started: &mut Started,
) -> Result<(), Failure> {
    let own = cluster.pd.cluster_id();
    if let Some(meta) = &info.backup_meta
        && meta.cluster_id != own
    {
        return Err(archive::other_cluster(&info.uri, meta.cluster_id, own));
    }
    if let Some(begun) = begun_with(info)
        && begun != request.ranges
    {
        let old = begun.iter().map(crate::ranges::show).collect::<Vec<_>>();
        return Err(Failure::new(
            Code::OtherRanges,
            "the archive was begun with other key ranges",
        )
        .at(format!("{}: {}", info.uri, old.join(" ")))
        .effect("nothing was changed; keys of new ranges would be missing from the log's begin on")
        .action("give the same ranges, or another storage"));
    }
    let end = info.log_max.unwrap_or(Ts::ZERO).max(info.log_min());
    if request.start.is_some() && started.start_ts != end {
        started.notes.push(format!(
            "--start-ts is not used: the archive exists and is continued from its end, {}",
            time::line(end)
        ));
    }
    started.start_ts = end;
    started.restarted = true;
    Ok(())
}

/// Keeps GC below `start_ts` until the sidecars do, and makes sure that it was not too late.
async fn hold_gc(cluster: &Cluster, start_ts: Ts) -> Result<(), Failure> {
    let id = format!("br-{}", Uuid::new_v4());
    let held = cluster.pd.hold_gc(&id, START_TTL, start_ts.prev());
    let min = held.await?;
    let gc = cluster.pd.gc_safe_point().await?;
    if gc < start_ts && min < start_ts {
        return Ok(());
    }
    let gc = gc.max(min);
    Err(Failure::new(
        Code::HistoryGone,
        format!("history at {} may be removed already", time::line(start_ts)),
    )
    .at(format!("GC safepoint {}", time::line(gc)))
    .effect("nothing was changed; a log from there would have a hole")
    .action("start a new log now into an empty storage, after a full copy"))
}

fn cluster_version(stores: &[metapb::Store]) -> String {
    let versions = stores.iter().map(|store| store.version.clone());
    versions.min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Ts = Ts::compose(1_795_313_719_643, 7);

    #[test]
    fn the_start_is_now_unless_a_past_point_is_given() {
        assert_eq!(resolve_start(None, NOW), Ok(NOW));
        assert_eq!(
            resolve_start(Some(&Point::Tso(Ts::new(9))), NOW),
            Ok(Ts::new(9))
        );
        assert_eq!(resolve_start(Some(&Point::Latest), NOW), Ok(NOW));
        for wrong in [NOW.next(), Ts::ZERO] {
            let failure = resolve_start(Some(&Point::Tso(wrong)), NOW).unwrap_err();
            assert_eq!(failure.code, Code::BadTime);
        }
    }
}
