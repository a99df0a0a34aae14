//! The running sidecar of one store: admin HTTP first, then PD, then the key of the store, then one
//! runner per task.
//!
//! The supervisor owns the set of runners and follows the task registry: a task that appears is
//! run, one that is paused is unloaded, one that is gone is forgotten and its safepoints are
//! released. It ends when it is told to stop, after every runner made its last flush.

mod builtin;
mod coordination;
mod fence;
mod following;
mod gap;
pub mod guard;
mod hold;
mod lag;
mod memory;
mod orphans;
mod region_page;
mod runner;
mod session;
mod sink;
mod source;
mod standing;
mod store;
mod store_config;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pitr_cluster::tasks::{Task, TaskEvent};
use pitr_cluster::tls::Security;
use pitr_observer::Env;
use pitr_observer::metrics::TaskStatus as MetricStatus;
use pitr_proto::backup::StreamBackupTaskInfo;
use pitr_storage::{SharedStorage, StorageError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::admin::http::AdminServer;
use crate::admin::{Board, Metrics, TaskState};
use crate::cluster::Cluster;
use crate::codes::Code;
use crate::config::{Config, LogBackupConfig, Source, effective};
use crate::failure::Failure;
use crate::front::grpc::{FrontError, GrpcFront};
use crate::front::status::StatusFront;
use crate::log_backup::{FlushOrders, FlushTables, LogBackupService};
use crate::members::Member;
use crate::process::ProcessName;
use crate::{storage, time};
use coordination::Coordination;
use fence::Fence;
use runner::{Inbox, Stop};

/// Error code of a gap, in `last-error` at PD and in metrics.
pub const GAP_CODE: &str = "PITR:Gap";

/// What every runner needs.
pub(crate) struct Context {
    /// Clients of the cluster.
    pub cluster: Cluster,
    /// The store that is tailed.
    pub store_id: u64,
    /// Where it listens.
    pub store_addr: String,
    /// Where its own status is, if what PD says is a front.
    pub store_status_addr: Option<String>,
    /// Says whether it is still ours.
    pub fence: Arc<Fence>,
    /// What the log backup service tells of the tasks.
    pub tables: Arc<FlushTables>,
    /// Flushes that somebody asks for there.
    pub orders: Arc<FlushOrders>,
    /// Opens the storage that a task names.
    pub open_storage: OpenStorage,
    /// `[log-backup]`.
    pub config: LogBackupConfig,
    /// What `/status.json` shows.
    pub board: Arc<Board>,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Threads, memory and temporary files of the observers; one budget for all tasks.
    pub env: Env,
}

/// How the storage of a task is opened; another one than [`crate::storage::open_task`] is for
/// tests that let it fail.
pub type OpenStorage =
    Arc<dyn Fn(&StreamBackupTaskInfo) -> Result<SharedStorage, StorageError> + Send + Sync>;

/// Runs the sidecar until `stop` turns true (or its sender is gone).
pub async fn serve(config: Config, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    serve_with(config, stop, Arc::new(storage::open_task)).await
}

/// [`serve`] with another way to open storages.
pub async fn serve_with(
    config: Config,
    mut stop: watch::Receiver<bool>,
    open_storage: OpenStorage,
) -> Result<(), Failure> {
    let board = Arc::new(Board::new(config.lag_limit.get()));
    let security = config.security.load()?;
    let metrics = Metrics::new(security.clone())
        .map_err(|error| Failure::from_error(Code::Internal, &error))?;
    let metrics = Arc::new(metrics);
    let admin = admin(&config, &security, &board, &metrics).await?;
    if config.source == Source::Builtin {
        return builtin::serve(&config, &security, board, metrics, &mut stop).await;
    }
    let _front = front(&config, &security, &metrics).await?;
    let tables = Arc::new(FlushTables::default());
    let orders = Arc::new(FlushOrders::default());
    let connect = async {
        let cluster = Cluster::connect(&config.pd_endpoints, &security).await?;
        let store = store::resolve(&cluster, &config).await?;
        let env = memory::environment(&config, store.id, metrics.observer.clone())?;
        let front = log_backup(&config, &cluster, &store.address, &tables, &orders).await?;
        let me = introduce(&config, &store.address, admin.addr(), front.addr());
        let daemon = me.daemon.clone();
        board.update(|page| page.daemon.clone_from(&daemon));
        let fence = Fence::take(&cluster, store.id, me, board.clone(), metrics.clone()).await?;
        Ok::<_, Failure>((cluster, store, env, fence, daemon, front))
    };
    let (cluster, store, env, fence, daemon, _log_backup) = tokio::select! {
        connected = connect => connected?,
        () = stopped(&mut stop) => return Ok(()),
    };
    board.update(|page| {
        page.cluster_id = Some(cluster.pd.cluster_id());
        page.store_id = Some(store.id);
        page.waiting_for.clear();
    });
    tracing::info!(
        cluster = cluster.pd.cluster_id(),
        store = store.id,
        "serving"
    );
    let coordination =
        Coordination::start(&config, &cluster, &daemon, board.clone(), metrics.clone());
    let (fatal, fatal_inbox) = mpsc::channel(1);
    let supervisor = Supervisor {
        events: cluster.tasks.events(),
        context: Arc::new(Context {
            cluster,
            store_id: store.id,
            store_addr: store.address,
            store_status_addr: config.store_status_addr,
            fence: fence.clone(),
            tables,
            orders,
            open_storage,
            config: config.log_backup,
            board,
            metrics,
            env,
        }),
        running: BTreeMap::new(),
        fatal,
        fatal_inbox,
    };
    let keeper = tokio::spawn(fence.clone().keep());
    let ended = supervisor.run(stop).await;
    coordination.leave().await;
    keeper.abort();
    fence.leave().await;
    ended
}

async fn admin(
    config: &Config,
    security: &Security,
    board: &Arc<Board>,
    metrics: &Arc<Metrics>,
) -> Result<AdminServer, Failure> {
    let settings = effective::of_config(config);
    let (addr, security) = (config.status_addr, security.clone());
    let started = AdminServer::start(addr, board.clone(), metrics.clone(), settings, security);
    let admin = started.await;
    let admin = admin.map_err(|error| bind_failure("admin HTTP", addr, &error))?;
    tracing::info!(addr = %admin.addr(), "admin HTTP is up");
    Ok(admin)
}

/// The log backup service; every other service of the store is relayed to it.
async fn log_backup(
    config: &Config,
    cluster: &Cluster,
    store_address: &str,
    tables: &Arc<FlushTables>,
    orders: &Arc<FlushOrders>,
) -> Result<GrpcFront, Failure> {
    let free = SocketAddr::new(config.status_addr.ip(), 0);
    let addr = config.log_backup_addr.unwrap_or(free);
    let told = config.advertise_log_backup_addr.clone();
    if [told, Some(addr.to_string())].contains(&Some(store_address.to_owned())) {
        let what = "the log backup service has the address under which PD knows the store";
        return Err(Failure::new(Code::BadConfig, what)
            .at(addr.to_string())
            .effect("nothing was started: calls of the store would be relayed in a circle")
            .action(
                "give `log-backup-addr` an address of its own, and the store its `peer_address`",
            ));
    }
    let routes = LogBackupService::routes(tables.clone(), orders.clone());
    let front = GrpcFront::start(addr, routes, Some(store_address), cluster.pd.security()).await;
    front.map_err(|error| match error {
        FrontError::Listen { addr, source } => {
            bind_failure("the log backup service", addr, &source)
        }
        FrontError::Store(error) => Failure::from_error(Code::BadAddress, &error),
    })
}

/// What this process says of itself.
fn introduce(
    config: &Config,
    store_address: &str,
    admin: SocketAddr,
    log_backup: SocketAddr,
) -> Member {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let found_at = |told: &Option<String>, bound| advertised(told.as_deref(), store_address, bound);
    Member {
        daemon: uuid::Uuid::new_v4().to_string(),
        address: found_at(&config.advertise_status_addr, admin),
        log_backup_address: found_at(&config.advertise_log_backup_addr, log_backup),
        host: host.trim().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: time::show(time::local_now()).utc,
        process: ProcessName::own(),
        tasks: Vec::new(),
    }
}

/// Where others find a server: as configured, else where it listens. One that listens everywhere is
/// found on its store's machine.
fn advertised(told: Option<&str>, store_address: &str, bound: SocketAddr) -> String {
    match (told, store_address.rsplit_once(':')) {
        (Some(address), _) => address.to_owned(),
        (None, Some((host, _))) if bound.ip().is_unspecified() => {
            format!("{host}:{}", bound.port())
        }
        (None, _) => bound.to_string(),
    }
}

/// The front of the store's status address, if one is wanted.
async fn front(
    config: &Config,
    security: &Security,
    metrics: &Arc<Metrics>,
) -> Result<Option<StatusFront>, Failure> {
    let (Some(addr), Some(store)) = (config.front_status_addr, &config.store_status_addr) else {
        return Ok(None);
    };
    let store = store
        .parse()
        .map_err(|error| Failure::from_error(Code::BadConfig, &error))?;
    let front = StatusFront::start(addr, store, security, metrics.clone()).await;
    let front = front.map_err(|error| bind_failure("the status front", addr, &error))?;
    tracing::info!(addr = %front.addr(), "the front of the store's status address is up");
    Ok(Some(front))
}

fn bind_failure(what: &str, addr: SocketAddr, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::AddrInUse => Code::AdminAddressTaken,
        std::io::ErrorKind::PermissionDenied => Code::AdminAddressDenied,
        _ => Code::AdminAddressUnusable,
    };
    Failure::new(code, format!("cannot listen for {what}: {error}")).at(addr.to_string())
}

/// Waits until `stop` turns true.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means nobody can ask for anything else.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A task that is loaded.
struct Running {
    stop: watch::Sender<Stop>,
    done: JoinHandle<bool>,
}

struct Supervisor {
    context: Arc<Context>,
    events: mpsc::Receiver<TaskEvent>,
    running: BTreeMap<String, Running>,
    /// Runners send what must end the process.
    fatal: mpsc::Sender<Failure>,
    fatal_inbox: mpsc::Receiver<Failure>,
}

impl Supervisor {
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), Failure> {
        let fence = self.context.fence.clone();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(failure) = self.fatal_inbox.recv() => {
                    self.stop_all(Stop::Drain).await;
                    return Err(failure);
                }
                failure = fence.lost() => {
                    // What is not flushed is the other one's to read.
                    self.stop_all(Stop::Drop).await;
                    return Err(failure);
                }
                event = self.events.recv() => match event {
                    Some(event) => self.handle(event).await,
                    None => return Err(Failure::new(
                        Code::Internal, "the follower of the task registry ended",
                    )),
                },
            }
        }
        if self.stop_all(Stop::Drain).await {
            return Ok(());
        }
        Err(Failure::new(
            Code::LastFlushFailed,
            "stopped, but the last flush did not become durable",
        )
        .effect("nothing is lost: the next start reads on from the checkpoint")
        .action("see the log for the reason; start again once the storage works"))
    }

    /// Ends every runner; whether all last flushes, if they were asked for, became durable.
    async fn stop_all(&mut self, how: Stop) -> bool {
        for running in self.running.values() {
            let _ = running.stop.send(how);
        }
        let mut clean = true;
        for (name, running) in std::mem::take(&mut self.running) {
            clean &= finish(&name, running).await;
        }
        clean
    }

    async fn handle(&mut self, event: TaskEvent) {
        let metrics = self.context.metrics.clone();
        match event {
            TaskEvent::Added(task) => {
                metrics.count_task_event("task_add");
                self.unload(&task.name, Stop::Drop).await;
                if task.paused {
                    self.show_paused(&task.name, task.info.start_ts);
                } else {
                    self.load(task);
                }
            }
            TaskEvent::Resumed(task) => {
                metrics.count_task_event("task_resume");
                self.unload(&task.name, Stop::Drop).await;
                self.load(task);
            }
            TaskEvent::Paused(name) => {
                metrics.count_task_event("task_pause");
                self.unload(&name, Stop::Drain).await;
                self.show_paused(&name, 0);
            }
            TaskEvent::Removed(name) => {
                metrics.count_task_event("task_remove");
                self.unload(&name, Stop::Drop).await;
                self.context.tables.forget(&name);
                self.context.board.remove(&name);
                metrics.forget_task(&name);
                hold::release(&self.context, &name).await;
                tracing::info!(task = name, "the task is gone");
            }
            TaskEvent::Disconnected(error) => {
                metrics.count_task_event("error");
                tracing::warn!(
                    error,
                    "the task registry cannot be read; what is loaded goes on"
                );
            }
        }
    }

    fn load(&mut self, task: Task) {
        let (stop, inbox) = watch::channel(Stop::No);
        let name = task.name.clone();
        let start_ts = task.info.start_ts;
        self.context
            .board
            .set_state(&name, start_ts, TaskState::Loading);
        let orders = self.context.orders.open(&name);
        let inbox = Inbox {
            stop: inbox,
            orders,
        };
        let run = runner::run(self.context.clone(), task, inbox, self.fatal.clone());
        let done = tokio::spawn(run);
        self.running.insert(name, Running { stop, done });
    }

    async fn unload(&mut self, name: &str, how: Stop) {
        if let Some(running) = self.running.remove(name) {
            let _ = running.stop.send(how);
            finish(name, running).await;
            self.context.orders.close(name);
        }
    }

    fn show_paused(&self, name: &str, start_ts: u64) {
        self.context
            .board
            .set_state(name, start_ts, TaskState::Paused);
        let metrics = &self.context.metrics.observer;
        metrics.set_task_status(name, MetricStatus::Paused);
        tracing::info!(task = name, "the task is paused");
    }
}

async fn finish(name: &str, running: Running) -> bool {
    match running.done.await {
        Ok(clean) => clean,
        Err(error) => {
            tracing::error!(task = name, %error, "the runner of the task broke");
            false
        }
    }
}
