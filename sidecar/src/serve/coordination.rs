//! The coordinator inside of a daemon: a candidate like that of every other store. It ends after the
//! last flush of this store was told, and gives its place up so that the next one leads at once.

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::kv::{LockMode, resolve_locks};
use pitr_cluster::stores::StoreChannels;
use pitr_coordinator::coordinator::Locks;
use pitr_coordinator::{Coordinator, GcDriver, Options, Policy};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::{Board, Metrics};
use crate::cluster::Cluster;
use crate::config::{Config, Source};
use crate::pause::Pause;

/// How long leaving the election may take; the lease ends by itself.
const LEAVE: Duration = Duration::from_secs(3);

/// A coordinator that runs, or a sidecar that is none.
pub(super) struct Coordination {
    stop: watch::Sender<bool>,
    running: Option<JoinHandle<()>>,
}

impl Coordination {
    /// Stands for election as `daemon`, if the configuration wants it.
    pub fn start(
        config: &Config,
        cluster: &Cluster,
        daemon: &str,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (stop, inbox) = watch::channel(false);
        if !config.coordinator {
            return Coordination {
                stop,
                running: None,
            };
        }
        let builtin = config.source == Source::Builtin;
        let options = Options {
            id: daemon.to_owned(),
            policy: Policy {
                flush_interval: config.log_backup.max_flush_interval.get(),
                lag_limit: config.pause_lag_limit.get(),
                // Otherwise whoever tails the regions resolves what holds them.
                standstill: builtin.then(|| config.lock_standstill.get()),
            },
            pause_value: Arc::new(pause_value),
            transient: Arc::new(|value| Pause::decode(value).is_transient()),
            locks: builtin.then(|| locks(cluster, LockMode::LeaveAlive)),
            history_unwatched: builtin,
            gc_driver: config.gc_driver.enable.then(|| GcDriver {
                life_time: config.gc_driver.life_time.get(),
                run_interval: config.gc_driver.run_interval.get(),
                locks: locks(cluster, LockMode::GcRollback),
            }),
        };
        let (pd, etcd) = (cluster.pd.clone(), cluster.etcd.clone());
        let coordinator = Coordinator::new(pd, etcd, cluster.tasks.clone(), options);
        let mut status = coordinator.status();
        let running = tokio::spawn(async move {
            let run = coordinator.run(inbox);
            let show = async {
                loop {
                    let now = status.borrow_and_update().clone();
                    metrics.show_coordinator(&now);
                    board.update(|page| page.coordinator = Some(now));
                    if status.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                () = run => {}
                () = show => {}
            }
        });
        Coordination {
            stop,
            running: Some(running),
        }
    }

    /// Leaves the election.
    pub async fn leave(self) {
        self.stop.send_replace(true);
        if let Some(running) = self.running
            && timeout(LEAVE, running).await.is_err()
        {
            tracing::info!("the place in the election is free when its lease ends");
        }
    }
}

/// Resolves the locks of dead transactions, or all.
fn locks(cluster: &Cluster, mode: LockMode) -> Locks {
    let stores = StoreChannels::new(cluster.pd.clone());
    Arc::new(move |ranges, target| {
        let stores = stores.clone();
        Box::pin(async move {
            for range in ranges {
                let report = resolve_locks(&stores, range.clone(), target, mode);
                let report = report.await.map_err(|error| error.to_string())?;
                tracing::info!(
                    ?range,
                    found = report.found,
                    resolved = report.resolved,
                    oldest = ?report.oldest,
                    "looked for locks"
                );
                if mode == LockMode::GcRollback && report.alive > 0 {
                    return Err(format!("{} locks could not be rolled back", report.alive));
                }
            }
            Ok(())
        })
    })
}

/// Pauses a task as an error, as the stock advancer does.
fn pause_value(why: &str) -> Vec<u8> {
    // A pause key without a value pauses all the same.
    Pause::by_failure(why).encode().unwrap_or_default()
}
