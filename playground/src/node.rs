//! The playground as one process: PD with its etcd on one port, the store on another.
//!
//! Everything runs on a runtime of its own inside one thread, because only the end of a runtime
//! ends every connection: after [`Playground::shutdown`] nothing holds the data directory any
//! more and it can be opened again, whatever clients still hold.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pitr_format::Class;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::assembly::{Addresses, Parts, STORE_VERSION};
use crate::coordinator::{OwnPdError, TimestampError};
use crate::etcd::error::EtcdError;
use crate::pd::state::StateError;
use crate::realpd::RealPdError;
use crate::store::OpenError;

/// How long open connections and running scans may take to notice the end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);
const WORKERS: usize = 4;

/// Resolved timestamps cannot come more often.
pub const MIN_RESOLVED_TS_INTERVAL: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Clone, Debug)]
pub struct PlaygroundConfig {
    /// Everything that is kept.
    pub data_dir: PathBuf,
    /// URLs of a real PD that the store registers at; with none, the default, the playground's own
    /// PD and etcd are served.
    pub real_pd: Vec<String>,
    /// Where the own PD and etcd listen; port 0 takes a free one.
    pub pd_addr: SocketAddr,
    /// Where the store listens; port 0 takes a free one.
    pub store_addr: SocketAddr,
    /// Where the store's HTTP status listens, if at all.
    pub status_addr: Option<SocketAddr>,
    /// Id of the own PD's cluster; random for a new directory, that of the directory for an old one.
    pub cluster_id: Option<u64>,
    /// How often resolved timestamps are sent; at least [`MIN_RESOLVED_TS_INTERVAL`].
    pub resolved_ts_interval: Duration,
    /// Version that the store reports.
    pub store_version: String,
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
            store_addr: free,
            status_addr: None,
            cluster_id: None,
            resolved_ts_interval: Duration::from_secs(1),
            store_version: STORE_VERSION.to_owned(),
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
            StartError::Interval(_) => Class::Permanent,
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

/// A running playground. Dropping it stops it too, without waiting for the end.
pub struct Playground {
    pd_addr: SocketAddr,
    store_addr: SocketAddr,
    status_addr: Option<SocketAddr>,
    cluster_id: u64,
    parts: Arc<Parts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The sockets, bound before anything else so that a conflict leaves the data alone.
pub(crate) struct Listeners {
    /// Of the own PD.
    pub(crate) pd: Option<TcpListener>,
    pub(crate) store: TcpListener,
    pub(crate) status: Option<TcpListener>,
}

fn listen(what: &'static str, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = TcpListener::bind(addr).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    });
    bound.map_err(|source| StartError::Listen { what, addr, source })
}

/// Binds every socket of the configuration.
fn listen_all(config: &PlaygroundConfig) -> Result<(Listeners, Addresses), StartError> {
    let own_pd = config.real_pd.is_empty().then_some(config.pd_addr);
    let pd = own_pd.map(|addr| listen("PD", addr)).transpose()?;
    let store = listen("the store", config.store_addr)?;
    let status = config.status_addr;
    let status = status.map(|addr| listen("the store's status", addr));
    let status = status.transpose()?;
    let addresses = Addresses {
        pd: pd.as_ref().map(|(_, addr)| *addr),
        store: store.1,
        status: status.as_ref().map(|(_, addr)| *addr),
    };
    let listeners = Listeners {
        pd: pd.map(|(listener, _)| listener),
        store: store.0,
        status: status.map(|(listener, _)| listener),
    };
    Ok((listeners, addresses))
}

/// Serves on a thread of its own, which owns the runtime, until the handle asks to stop or is gone.
fn run(
    runtime: Runtime,
    parts: Arc<Parts>,
    listeners: Listeners,
    stopped: oneshot::Receiver<()>,
) -> Result<JoinHandle<()>, StartError> {
    let serve = move || {
        let ended = runtime.block_on(async move {
            tokio::select! {
                ended = parts.serve(listeners) => ended,
                _ = stopped => Ok(()),
            }
        });
        if let Err(error) = ended {
            tracing::error!(%error, "the playground ended by itself");
        }
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
        if config.resolved_ts_interval < MIN_RESOLVED_TS_INTERVAL {
            return Err(StartError::Interval(config.resolved_ts_interval));
        }
        let (listeners, addresses) = listen_all(&config)?;
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
        let parts = match Parts::open(&config, &addresses, runtime.handle().clone()) {
            Ok(parts) => parts,
            Err(error) => {
                // The caller may be inside of a runtime, where one must not be waited for.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let (stop, stopped) = oneshot::channel();
        let thread = run(runtime, parts.clone(), listeners, stopped)?;
        Ok(Playground {
            pd_addr: parts.pd_addr(),
            store_addr: addresses.store,
            status_addr: addresses.status,
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

    /// Where the store answers.
    pub fn store_addr(&self) -> SocketAddr {
        self.store_addr
    }

    /// Where the store's HTTP status answers.
    pub fn status_addr(&self) -> Option<SocketAddr> {
        self.status_addr
    }

    /// Id of the cluster.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The store itself, for tests and demos that look inside or split regions.
    pub fn store(&self) -> &Arc<crate::store::Store> {
        self.parts.store()
    }

    /// A fresh timestamp of PD.
    pub fn timestamp(&self) -> Result<pitr_format::Ts, TimestampError> {
        self.parts.timestamp()
    }

    /// Ends every connection and closes the data directory. Blocks until that is done.
    pub fn shutdown(mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by its thread already.
            let _ = thread.join();
        }
    }
}
