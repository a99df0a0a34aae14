//! Opens the parts of the playground and wires them together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pitr_budget::MemoryBudget;
use pitr_format::Ts;
use pitr_proto::cdcpb::change_data_server::ChangeDataServer;
use pitr_proto::metapb;
use pitr_restore_worker::Env;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::service::{ImportLimits, ImportService};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::cdc::host::Host;
use crate::cdc::hub::Hub;
use crate::cdc::service::{ChangeDataService, Limits};
use crate::cdc::ticker;
use crate::coordinator::{Coordinator, OwnPd, TimestampError};
use crate::import_host::StoreImport;
use crate::node::{Listeners, PlaygroundConfig, StartError};
use crate::pd::clock::system_clock;
use crate::realpd::RealPd;
use crate::status;
use crate::store::service::TikvService;
use crate::store::{RegionIds, Store, StoreOptions};

/// Version that the store reports.
pub const STORE_VERSION: &str = "8.5.6";
const STORE_ID: u64 = 1;
const FIRST_REGION: RegionIds = RegionIds { region: 2, peer: 3 };
/// Memory of the import service: slices, cached or in use, and pieces of downloads.
const IMPORT_MEMORY: u64 = 512 << 20;
/// Larger messages are refused, as TiKV does by its raft entry limit and PD's etcd at 150 MiB.
pub(crate) const MAX_MESSAGE: usize = 256 << 20;

/// The open parts.
pub(crate) struct Parts {
    pd: Coordinator,
    store: Arc<Store>,
    hub: Arc<Hub>,
    meta: metapb::Store,
    store_addr: SocketAddr,
    interval: Duration,
    import_dir: PathBuf,
}

/// Where the services listen.
pub(crate) struct Addresses {
    /// Of the own PD.
    pub(crate) pd: Option<SocketAddr>,
    pub(crate) store: SocketAddr,
    pub(crate) status: Option<SocketAddr>,
}

impl Parts {
    /// Opens the data; with a real PD it registers there, for which `runtime` has to run.
    pub(crate) fn open(
        config: &PlaygroundConfig,
        addresses: &Addresses,
        runtime: Handle,
    ) -> Result<Arc<Self>, StartError> {
        let clock = system_clock();
        let dir = &config.data_dir;
        let (pd, options) = match addresses.pd {
            Some(addr) => {
                let own = OwnPd::open(config, clock.clone(), addr)?;
                let options = StoreOptions {
                    store_id: STORE_ID,
                    first_region: FIRST_REGION,
                    ids: own.ids(),
                };
                (Coordinator::Own(own), options)
            }
            None => {
                let real = RealPd::connect(&config.real_pd, dir, runtime)?;
                let options = StoreOptions {
                    store_id: real.identity().store_id(),
                    first_region: real.identity().first_region(),
                    ids: real.clone(),
                };
                (Coordinator::Real(real), options)
            }
        };
        let store = Store::open(&dir.join("store"), options)?;
        let meta = metapb::Store {
            version: config.store_version.clone(),
            start_timestamp: i64::try_from(clock() / 1000).unwrap_or(0),
            ..store_meta(&store, addresses)
        };
        if let Coordinator::Real(real) = &pd {
            real.join(&store, meta.clone())?;
            store.observe(real.observer());
        }
        // Reads of the last run were below this; no commit may land among them.
        store.raise_max_ts(pd.timestamp()?);
        let hub = Arc::new(Hub::new(store.engine().clone()));
        store.observe(hub.clone());
        Ok(Arc::new(Parts {
            pd,
            store,
            hub,
            meta,
            store_addr: addresses.store,
            interval: config.resolved_ts_interval,
            import_dir: dir.join("import"),
        }))
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.pd.cluster_id()
    }

    /// Where PD answers.
    pub(crate) fn pd_addr(&self) -> SocketAddr {
        self.pd.addr()
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn timestamp(&self) -> Result<Ts, TimestampError> {
        self.pd.timestamp()
    }

    /// Serves until one of the services fails.
    pub(crate) async fn serve(self: Arc<Self>, listeners: Listeners) -> Result<(), String> {
        let status = async {
            match listeners.status {
                Some(listener) => {
                    let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
                    status::serve(listener, &self.store_addr.to_string()).await
                }
                None => std::future::pending().await,
            }
        };
        let host: Arc<dyn Host> = self.clone();
        tokio::select! {
            ended = self.pd.serve(listeners.pd, self.store.clone(), self.meta.clone()) => ended,
            ended = self.serve_store(listeners.store) => ended,
            ended = status => ended,
            () = ticker::run(host, self.hub.clone(), self.interval) => Ok(()),
        }
    }

    async fn serve_store(self: &Arc<Self>, listener: std::net::TcpListener) -> Result<(), String> {
        let host: Arc<dyn Host> = self.clone();
        let cdc = ChangeDataService::new(host, self.hub.clone(), Limits::default());
        let import = ImportService::new(
            Arc::new(StoreImport::new(self.store.clone())),
            &self.import_dir,
            ImportLimits::default(),
            Env::system(MemoryBudget::new(IMPORT_MEMORY)),
        )
        .map_err(|e| format!("import: {e}"))?;
        // Go clients call a store down after one failure unless it answers health checks.
        let (_reporter, health) = tonic_health::server::health_reporter();
        let upkeep = import.upkeep();
        let server = Server::builder()
            .add_service(health)
            .add_service(TikvService::server(self.store.clone()))
            .add_service(ChangeDataServer::new(cdc))
            .add_service(import.into_server())
            .serve_with_incoming(incoming(listener)?);
        tokio::select! {
            ended = server => ended.map_err(|e| format!("store: {e}")),
            () = upkeep => Ok(()),
        }
    }
}

/// The store as PD knows it.
fn store_meta(store: &Store, addresses: &Addresses) -> metapb::Store {
    metapb::Store {
        id: store.store_id(),
        address: reachable(addresses.store).to_string(),
        state: metapb::StoreState::Up.into(),
        status_address: addresses
            .status
            .map(|addr| reachable(addr).to_string())
            .unwrap_or_default(),
        node_state: metapb::NodeState::Serving.into(),
        ..Default::default()
    }
}

pub(crate) fn incoming(listener: std::net::TcpListener) -> Result<TcpIncoming, String> {
    let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
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

impl Host for Parts {
    fn cluster_id(&self) -> u64 {
        self.pd.cluster_id()
    }

    fn engine(&self) -> &RocksEngine {
        self.store.engine()
    }

    fn region(&self, id: u64) -> Option<metapb::Region> {
        let regions = self.store.regions();
        regions.get(id).map(|region| metapb::Region::clone(region))
    }

    fn timestamp(&self) -> Result<Ts, String> {
        self.pd.timestamp().map_err(|e| e.to_string())
    }

    fn while_quiet(&self, floor: Ts, work: &mut dyn FnMut()) {
        let mut writes = self.store.lock_writes();
        writes.raise_max_ts(floor);
        work();
    }
}
