//! The store of the playground at a real PD, as a TiKV store registers there.
//!
//! The playground's own PD and etcd are off: cluster id, ids of new regions and timestamps come from
//! PD, and PD learns of the store and its regions by heartbeats. The store is all of a cluster: a PD
//! that another store has bootstrapped is refused. Nothing here ends the playground: while PD is
//! away or elects a leader, the store goes on serving, and everything is told again afterwards.
//! Made and run by the process assembly.

mod bridge;
mod calls;
mod error;
mod identity;
mod join;
mod regions;
mod report;
mod stores;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::pd::PdClient;
use pitr_format::Ts;
use pitr_proto::metapb;
use tokio::runtime::Handle;

use crate::store::{IdAllocator, RegionIds, Store};
use bridge::Bridge;
pub use error::RealPdError;
pub(crate) use identity::Identity;
use report::Report;

/// How long a split waits for its ids.
const IDS_LIMIT: Duration = Duration::from_secs(5);

/// A real PD, joined.
pub(crate) struct RealPd {
    client: Arc<PdClient>,
    bridge: Bridge,
    identity: Identity,
    addr: SocketAddr,
    report: Arc<Report>,
}

impl RealPd {
    /// Connects and takes the ids of the store, its first region and that region's peer, those of
    /// `dir` if it was used before. Blocks.
    pub(crate) fn connect(
        urls: &[String],
        dir: &std::path::Path,
        runtime: Handle,
    ) -> Result<Arc<Self>, RealPdError> {
        let bridge = Bridge::new(runtime);
        let addr = resolve(urls)?;
        let given = urls.to_vec();
        let (client, free) = bridge.wait(async move {
            let client = PdClient::connect(&given).await?;
            let mut free = [0; 3];
            for id in &mut free {
                *id = calls::alloc_id(&client).await?;
            }
            Ok::<_, RealPdError>((client, free))
        })??;
        let identity = Identity::open(dir, client.cluster_id(), free)?;
        Ok(Arc::new(RealPd {
            client,
            bridge,
            identity,
            addr,
            report: Arc::default(),
        }))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Makes the store known: bootstraps an empty cluster, tells the store's addresses. Blocks.
    pub(crate) fn join(&self, store: &Store, meta: metapb::Store) -> Result<(), RealPdError> {
        let first = store.regions().find(b"").map(|r| metapb::Region::clone(r));
        let client = self.client.clone();
        self.bridge
            .wait(async move { join::join(&client, meta, first.unwrap_or_default()).await })?
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.client.cluster_id()
    }

    /// The first URL that was given, resolved.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A fresh timestamp. Blocks; fails after some seconds without PD.
    pub(crate) fn timestamp(&self) -> Result<Ts, RealPdError> {
        let client = self.client.clone();
        Ok(self.bridge.wait(async move { client.tso().await })??)
    }

    /// Who notes what the heartbeats have to tell; to be registered at the store.
    pub(crate) fn observer(&self) -> Arc<Report> {
        self.report.clone()
    }

    /// Heartbeats for ever.
    pub(crate) async fn run(&self, store: Arc<Store>) {
        tokio::join!(
            stores::run(self.client.clone(), store.clone(), self.report.clone()),
            regions::run(self.client.clone(), store, self.report.clone()),
            regions::report_splits(self.client.clone(), self.report.clone()),
        );
    }
}

/// The first URL as a socket address.
fn resolve(urls: &[String]) -> Result<SocketAddr, RealPdError> {
    let url = urls.first().map(String::as_str).unwrap_or_default();
    let bare = url.trim_start_matches("http://").trim_end_matches('/');
    let wrong = |reason: String| RealPdError::Address {
        url: url.to_owned(),
        reason,
    };
    let mut found = bare.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    found.next().ok_or_else(|| wrong("no such host".to_owned()))
}

impl IdAllocator for RealPd {
    fn alloc(&self, region: &metapb::Region, count: usize) -> Result<Vec<RegionIds>, String> {
        let (client, region) = (self.client.clone(), region.clone());
        let asked = self.bridge.wait(async move {
            tokio::time::timeout(IDS_LIMIT, calls::ask_split(&client, region, count)).await
        });
        match asked {
            Ok(Ok(Ok(ids))) => Ok(ids),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(_)) => Err(format!("PD gave no ids within {IDS_LIMIT:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
