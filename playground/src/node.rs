//! The playground as one process: PD with its etcd on one port, each store on another.
//!
//! PD and each store run on runtimes of their own, because only the end of a runtime ends every
//! connection: after [`Playground::shutdown`] nothing holds the data directory any
//! more and it can be opened again, whatever clients still hold.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pitr_cluster::tls::{TlsConfig, TlsError};
use pitr_format::Class;
use pitr_proto::metapb::Region;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::admin;
use crate::assembly::{Addresses, Parts, STORE_VERSION};
use crate::coordinator::{OwnPdError, TimestampError};
use crate::etcd::error::EtcdError;
use crate::outage::OutageError;
use crate::pd::state::StateError;
use crate::realpd::RealPdError;
use crate::server::{StoreAddress, StoreListeners, StoreServer};
use crate::store::{MergeError, OpenError, SplitError, Store, TransferError};

/// How long PD's open connections may take to notice the end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
const WORKERS: usize = 2;
/// Ids of further stores have to stay below those that the own PD gives out.
const MAX_STORES: usize = 100;

/// Resolved timestamps cannot come more often.
pub const MIN_RESOLVED_TS_INTERVAL: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Clone, Debug)]
pub struct PlaygroundConfig {
    /// Everything that is kept.
    pub data_dir: PathBuf,
    /// URLs of a real PD that the stores register at; with none, the default, the playground's own
    /// PD and etcd are served.
    pub real_pd: Vec<String>,
    /// Where the own PD and etcd listen; port 0 takes a free one.
    pub pd_addr: SocketAddr,
    /// Number of stores, 1 to 100.
    pub stores: usize,
    /// Where the first store listens, the others on the ports above; port 0 takes free ones.
    pub store_addr: SocketAddr,
    /// Where the first store's HTTP status listens, the others on the ports above; port 0 takes free
    /// ones. Without it the stores have none.
    pub status_addr: Option<SocketAddr>,
    /// What PD is told as the status address of each store, in the order of the stores, for fronts that
    /// stand before them. An empty text, or none for a store, tells its own.
    pub advertise_status_addrs: Vec<String>,
    /// The same for the peer address. As with TiKV a store's own is left empty.
    pub advertise_peer_addrs: Vec<String>,
    /// Where commands on leaders and stores are taken over HTTP, if at all.
    pub admin_addr: Option<SocketAddr>,
    /// Id of the own PD's cluster; random for a new directory, that of the directory for an old one.
    pub cluster_id: Option<u64>,
    /// Whether the own PD is a newer one, with GC states: barriers and a txn safe point.
    pub gc_states: bool,
    /// How often resolved timestamps are sent; at least [`MIN_RESOLVED_TS_INTERVAL`].
    pub resolved_ts_interval: Duration,
    /// Version that the stores report.
    pub store_version: String,
    /// Certificates, if everything speaks TLS. Of the common names that are allowed PD and the stores make
    /// what the real ones make: a store refuses each call of another one, PD serves it.
    pub tls: Option<TlsConfig>,
    /// Stores that PD lists beside the real one, none of which exists: for those who have to notice.
    pub ghost_stores: u64,
}

impl PlaygroundConfig {
    /// Free loopback ports, a random cluster id, resolved timestamps every second.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let free = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        PlaygroundConfig {
            data_dir: data_dir.into(),
            real_pd: Vec::new(),
            pd_addr: free,
            stores: 1,
            store_addr: free,
            status_addr: Some(free),
            advertise_status_addrs: Vec::new(),
            advertise_peer_addrs: Vec::new(),
            admin_addr: None,
            cluster_id: None,
            gc_states: false,
            resolved_ts_interval: Duration::from_secs(1),
            store_version: STORE_VERSION.to_owned(),
            tls: None,
            ghost_stores: 0,
        }
    }
}

/// Why the playground does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{what} cannot listen on {addr}: {source}; is another playground or TiKV running?")]
    Listen {
        /// Which service.
        what: &'static str,
        /// Where.
        addr: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// PD's file.
    #[error(transparent)]
    Pd(#[from] StateError),
    /// etcd's file.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The real PD.
    #[error(transparent)]
    RealPd(#[from] RealPdError),
    /// The store's directory.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The system gives no thread or directory.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Too many stores, or none.
    #[error("{0} stores: 1 to {MAX_STORES} are possible")]
    Stores(usize),
    /// More advertised addresses than stores.
    #[error("{0} advertised addresses for {1} stores: give one for each store, in their order")]
    Advertised(usize, usize),
    /// GC states of a PD that is not served.
    #[error(
        "GC states are those of the playground's own PD, which is off with a real PD: leave out one of the two"
    )]
    GcStates,
    /// The interval is too short.
    #[error("resolved-ts interval {0:?} is below {MIN_RESOLVED_TS_INTERVAL:?}")]
    Interval(Duration),
}

impl StartError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            StartError::Listen { .. } | StartError::System { .. } => Class::Retry,
            StartError::Pd(e) => e.class(),
            StartError::Etcd(e) => e.class(),
            StartError::RealPd(e) => e.class(),
            StartError::Store(e) => e.class(),
            StartError::Tls(e) => e.class(),
            StartError::Stores(_)
            | StartError::Advertised(..)
            | StartError::GcStates
            | StartError::Interval(_) => Class::Permanent,
        }
    }
}

impl From<TimestampError> for StartError {
    fn from(error: TimestampError) -> Self {
        match error {
            TimestampError::Own(error) => StartError::Pd(error),
            TimestampError::Real(error) => StartError::RealPd(error),
        }
    }
}

impl From<OwnPdError> for StartError {
    fn from(error: OwnPdError) -> Self {
        match error {
            OwnPdError::State(error) => StartError::Pd(error),
            OwnPdError::Etcd(error) => StartError::Etcd(error),
        }
    }
}

/// A running playground. Dropping it stops it and waits until its threads have ended and its databases
/// are closed: a process that ends while a database is being closed may abort.
pub struct Playground {
    pd_addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    cluster_id: u64,
    parts: Arc<Parts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The sockets, bound before anything else so that a conflict leaves the data alone.
pub(crate) struct Listeners {
    /// Of the own PD.
    pub(crate) pd: Option<TcpListener>,
    pub(crate) stores: Vec<StoreListeners>,
    pub(crate) admin: Option<(TcpListener, SocketAddr)>,
}

fn listen(what: &'static str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = TcpListener::bind(addr).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    });
    bound.map_err(|source| StartError::Listen { what, addr, source })
}

/// Binds the sockets of a store.
pub(crate) fn listen_store(
    store: SocketAddr,
    status: Option<SocketAddr>,
) -> Result<(StoreListeners, (SocketAddr, Option<SocketAddr>)), StartError> {
    let (store, store_addr) = listen("the store", store)?;
    let status = status.map(|addr| listen("the store's status", addr));
    let (status, status_addr) = status.transpose()?.unzip();
    Ok((StoreListeners { store, status }, (store_addr, status_addr)))
}

/// The same address on a later port; free ports stay free ports.
fn above(addr: SocketAddr, by: usize) -> SocketAddr {
    let by = u16::try_from(by).unwrap_or(u16::MAX);
    match addr.port() {
        0 => addr,
        port => SocketAddr::new(addr.ip(), port.saturating_add(by)),
    }
}

/// What can be refused before anything is touched.
fn check(config: &PlaygroundConfig) -> Result<(), StartError> {
    if config.resolved_ts_interval < MIN_RESOLVED_TS_INTERVAL {
        return Err(StartError::Interval(config.resolved_ts_interval));
    }
    if !(1..=MAX_STORES).contains(&config.stores) {
        return Err(StartError::Stores(config.stores));
    }
    if config.gc_states && !config.real_pd.is_empty() {
        return Err(StartError::GcStates);
    }
    for names in [&config.advertise_status_addrs, &config.advertise_peer_addrs] {
        if names.len() > config.stores {
            return Err(StartError::Advertised(names.len(), config.stores));
        }
    }
    Ok(())
}

/// Binds every socket of the configuration.
fn listen_all(config: &PlaygroundConfig) -> Result<(Listeners, Addresses), StartError> {
    let own_pd = config.real_pd.is_empty().then_some(config.pd_addr);
    let (pd, pd_addr) = own_pd.map(|addr| listen("PD", addr)).transpose()?.unzip();
    let mut stores = Vec::new();
    let mut addresses = Vec::new();
    for at in 0..config.stores {
        let status = config.status_addr.map(|addr| above(addr, at));
        let (listeners, bound) = listen_store(above(config.store_addr, at), status)?;
        stores.push(listeners);
        addresses.push(bound);
    }
    let admin = config.admin_addr.map(|addr| listen("admin", addr));
    let addresses = Addresses {
        pd: pd_addr,
        stores: addresses,
    };
    let admin = admin.transpose()?;
    Ok((Listeners { pd, stores, admin }, addresses))
}

/// Serves on threads of their own until the handle asks to stop or is gone.
fn run(
    runtime: Runtime,
    parts: Arc<Parts>,
    listeners: Listeners,
    failures: mpsc::Receiver<String>,
    stopped: oneshot::Receiver<()>,
) -> Result<JoinHandle<()>, StartError> {
    let admin = listeners.admin.map(|(listener, _)| listener);
    let serve = move || {
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = parts.serve(listeners.pd, failures) => ended,
                ended = admin::serve(admin, parts.clone()) => ended,
                _ = stopped => Ok(()),
            }
        });
        if let Err(error) = ended {
            tracing::error!(%error, "the playground ended by itself");
        }
        parts.end();
        drop(parts);
        runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    };
    std::thread::Builder::new()
        .name("playground-main".to_owned())
        .spawn(serve)
        .map_err(|source| StartError::System {
            action: "start a thread".to_owned(),
            source,
        })
}

impl Playground {
    /// Opens the data and serves. May be called inside or outside of a runtime; it blocks while
    /// the data directory is opened.
    pub fn start(config: PlaygroundConfig) -> Result<Self, StartError> {
        check(&config)?;
        let (mut listeners, addresses) = listen_all(&config)?;
        std::fs::create_dir_all(&config.data_dir).map_err(|source| StartError::System {
            action: format!("create {}", config.data_dir.display()),
            source,
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("playground")
            .enable_all()
            .build()
            .map_err(|source| StartError::System {
                action: "start a runtime".to_owned(),
                source,
            })?;
        let (parts, failures) = match Parts::open(&config, &addresses, runtime.handle().clone()) {
            Ok(opened) => opened,
            Err(error) => {
                // The caller may be inside of a runtime, where one must not be waited for.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let admin_addr = listeners.admin.as_ref().map(|(_, addr)| *addr);
        if let Err(error) = parts.start(std::mem::take(&mut listeners.stores)) {
            parts.end();
            runtime.shutdown_background();
            return Err(error);
        }
        let (stop, stopped) = oneshot::channel();
        let thread = run(runtime, parts.clone(), listeners, failures, stopped)?;
        Ok(Playground {
            pd_addr: parts.pd_addr(),
            admin_addr,
            cluster_id: parts.cluster_id(),
            parts,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where PD and etcd answer: the own ones, or the first of the real ones.
    pub fn pd_addr(&self) -> SocketAddr {
        self.pd_addr
    }

    /// Where each store answers, the first one first.
    pub fn addresses(&self) -> Vec<StoreAddress> {
        let servers = self.parts.servers().iter();
        servers.map(|server| server.address()).collect()
    }

    /// Where the first store answers.
    pub fn store_addr(&self) -> SocketAddr {
        self.first().address().store
    }

    /// Where the first store's HTTP status answers.
    pub fn status_addr(&self) -> Option<SocketAddr> {
        self.first().address().status
    }

    /// Where commands are taken over HTTP.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// Id of the cluster.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    fn first(&self) -> &Arc<StoreServer> {
        self.parts.first()
    }

    /// The first store itself, for tests and demos that look inside or split regions.
    pub fn store(&self) -> &Arc<Store> {
        self.first().store()
    }

    /// Every store, the first one first.
    pub fn stores(&self) -> Vec<Arc<Store>> {
        let servers = self.parts.servers().iter();
        servers.map(|server| server.store().clone()).collect()
    }

    /// Makes a store the leader of a region.
    pub fn transfer_leader(&self, region_id: u64, to: u64) -> Result<(), TransferError> {
        self.store().transfer_leader(region_id, to)
    }

    /// Stops a store in order: the others lead its regions before its connections end. Blocks.
    pub fn stop_store(&self, store_id: u64) -> Result<(), OutageError> {
        self.parts.stop_store(store_id)
    }

    /// Takes a store down while it leads. Blocks until its connections are gone and others lead.
    pub fn crash_store(&self, store_id: u64) -> Result<(), OutageError> {
        self.parts.crash_store(store_id)
    }

    /// Starts a store that is down, at its old addresses, after it has caught up. Blocks.
    pub fn start_store(&self, store_id: u64) -> Result<(), OutageError> {
        self.parts.start_store(store_id)
    }

    /// A fresh timestamp of PD.
    pub fn timestamp(&self) -> Result<pitr_format::Ts, TimestampError> {
        self.parts.timestamp()
    }

    /// Splits a region at a user key inside of it; the parts in key order, the last with the old id.
    pub fn split_region(&self, region_id: u64, key: &[u8]) -> Result<Vec<Region>, SplitError> {
        self.store().split_region_at(region_id, key)
    }

    /// Merges a region into its neighbour; the neighbour as it is then.
    pub fn merge_regions(&self, source: u64, target: u64) -> Result<Region, MergeError> {
        self.store().merge(source, target)
    }

    /// Ends every connection and closes the data directory. Blocks until that is done.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by its thread already.
            let _ = thread.join();
        }
    }
}
