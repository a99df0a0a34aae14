//! Where the store's ids, timestamps and cluster id come from: the playground's own PD, which is
//! served here together with its etcd, or a real one. Chosen by the process assembly.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_cluster::tls::Security;
use pitr_format::Ts;
use pitr_proto::etcdserverpb::{
    kv_server::KvServer, lease_server::LeaseServer, watch_server::WatchServer,
};
use pitr_proto::metapb;
use pitr_proto::pdpb::pd_server::PdServer;
use tonic::transport::Server;

use crate::assembly::{MAX_MESSAGE, incoming, reachable};
use crate::etcd::error::EtcdError;
use crate::etcd::service::EtcdService;
use crate::etcd::store::EtcdStore;
use crate::etcd::watch::WatchService;
use crate::node::PlaygroundConfig;
use crate::pd::clock::Clock;
use crate::pd::service::PdService;
use crate::pd::state::{StateError, StateFile};
use crate::pd::topology::{Placed, Topology};
use crate::pd::tso::TimestampOracle;
use crate::realpd::{Member, RealPd, RealPdError};
use crate::server::StoreServer;
use crate::store::{IdAllocator, RegionIds, RegionMap, SplitError, Store};
use crate::tls::Tls;

/// Events that etcd keeps for watchers.
const ETCD_HISTORY: usize = 10_000;

/// Ids of stores that do not exist.
const GHOST_IDS: u64 = 1 << 32;

/// No timestamp can be had.
#[derive(Debug, thiserror::Error)]
pub enum TimestampError {
    /// The own PD cannot write its file.
    #[error(transparent)]
    Own(#[from] StateError),
    /// The real PD does not answer.
    #[error(transparent)]
    Real(#[from] RealPdError),
}

impl TimestampError {
    /// What the caller can do.
    pub fn class(&self) -> pitr_format::Class {
        match self {
            TimestampError::Own(error) => error.class(),
            TimestampError::Real(error) => error.class(),
        }
    }
}

/// See the module.
pub(crate) enum Coordinator {
    Own(OwnPd),
    Real(Arc<RealPd>),
}

/// The parts of the own PD.
pub(crate) struct OwnPd {
    state: Arc<StateFile>,
    oracle: Arc<TimestampOracle>,
    etcd: Arc<EtcdStore>,
    clock: Clock,
    addr: SocketAddr,
    ghosts: u64,
    gc_states: bool,
    security: Security,
}

impl Coordinator {
    pub(crate) fn cluster_id(&self) -> u64 {
        match self {
            Coordinator::Own(own) => own.state.cluster_id(),
            Coordinator::Real(real) => real.cluster_id(),
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        match self {
            Coordinator::Own(own) => own.addr,
            Coordinator::Real(real) => real.addr(),
        }
    }

    pub(crate) fn timestamp(&self) -> Result<Ts, TimestampError> {
        match self {
            Coordinator::Own(own) => Ok(own.oracle.next(1)?),
            Coordinator::Real(real) => Ok(real.timestamp()?),
        }
    }

    /// The place of a store at a real PD.
    pub(crate) fn member(&self, store: &Arc<Store>) -> Option<Member> {
        match self {
            Coordinator::Own(_) => None,
            Coordinator::Real(real) => Some(real.member(store)),
        }
    }

    /// Serves the own PD; the first error ends it.
    pub(crate) async fn serve(
        &self,
        listener: Option<TcpListener>,
        servers: Vec<Arc<StoreServer>>,
    ) -> Result<(), String> {
        match (self, listener) {
            (Coordinator::Own(own), Some(listener)) => {
                let etcd = EtcdService::new(own.etcd.clone());
                tokio::select! {
                    ended = own.serve(listener, servers) => ended,
                    () = etcd.expire_leases() => Ok(()),
                }
            }
            (Coordinator::Own(_), None) => Err("PD: no address to listen on".to_owned()),
            // The servers of the stores tell it everything.
            (Coordinator::Real(_), _) => std::future::pending().await,
        }
    }
}

/// Why the own PD cannot be opened.
pub(crate) enum OwnPdError {
    State(StateError),
    Etcd(EtcdError),
}

impl OwnPd {
    pub(crate) fn open(
        config: &PlaygroundConfig,
        tls: &Tls,
        clock: Clock,
        addr: SocketAddr,
    ) -> Result<Self, OwnPdError> {
        let dir = &config.data_dir;
        let state = StateFile::open(dir, config.cluster_id).map_err(OwnPdError::State)?;
        let state = Arc::new(state);
        let oracle = Arc::new(TimestampOracle::new(state.clone(), clock.clone()));
        let etcd = EtcdStore::open(dir, state.cluster_id(), ETCD_HISTORY, clock.clone())
            .map_err(OwnPdError::Etcd)?;
        Ok(OwnPd {
            state,
            oracle,
            etcd: Arc::new(etcd),
            clock,
            addr,
            ghosts: config.ghost_stores,
            gc_states: config.gc_states,
            security: tls.security.clone(),
        })
    }

    /// Source of the ids of split regions.
    pub(crate) fn ids(&self) -> Arc<dyn IdAllocator> {
        Arc::new(PdIds(self.state.clone()))
    }

    async fn serve(
        &self,
        listener: TcpListener,
        servers: Vec<Arc<StoreServer>>,
    ) -> Result<(), String> {
        let topology = Arc::new(StoreTopology {
            servers,
            ghosts: self.ghosts,
            told: Mutex::default(),
        });
        let pd = PdService::new(
            self.state.clone(),
            self.oracle.clone(),
            topology,
            self.clock.clone(),
            format!("{}://{}", self.security.scheme(), reachable(self.addr)),
            self.gc_states,
        );
        let etcd = EtcdService::new(self.etcd.clone());
        let watch = WatchService::new(self.etcd.clone());
        Server::builder()
            .add_service(PdServer::new(pd).max_decoding_message_size(MAX_MESSAGE))
            .add_service(KvServer::new(etcd.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(LeaseServer::new(etcd))
            .add_service(WatchServer::new(watch))
            .serve_with_incoming(incoming(&self.security, listener)?)
            .await
            .map_err(|e| format!("PD: {e}"))
    }
}

/// Splits take their ids from PD.
struct PdIds(Arc<StateFile>);

impl IdAllocator for PdIds {
    fn alloc(&self, region: &metapb::Region, count: usize) -> Result<Vec<RegionIds>, String> {
        let each = region.peers.len() as u64 + 1;
        // At once: every allocation is written to the disk.
        let all = u32::try_from(each * count as u64).map_err(|e| e.to_string())?;
        let last = self.0.alloc_ids(all).map_err(|e| e.to_string())?;
        let ids = |n: u64| {
            let region = last + 1 - (count as u64 - n) * each;
            RegionIds {
                region,
                peers: (region + 1..region + each).collect(),
            }
        };
        Ok((0..count as u64).map(ids).collect())
    }
}

/// The stores as the own PD sees them.
struct StoreTopology {
    servers: Vec<Arc<StoreServer>>,
    ghosts: u64,
    /// What was told last: most questions find the map unchanged.
    told: Mutex<Option<Told>>,
}

/// Regions with their leaders, and the map that they are of.
struct Told {
    of: Arc<RegionMap>,
    regions: Arc<Vec<Placed>>,
}

impl StoreTopology {
    /// Any of the stores: all know all regions.
    fn store(&self) -> Option<&Arc<Store>> {
        self.servers.first().map(|server| server.store())
    }
}

impl Topology for StoreTopology {
    fn stores(&self) -> Vec<metapb::Store> {
        self.servers.iter().map(|server| server.meta()).collect()
    }

    fn ghosts(&self) -> Vec<metapb::Store> {
        let first = self.servers.first().map(|server| server.meta());
        let ghost = |n| metapb::Store {
            id: GHOST_IDS + n,
            address: format!("ghost-{n}:20160"),
            ..first.clone().unwrap_or_default()
        };
        (0..self.ghosts).map(ghost).collect()
    }

    fn regions(&self) -> Arc<Vec<Placed>> {
        let Some(regions) = self.store().map(|store| store.regions()) else {
            return Arc::default();
        };
        let mut told = self.told.lock();
        if let Some(last) = told.as_ref().filter(|last| Arc::ptr_eq(&last.of, &regions)) {
            return last.regions.clone();
        }
        let placed = |region: &Arc<metapb::Region>| Placed {
            region: metapb::Region::clone(region),
            leader: regions.leader(region.id).cloned(),
        };
        let all: Arc<Vec<Placed>> = Arc::new(regions.iter().map(placed).collect());
        *told = Some(Told {
            of: regions,
            regions: all.clone(),
        });
        all
    }

    fn scatter(&self, region_id: u64) {
        let Some(regions) = self.store().map(|store| store.regions()) else {
            return;
        };
        let up = self.servers.iter().filter(|s| s.store().is_up());
        let load = |s: &&Arc<StoreServer>| regions.led_by(Some(s.store().store_id())).len();
        let (Some(idle), Some(leader)) = (up.min_by_key(load), regions.leader(region_id)) else {
            return;
        };
        let leads = regions.led_by(Some(leader.store_id)).len();
        if leads <= load(&idle) + 1 {
            return;
        }
        // A region that changed meanwhile stays where it is.
        let _ = idle
            .store()
            .transfer_leader(region_id, idle.store().store_id());
    }

    fn split(&self, keys: &[Bytes]) -> Result<Vec<u64>, String> {
        // One split per region, as PD's operators do it: the parts get one version.
        let mut wanted: BTreeMap<u64, (Arc<metapb::Region>, Vec<Bytes>)> = BTreeMap::new();
        let Some(store) = self.store() else {
            return Err("there is no store".to_owned());
        };
        let regions = store.regions();
        for key in keys {
            if let Some(region) = regions.find(key)
                && region.start_key != *key
            {
                let entry = wanted.entry(region.id);
                let (_, keys) = entry.or_insert_with(|| (region.clone(), Vec::new()));
                keys.push(key.clone());
            }
        }
        let mut new = Vec::new();
        for (id, (region, keys)) in wanted {
            let context = store.regions().context(&region);
            let parts = store.leading(id).split(Some(&context), keys);
            let parts = parts.map_err(|e| match e {
                SplitError::Refused(error) => error.message,
                other => other.to_string(),
            })?;
            new.extend(parts.iter().map(|p| p.id).filter(|part| *part != id));
        }
        Ok(new)
    }
}
