//! Moves GC where nobody else does: a cluster without TiDB whose clients were told to leave it alone.
//!
//! A round: everything older than the life time is given up, as far as no task of ours and no
//! safepoint or barrier of anybody holds it; the locks below are rolled back, alive or not, because
//! the versions that they are about to replace go; then storage may drop those. Only the elected
//! coordinator does it, asks for its election key before each of the two steps that cannot be taken
//! back, and moves nothing as long as it does not know the checkpoint of every task.
//!
//! Source: pingcap/tidb `pkg/store/gcworker/gc_worker.go`, tikv/client-go `tikv/gc.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::tasks::Task;
use pitr_format::{EncodedRange, Ts};
use tokio::time::sleep;

use crate::CoordinatorError;
use crate::coordinator::Locks;
use crate::desk::Shared;
use crate::policy::{Need, earlier};
use crate::status::GcRound;

/// Below these keys of PD's etcd TiDB servers register, which drive GC themselves.
const TIDB_SERVERS: [&str; 2] = ["/topology/tidb/", "/tidb/server/info/"];
/// A round that went wrong is tried again after this time, or after a round's if that is shorter.
const AGAIN: Duration = Duration::from_secs(60);

/// How GC is driven.
#[derive(Clone)]
pub struct GcDriver {
    /// What is older than this may go.
    pub life_time: Duration,
    /// Time between two rounds.
    pub run_interval: Duration,
    /// Rolls back every lock of ranges up to a ts, also of transactions that are alive.
    pub locks: Locks,
}

/// Why a round moved nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(
        "a TiDB server is registered ({key}) and drives GC itself; leave `gc-driver` off, or remove \
         the key if the server is gone for good"
    )]
    TidbServes { key: String },
    #[error("the checkpoint of task {task:?} is not known yet")]
    TaskUnknown { task: String },
    #[error("another coordinator leads")]
    NotLeader,
    #[error("locks below {floor} are left: {why}")]
    LocksLeft { floor: Ts, why: String },
    #[error(transparent)]
    Cluster(#[from] CoordinatorError),
}

/// Drives GC for as long as this coordinator leads.
pub(crate) async fn drive(shared: Arc<Shared>, driver: GcDriver) {
    loop {
        let mut round = GcRound::default();
        let ended = run_round(&shared, &driver, &mut round).await;
        let pause = match &ended {
            Ok(()) => driver.run_interval,
            Err(_) => driver.run_interval.min(AGAIN),
        };
        if let Err(trouble) = ended {
            tracing::warn!(%trouble, "GC is not moved");
            round.trouble = trouble.to_string();
        }
        shared
            .status
            .send_if_modified(|status| status.gc.replace(round.clone()) != Some(round));
        sleep(pause).await;
    }
}

async fn run_round(shared: &Shared, driver: &GcDriver, round: &mut GcRound) -> Result<(), Trouble> {
    let pd = &shared.pd;
    let failed = |error| Trouble::Cluster(CoordinatorError::Pd(error));
    let before = pd.gc_safe_point().await.map_err(failed)?;
    round.safe_point = before.get();
    refuse_tidb(shared).await?;
    let (tasks, _) = shared.tasks.list().await.map_err(CoordinatorError::from)?;
    let bound = bound(&tasks, &shared.needs.lock().clone())?;
    let target = earlier(pd.tso().await.map_err(failed)?, driver.life_time).min(bound);
    round.target = target.get();
    still_leads(shared).await?;
    let floor = pd.raise_txn_safe_point(target).await.map_err(failed)?;
    if floor <= before {
        return Ok(());
    }
    let rolled_back = (driver.locks)(vec![EncodedRange::ALL], floor).await;
    rolled_back.map_err(|why| Trouble::LocksLeft { floor, why })?;
    still_leads(shared).await?;
    let after = pd.raise_gc_safe_point(floor).await.map_err(failed)?;
    round.safe_point = after.get();
    tracing::info!(%before, %after, %target, "GC moved");
    Ok(())
}

/// How far the tasks let GC go. Their safepoints say the same, unless they expired or were never
/// taken.
fn bound(tasks: &[Task], needs: &BTreeMap<String, Need>) -> Result<Ts, Trouble> {
    let mut bound = Ts::MAX;
    for task in tasks {
        match needs.get(&task.name) {
            Some(Need::From(checkpoint)) => bound = bound.min(checkpoint.prev()),
            Some(Need::LetGo) => {}
            Some(Need::Unknown) | None => {
                let task = task.name.clone();
                return Err(Trouble::TaskUnknown { task });
            }
        }
    }
    Ok(bound)
}

async fn refuse_tidb(shared: &Shared) -> Result<(), Trouble> {
    for prefix in TIDB_SERVERS {
        let found = shared.etcd.get_prefix(prefix.as_bytes()).await;
        let (keys, _) = found.map_err(CoordinatorError::from)?;
        if let Some(server) = keys.first() {
            let key = String::from_utf8_lossy(&server.key).into_owned();
            return Err(Trouble::TidbServes { key });
        }
    }
    Ok(())
}

async fn still_leads(shared: &Shared) -> Result<(), Trouble> {
    let asked = shared.etcd.txn(vec![shared.condition.clone()], Vec::new());
    match asked.await.map_err(CoordinatorError::from)?.succeeded {
        true => Ok(()),
        false => Err(Trouble::NotLeader),
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::StreamBackupTaskInfo;

    use super::*;

    fn task(name: &str) -> Task {
        Task {
            name: name.to_owned(),
            info: StreamBackupTaskInfo::default(),
            ranges: Vec::new(),
            paused: false,
        }
    }

    fn needs(needs: &[(&str, Need)]) -> BTreeMap<String, Need> {
        let owned = needs.iter().map(|(name, need)| ((*name).to_owned(), *need));
        owned.collect()
    }

    #[test]
    fn gc_stays_one_below_the_smallest_checkpoint() {
        let (a, b) = (Need::From(Ts::new(30)), Need::From(Ts::new(20)));
        let known = needs(&[("a", a), ("b", b)]);
        let reached = bound(&[task("a"), task("b")], &known).unwrap();
        assert_eq!(reached, Ts::new(19));
        assert_eq!(bound(&[], &known).unwrap(), Ts::MAX);
    }

    #[test]
    fn a_task_over_its_limit_does_not_hold_gc() {
        let known = needs(&[("a", Need::LetGo), ("b", Need::From(Ts::new(20)))]);
        assert_eq!(bound(&[task("a")], &known).unwrap(), Ts::MAX);
        let both = bound(&[task("a"), task("b")], &known).unwrap();
        assert_eq!(both, Ts::new(19));
    }

    #[test]
    fn nothing_moves_while_one_checkpoint_is_unknown() {
        let known = needs(&[("a", Need::From(Ts::new(20))), ("b", Need::Unknown)]);
        for registered in ["b", "c"] {
            let trouble = bound(&[task("a"), task(registered)], &known).unwrap_err();
            assert!(trouble.to_string().contains(registered), "{trouble}");
        }
    }
}
