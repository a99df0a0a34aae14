//! Opens the parts of the playground and wires them together.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::Stream;
use parking_lot::Mutex;
use pitr_cluster::tls::{Security, ServerStream};
use pitr_format::Ts;
use pitr_proto::metapb;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::coordinator::{Coordinator, OwnPd, TimestampError};
use crate::import_host::Uploads;
use crate::node::{PlaygroundConfig, StartError, listen_store};
use crate::outage::OutageError;
use crate::pd::clock::system_clock;
use crate::realpd::RealPd;
use crate::server::{ServerParts, StoreAddress, StoreListeners, StoreServer};
use crate::store::{OpenError, RegionIds, Store, StoreOptions};
use crate::tls::Tls;

/// Version that the stores report unless told otherwise.
pub const STORE_VERSION: &str = "8.5.6";
const STORE_ID: u64 = 1;
const FIRST_REGION: u64 = 2;
const FIRST_PEER: u64 = 3;
/// Larger messages are refused, as TiKV does by its raft entry limit and PD's etcd at 150 MiB.
pub(crate) const MAX_MESSAGE: usize = 256 << 20;

/// The open parts.
pub(crate) struct Parts {
    pd: Arc<Coordinator>,
    first: Arc<StoreServer>,
    /// All of them, the first too.
    servers: Vec<Arc<StoreServer>>,
    /// One stop or start at a time.
    pub(crate) outages: Mutex<()>,
}

/// Where the services listen.
pub(crate) struct Addresses {
    /// Of the own PD.
    pub(crate) pd: Option<SocketAddr>,
    /// Of each store: the store itself and its status.
    pub(crate) stores: Vec<(SocketAddr, Option<SocketAddr>)>,
}

impl Parts {
    /// Opens the data; with a real PD it registers there, for which `runtime` has to run. Also gives
    /// what tells when a store ends by itself.
    pub(crate) fn open(
        config: &PlaygroundConfig,
        addresses: &Addresses,
        runtime: Handle,
    ) -> Result<(Arc<Self>, mpsc::Receiver<String>), StartError> {
        let clock = system_clock();
        let tls = Tls::open(config)?;
        let (pd, options) = open_pd(config, &tls, addresses, runtime)?;
        let dirs = store_dirs(&config.data_dir, options.store_ids.len());
        let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        let stores = Store::open(&dirs, options)?;
        let pd = Arc::new(pd);
        let (failed, failures) = mpsc::channel(1);
        let uploads = Arc::new(Uploads::default());
        let mut servers = Vec::new();
        for (at, (store, (addr, status))) in stores.iter().zip(&addresses.stores).enumerate() {
            let address = StoreAddress {
                id: store.store_id(),
                store: *addr,
                status: *status,
            };
            let meta = store_meta(config, at, address);
            // Reads of the last run were below this; no commit may land among them.
            store.raise_max_ts(pd.timestamp()?);
            servers.push(StoreServer::new(ServerParts {
                pd: pd.clone(),
                member: pd.member(store),
                clock: clock.clone(),
                store: store.clone(),
                meta,
                address,
                interval: config.resolved_ts_interval,
                import_dir: config.data_dir.join(numbered("import", at)),
                uploads: uploads.clone(),
                failed: failed.clone(),
                tls: tls.clone(),
            })?);
        }
        if let Coordinator::Real(real) = &*pd {
            real.join(servers.iter().map(|server| server.meta()).collect())?;
        }
        let first = servers.first().cloned().ok_or(StartError::Stores(0))?;
        let parts = Parts {
            pd,
            first,
            servers,
            outages: Mutex::new(()),
        };
        Ok((Arc::new(parts), failures))
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.pd.cluster_id()
    }

    /// Where PD answers.
    pub(crate) fn pd_addr(&self) -> SocketAddr {
        self.pd.addr()
    }

    pub(crate) fn first(&self) -> &Arc<StoreServer> {
        &self.first
    }

    pub(crate) fn servers(&self) -> &[Arc<StoreServer>] {
        &self.servers
    }

    pub(crate) fn timestamp(&self) -> Result<Ts, TimestampError> {
        self.pd.timestamp()
    }

    /// Starts the services of every store.
    pub(crate) fn start(&self, listeners: Vec<StoreListeners>) -> Result<(), StartError> {
        for server in &self.servers {
            server.prepare()?;
        }
        for (server, listeners) in self.servers.iter().zip(listeners) {
            server.start(listeners)?;
        }
        Ok(())
    }

    /// Ends the services of every store. Blocks until that is done.
    pub(crate) fn end(&self) {
        let _alone = self.outages.lock();
        for server in &self.servers {
            server.end();
        }
    }

    /// Serves PD until it, or one of the stores, fails.
    pub(crate) async fn serve(
        &self,
        listener: Option<std::net::TcpListener>,
        mut failures: mpsc::Receiver<String>,
    ) -> Result<(), String> {
        tokio::select! {
            ended = self.pd.serve(listener, self.servers.clone()) => ended,
            Some(error) = failures.recv() => Err(error),
        }
    }

    /// The server of a store.
    pub(crate) fn server(&self, store_id: u64) -> Result<&Arc<StoreServer>, OutageError> {
        let mut servers = self.servers.iter();
        let found = servers.find(|server| server.store().store_id() == store_id);
        found.ok_or(OutageError::Unknown(store_id))
    }

    /// The sockets of a store once more, at the addresses that clients know.
    pub(crate) fn listen_again(address: StoreAddress) -> Result<StoreListeners, StartError> {
        listen_store(address.store, address.status).map(|(listeners, _)| listeners)
    }
}

/// PD, and what it says about stores and regions.
fn open_pd(
    config: &PlaygroundConfig,
    tls: &Tls,
    addresses: &Addresses,
    runtime: Handle,
) -> Result<(Coordinator, StoreOptions), StartError> {
    let dir = &config.data_dir;
    let Some(addr) = addresses.pd else {
        let real = RealPd::connect(&config.real_pd, &tls.security, dir, config.stores, runtime)?;
        let store_ids = real.identity().store_ids();
        if store_ids.len() != config.stores {
            return Err(StartError::Store(OpenError::Stores {
                found: store_ids.len(),
                wanted: config.stores,
            }));
        }
        let options = StoreOptions {
            store_ids,
            first_region: real.identity().first_region(),
            ids: real.clone(),
        };
        return Ok((Coordinator::Real(real), options));
    };
    let own = OwnPd::open(config, tls, system_clock(), addr)?;
    // 1, 4, 6, 8 …, with the peers 3, 5, 7, 9 …: one store has the ids it always had.
    let more = 2..=addresses.stores.len() as u64;
    let options = StoreOptions {
        store_ids: [STORE_ID]
            .into_iter()
            .chain(more.clone().map(|n| 2 * n))
            .collect(),
        first_region: RegionIds {
            region: FIRST_REGION,
            peers: [FIRST_PEER]
                .into_iter()
                .chain(more.map(|n| 2 * n + 1))
                .collect(),
        },
        ids: own.ids(),
    };
    Ok((Coordinator::Own(own), options))
}

/// The first has the name, the others the name and their number.
fn numbered(name: &str, at: usize) -> String {
    match at {
        0 => name.to_owned(),
        at => format!("{name}-{}", at + 1),
    }
}

fn store_dirs(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|at| dir.join(numbered("store", at)))
        .collect()
}

/// The store at position `at`, as PD knows it. Like TiKV it names no `peer_address` of its own; who
/// stands in front of a store is advertised in its place.
fn store_meta(config: &PlaygroundConfig, at: usize, address: StoreAddress) -> metapb::Store {
    let own_status = address.status.map(|addr| reachable(addr).to_string());
    let advertised = |names: &[String]| names.get(at).filter(|name| !name.is_empty()).cloned();
    metapb::Store {
        id: address.id,
        address: reachable(address.store).to_string(),
        state: metapb::StoreState::Up.into(),
        version: config.store_version.clone(),
        peer_address: advertised(&config.advertise_peer_addrs).unwrap_or_default(),
        status_address: advertised(&config.advertise_status_addrs)
            .or(own_status)
            .unwrap_or_default(),
        node_state: metapb::NodeState::Serving.into(),
        ..Default::default()
    }
}

/// The connections of a listener, for tonic.
pub(crate) fn incoming(
    security: &Security,
    listener: std::net::TcpListener,
) -> Result<impl Stream<Item = io::Result<ServerStream>> + use<>, String> {
    let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    let listener = security.listen(listener);
    Ok(futures::stream::unfold(listener, async |mut listener| {
        let (stream, _) = listener.accept().await;
        Some((Ok(stream), listener))
    }))
}

/// The address that clients are told: a listener on all interfaces is reached by loopback.
pub(crate) fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
