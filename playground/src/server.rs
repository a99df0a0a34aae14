//! One store of the process: its services, on a runtime of their own, so that it can be stopped and
//! started alone. Only the end of a runtime ends every connection. Made by the process assembly.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_format::Ts;
use pitr_proto::cdcpb::change_data_server::ChangeDataServer;
use pitr_proto::metapb;
use pitr_restore_worker::Env;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::service::{ImportLimits, ImportService};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tonic::service::InterceptorLayer;
use tonic::transport::Server;

use crate::assembly::incoming;
use crate::cdc::host::Host;
use crate::cdc::hub::Hub;
use crate::cdc::service::{ChangeDataService, Limits};
use crate::cdc::ticker;
use crate::coordinator::Coordinator;
use crate::import_host::{StoreImport, Uploads};
use crate::metrics::StoreMetrics;
use crate::node::StartError;
use crate::pd::clock::Clock;
use crate::realpd::{Heartbeats, Member, RealPdError};
use crate::status;
use crate::store::Store;
use crate::store::service::TikvService;
use crate::tls::Tls;
use pitr_cluster::tls::Security;

/// Memory of the import service: slices, cached or in use, and pieces of downloads.
const IMPORT_MEMORY: u64 = 512 << 20;
/// How long open connections and running scans may take to notice the end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
const WORKERS: usize = 4;

/// The sockets of one store.
pub(crate) struct StoreListeners {
    pub(crate) store: TcpListener,
    pub(crate) status: Option<TcpListener>,
}

/// Where a store is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreAddress {
    /// Id of the store.
    pub id: u64,
    /// Where it answers.
    pub store: SocketAddr,
    /// Where its HTTP status answers.
    pub status: Option<SocketAddr>,
}

/// What a store needs besides its data.
pub(crate) struct ServerParts {
    pub(crate) pd: Arc<Coordinator>,
    /// Its place at a real PD.
    pub(crate) member: Option<Member>,
    pub(crate) clock: Clock,
    pub(crate) store: Arc<Store>,
    pub(crate) meta: metapb::Store,
    pub(crate) address: StoreAddress,
    pub(crate) interval: Duration,
    pub(crate) import_dir: PathBuf,
    /// Shared by all stores.
    pub(crate) uploads: Arc<Uploads>,
    /// Takes the reason when the services end by themselves.
    pub(crate) failed: mpsc::Sender<String>,
    /// How connections are taken.
    pub(crate) tls: Tls,
}

/// See the module.
pub(crate) struct StoreServer {
    parts: ServerParts,
    hub: Arc<Hub>,
    running: Mutex<Option<Running>>,
    /// Made and not yet served.
    import: Mutex<Option<ImportService<StoreImport>>>,
    metrics: StoreMetrics,
    /// When it was last started, in ms.
    started_ms: AtomicU64,
    /// Last moment that it ran, in ms; it runs if 0.
    left_ms: AtomicU64,
}

/// Ends with the sender.
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    _heartbeats: Option<Heartbeats>,
}

impl StoreServer {
    pub(crate) fn new(parts: ServerParts) -> Result<Arc<Self>, StartError> {
        let hub = Arc::new(Hub::new(parts.store.engine().clone()));
        parts.store.observe(hub.clone());
        let metrics = StoreMetrics::new().map_err(|e| StartError::System {
            action: "register metrics".to_owned(),
            source: std::io::Error::other(e),
        })?;
        let now = (parts.clock)();
        Ok(Arc::new(StoreServer {
            parts,
            hub,
            running: Mutex::new(None),
            import: Mutex::new(None),
            metrics,
            started_ms: AtomicU64::new(now),
            left_ms: AtomicU64::new(0),
        }))
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.parts.store
    }

    /// How its status is served.
    pub(crate) fn security(&self) -> &Security {
        &self.parts.tls.security
    }

    pub(crate) fn address(&self) -> StoreAddress {
        self.parts.address
    }

    /// The store as PD knows it.
    pub(crate) fn meta(&self) -> metapb::Store {
        let alive_ms = match self.left_ms.load(Ordering::Acquire) {
            0 => (self.parts.clock)(),
            left => left,
        };
        let started_ms = self.started_ms.load(Ordering::Acquire);
        metapb::Store {
            start_timestamp: i64::try_from(started_ms / 1000).unwrap_or(0),
            last_heartbeat: i64::try_from(alive_ms)
                .unwrap_or(0)
                .saturating_mul(1_000_000),
            ..self.parts.meta.clone()
        }
    }

    /// The page `/metrics`.
    pub(crate) fn metrics(&self) -> prometheus::Result<Vec<u8>> {
        self.metrics.text(&self.parts.store, &self.hub)
    }

    /// Tells a real PD that the store comes back. Blocks.
    pub(crate) fn announce(&self) -> Result<(), RealPdError> {
        match &self.parts.member {
            Some(member) => member.announce(self.meta()),
            None => Ok(()),
        }
    }

    /// Opens the directory of uploads. No store may serve before all are prepared.
    pub(crate) fn prepare(&self) -> Result<(), StartError> {
        let store = &self.parts.store;
        let uploads = &self.parts.uploads;
        let import = ImportService::new(
            Arc::new(StoreImport::new(store.clone(), uploads.clone())),
            &self.parts.import_dir,
            ImportLimits::default(),
            Env::system(MemoryBudget::new(IMPORT_MEMORY)),
        );
        let import = import.map_err(|e| StartError::System {
            action: "open the directory of uploads".to_owned(),
            source: std::io::Error::other(e),
        })?;
        uploads.set(store.clone(), import.dir());
        *self.import.lock() = Some(import);
        self.started_ms
            .store((self.parts.clock)(), Ordering::Release);
        Ok(())
    }

    /// Serves on a thread of its own, which owns the runtime; after [`StoreServer::prepare`].
    pub(crate) fn start(self: &Arc<Self>, listeners: StoreListeners) -> Result<(), StartError> {
        let system = |action: &str| {
            let action = action.to_owned();
            move |source| StartError::System { action, source }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("playground-store")
            .enable_all()
            .build()
            .map_err(system("start a runtime"))?;
        let (stop, stopped) = oneshot::channel();
        let me = self.clone();
        let thread = std::thread::Builder::new()
            .name("playground-store-main".to_owned())
            .spawn(move || me.run(runtime, listeners, stopped))
            .map_err(system("start a thread"))?;
        *self.running.lock() = Some(Running {
            stop,
            thread,
            _heartbeats: self.parts.member.as_ref().map(Member::beat),
        });
        self.left_ms.store(0, Ordering::Release);
        Ok(())
    }

    /// Cuts every connection; afterwards nothing answers at its addresses. Blocks until that is done.
    pub(crate) fn end(&self) {
        let running = self.running.lock().take();
        if let Some(Running { stop, thread, .. }) = running {
            self.left_ms
                .store((self.parts.clock)().max(1), Ordering::Release);
            drop(stop);
            // A panic in there was reported by its thread already.
            let _ = thread.join();
        }
    }

    fn run(
        self: Arc<Self>,
        runtime: Runtime,
        listeners: StoreListeners,
        stopped: oneshot::Receiver<()>,
    ) {
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = self.serve(listeners) => ended,
                _ = stopped => Ok(()),
            }
        });
        if let Err(error) = ended {
            // Full: the first reason is enough.
            let _ = self.parts.failed.try_send(error);
        }
        runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    }

    /// Serves until one of the services fails.
    async fn serve(self: &Arc<Self>, listeners: StoreListeners) -> Result<(), String> {
        let status = async {
            match listeners.status {
                Some(listener) => {
                    let listener = tokio::net::TcpListener::from_std(listener);
                    let listener = listener.map_err(|e| e.to_string())?;
                    status::serve(listener, self.clone()).await
                }
                None => std::future::pending().await,
            }
        };
        let host: Arc<dyn Host> = self.clone();
        tokio::select! {
            ended = self.serve_store(listeners.store) => ended,
            ended = status => ended,
            () = ticker::run(host, self.hub.clone(), self.parts.interval) => Ok(()),
        }
    }

    async fn serve_store(self: &Arc<Self>, listener: TcpListener) -> Result<(), String> {
        let host: Arc<dyn Host> = self.clone();
        let store = &self.parts.store;
        let cdc = ChangeDataService::new(host, self.hub.clone(), Limits::default());
        let import = self.import.lock().take();
        let import = import.ok_or("the import service is not prepared")?;
        // Go clients call a store down after one failure unless it answers health checks.
        let (_reporter, health) = tonic_health::server::health_reporter();
        let upkeep = import.upkeep();
        let server = Server::builder()
            .layer(InterceptorLayer::new(self.parts.tls.name_check()))
            .add_service(health)
            .add_service(TikvService::server(store.clone(), self.metrics.requests()))
            .add_service(ChangeDataServer::new(cdc))
            .add_service(import.into_server())
            .serve_with_incoming(incoming(&self.parts.tls.security, listener)?);
        tokio::select! {
            ended = server => ended.map_err(|e| format!("store: {e}")),
            () = upkeep => Ok(()),
        }
    }
}

impl Host for StoreServer {
    fn cluster_id(&self) -> u64 {
        self.parts.pd.cluster_id()
    }

    fn engine(&self) -> &RocksEngine {
        self.parts.store.engine()
    }

    fn region(&self, id: u64) -> Option<metapb::Region> {
        let regions = self.parts.store.regions();
        regions.get(id).map(|region| metapb::Region::clone(region))
    }

    fn leads(&self, id: u64) -> Result<(), Option<metapb::Peer>> {
        self.parts.store.leads(id)
    }

    fn timestamp(&self) -> Result<Ts, String> {
        self.parts.pd.timestamp().map_err(|e| e.to_string())
    }

    fn while_quiet(&self, floor: Ts, work: &mut dyn FnMut()) {
        let mut writes = self.parts.store.lock_writes();
        writes.raise_max_ts(floor);
        work();
    }
}
