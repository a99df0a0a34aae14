//! Opens the parts of the playground and wires them together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_budget::MemoryBudget;
use pitr_format::Ts;
use pitr_proto::cdcpb::change_data_server::ChangeDataServer;
use pitr_proto::etcdserverpb::{
    kv_server::KvServer, lease_server::LeaseServer, watch_server::WatchServer,
};
use pitr_proto::metapb;
use pitr_proto::pdpb::pd_server::PdServer;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::service::{ImportLimits, ImportService};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::cdc::host::Host;
use crate::cdc::hub::Hub;
use crate::cdc::service::{ChangeDataService, Limits};
use crate::cdc::ticker;
use crate::etcd::service::EtcdService;
use crate::etcd::store::EtcdStore;
use crate::etcd::watch::WatchService;
use crate::import_host::StoreImport;
use crate::node::{Listeners, PlaygroundConfig, StartError};
use crate::pd::clock::{Clock, system_clock};
use crate::pd::service::PdService;
use crate::pd::state::{StateError, StateFile};
use crate::pd::topology::Topology;
use crate::pd::tso::TimestampOracle;
use crate::status;
use crate::store::service::TikvService;
use crate::store::{IdAllocator, RegionIds, SplitError, Store, StoreOptions, context_of};

/// Version that the store reports.
pub const STORE_VERSION: &str = "8.5.6";
const STORE_ID: u64 = 1;
/// Ids of stores that do not exist.
const GHOST_IDS: u64 = 1 << 32;
const FIRST_REGION: RegionIds = RegionIds { region: 2, peer: 3 };
/// Memory of the import service: slices, cached or in use, and pieces of downloads.
const IMPORT_MEMORY: u64 = 512 << 20;
/// Events that etcd keeps for watchers.
const ETCD_HISTORY: usize = 10_000;
/// Larger messages are refused, as TiKV does by its raft entry limit and PD's etcd at 150 MiB.
const MAX_MESSAGE: usize = 256 << 20;

/// The open parts.
pub(crate) struct Parts {
    state: Arc<StateFile>,
    oracle: Arc<TimestampOracle>,
    store: Arc<Store>,
    hub: Arc<Hub>,
    etcd: Arc<EtcdStore>,
    clock: Clock,
    pd_addr: SocketAddr,
    store_addr: SocketAddr,
    status_addr: Option<SocketAddr>,
    started_at: i64,
    interval: Duration,
    import_dir: PathBuf,
    store_version: String,
    ghost_stores: u64,
}

/// Splits take their ids from PD.
struct PdIds(Arc<StateFile>);

impl IdAllocator for PdIds {
    fn alloc(&self) -> Result<RegionIds, String> {
        let last = self.0.alloc_ids(2).map_err(|e| e.to_string())?;
        Ok(RegionIds {
            region: last - 1,
            peer: last,
        })
    }
}

impl Parts {
    pub(crate) fn open(
        config: &PlaygroundConfig,
        pd_addr: SocketAddr,
        store_addr: SocketAddr,
        status_addr: Option<SocketAddr>,
    ) -> Result<Arc<Self>, StartError> {
        let clock = system_clock();
        let state = Arc::new(StateFile::open(&config.data_dir, config.cluster_id)?);
        let oracle = Arc::new(TimestampOracle::new(state.clone(), clock.clone()));
        let etcd = EtcdStore::open(
            &config.data_dir,
            state.cluster_id(),
            ETCD_HISTORY,
            clock.clone(),
        )?;
        let options = StoreOptions {
            store_id: STORE_ID,
            first_region: FIRST_REGION,
            ids: Arc::new(PdIds(state.clone())),
        };
        let store = Store::open(&config.data_dir.join("store"), options)?;
        // Reads of the last run were below this; no commit may land among them.
        store.raise_max_ts(oracle.next(1)?);
        let hub = Arc::new(Hub::new(store.engine().clone()));
        store.observe(hub.clone());
        Ok(Arc::new(Parts {
            started_at: i64::try_from(clock() / 1000).unwrap_or(0),
            state,
            oracle,
            store,
            hub,
            etcd: Arc::new(etcd),
            clock,
            pd_addr,
            store_addr,
            status_addr,
            interval: config.resolved_ts_interval,
            import_dir: config.data_dir.join("import"),
            store_version: config.store_version.clone(),
            ghost_stores: config.ghost_stores,
        }))
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.state.cluster_id()
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn timestamp(&self) -> Result<Ts, StateError> {
        self.oracle.next(1)
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
            ended = self.serve_pd(listeners.pd) => ended,
            ended = self.serve_store(listeners.store) => ended,
            ended = status => ended,
            () = EtcdService::new(self.etcd.clone()).expire_leases() => Ok(()),
            () = ticker::run(host, self.hub.clone(), self.interval) => Ok(()),
        }
    }

    async fn serve_pd(&self, listener: std::net::TcpListener) -> Result<(), String> {
        let topology = Arc::new(StoreTopology {
            store: self.store.clone(),
            meta: self.store_meta(),
            clock: self.clock.clone(),
            ghosts: self.ghost_stores,
        });
        let pd = PdService::new(
            self.state.clone(),
            self.oracle.clone(),
            topology,
            self.clock.clone(),
            format!("http://{}", reachable(self.pd_addr)),
        );
        let etcd = EtcdService::new(self.etcd.clone());
        let watch = WatchService::new(self.etcd.clone());
        Server::builder()
            .add_service(PdServer::new(pd).max_decoding_message_size(MAX_MESSAGE))
            .add_service(KvServer::new(etcd.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(LeaseServer::new(etcd))
            .add_service(WatchServer::new(watch))
            .serve_with_incoming(incoming(listener)?)
            .await
            .map_err(|e| format!("PD: {e}"))
    }

    async fn serve_store(self: &Arc<Self>, listener: std::net::TcpListener) -> Result<(), String> {
        let host: Arc<dyn Host> = self.clone();
        let cdc = ChangeDataService::new(host, self.hub.clone(), Limits::default());
        let import = ImportService::new(
            Arc::new(StoreImport::new(self.store.clone())),
            &self.import_dir,
            ImportLimits::default(),
            MemoryBudget::new(IMPORT_MEMORY),
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

    fn store_meta(&self) -> metapb::Store {
        metapb::Store {
            id: self.store.store_id(),
            address: reachable(self.store_addr).to_string(),
            state: metapb::StoreState::Up.into(),
            version: self.store_version.clone(),
            status_address: self
                .status_addr
                .map(|addr| reachable(addr).to_string())
                .unwrap_or_default(),
            start_timestamp: self.started_at,
            node_state: metapb::NodeState::Serving.into(),
            ..Default::default()
        }
    }
}

fn incoming(listener: std::net::TcpListener) -> Result<TcpIncoming, String> {
    let listener = TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// The address that clients are told: a listener on all interfaces is reached by loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

impl Host for Parts {
    fn cluster_id(&self) -> u64 {
        self.state.cluster_id()
    }

    fn engine(&self) -> &RocksEngine {
        self.store.engine()
    }

    fn region(&self, id: u64) -> Option<metapb::Region> {
        let regions = self.store.regions();
        regions.get(id).map(|region| metapb::Region::clone(region))
    }

    fn timestamp(&self) -> Result<Ts, String> {
        self.oracle.next(1).map_err(|e| e.to_string())
    }

    fn while_quiet(&self, floor: Ts, work: &mut dyn FnMut()) {
        let mut writes = self.store.lock_writes();
        writes.raise_max_ts(floor);
        work();
    }
}

/// The store as PD sees it.
struct StoreTopology {
    store: Arc<Store>,
    meta: metapb::Store,
    clock: Clock,
    ghosts: u64,
}

impl Topology for StoreTopology {
    fn store(&self) -> metapb::Store {
        let now_ms = i64::try_from((self.clock)()).unwrap_or(0);
        metapb::Store {
            last_heartbeat: now_ms.saturating_mul(1_000_000),
            ..self.meta.clone()
        }
    }

    fn stores(&self) -> Vec<metapb::Store> {
        let store = self.store();
        let ghost = |n| metapb::Store {
            id: GHOST_IDS + n,
            address: format!("ghost-{n}:20160"),
            ..store.clone()
        };
        let ghosts = (0..self.ghosts).map(ghost);
        std::iter::once(store.clone()).chain(ghosts).collect()
    }

    fn regions(&self) -> Vec<metapb::Region> {
        let regions = self.store.regions();
        regions.iter().map(|r| metapb::Region::clone(r)).collect()
    }

    fn split(&self, keys: &[Bytes]) -> Result<Vec<u64>, String> {
        let mut new = Vec::new();
        for key in keys {
            let Some(region) = self.store.regions().find(key).cloned() else {
                continue;
            };
            if region.start_key == *key {
                continue;
            }
            let parts = self.store.split(Some(&context_of(&region)), [key.clone()]);
            let parts = parts.map_err(|e| match e {
                SplitError::Refused(error) => error.message,
                other => other.to_string(),
            })?;
            new.extend(parts.iter().map(|p| p.id).filter(|id| *id != region.id));
        }
        Ok(new)
    }
}
