//! The stores of the playground at a real PD, as TiKV stores register there.
//!
//! The playground's own PD and etcd are off: cluster id, ids of new regions and timestamps come from
//! PD, and PD learns of the stores and their regions by heartbeats. The stores are all of a cluster: a PD
//! that another store has bootstrapped is refused. Nothing here ends the playground: while PD is
//! away or elects a leader, the stores go on serving, and everything is told again afterwards.
//! Made by the process assembly; each store's server runs the heartbeats while it serves.

mod bridge;
mod calls;
mod error;
mod identity;
mod join;
mod operators;
mod regions;
mod replicas;
mod report;
mod stores;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::pd::{PdClient, PdOptions};
use pitr_cluster::tls::Security;
use pitr_format::Ts;
use pitr_proto::metapb;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::store::{IdAllocator, RegionIds, Store, first_region};
use bridge::Bridge;
pub use error::RealPdError;
pub(crate) use identity::Identity;
use report::{Report, Term};

/// How long a split waits for its ids.
const IDS_LIMIT: Duration = Duration::from_secs(5);

/// A real PD, joined.
pub(crate) struct RealPd {
    client: Arc<PdClient>,
    bridge: Bridge,
    identity: Identity,
    addr: SocketAddr,
    term: Arc<Term>,
}

/// A store at PD.
pub(crate) struct Member {
    pd: Arc<RealPd>,
    store: Arc<Store>,
    report: Arc<Report>,
}

/// The heartbeats of a store; they end when it is dropped.
pub(crate) struct Heartbeats(AbortHandle);

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RealPd {
    /// Connects and takes the ids of the stores, the first region and that region's peers, those of
    /// `dir` if it was used before. Blocks.
    pub(crate) fn connect(
        urls: &[String],
        security: &Security,
        dir: &Path,
        stores: usize,
        runtime: Handle,
    ) -> Result<Arc<Self>, RealPdError> {
        let bridge = Bridge::new(runtime);
        let addr = resolve(urls)?;
        let (given, dir) = (urls.to_vec(), dir.to_path_buf());
        let options = PdOptions {
            security: security.clone(),
            ..PdOptions::default()
        };
        let (client, identity, now) = bridge.wait(async move {
            let client = PdClient::connect_with(&given, options).await?;
            let identity = match Identity::find(&dir, client.cluster_id())? {
                Some(found) => found,
                None => {
                    let mut fresh = Vec::new();
                    for _ in 0..Identity::ids_for(stores) {
                        fresh.push(calls::alloc_id(&client).await?);
                    }
                    Identity::create(&dir, client.cluster_id(), &fresh)?
                }
            };
            let now = client.tso().await?;
            Ok::<_, RealPdError>((client, identity, now))
        })??;
        Ok(Arc::new(RealPd {
            client,
            bridge,
            identity,
            addr,
            term: Term::from(now.physical_ms()),
        }))
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Makes the stores known: bootstraps an empty cluster, tells the addresses of every store, makes PD
    /// content with their number. Blocks.
    pub(crate) fn join(&self, stores: Vec<metapb::Store>) -> Result<(), RealPdError> {
        let first = stores.first().map(|store| store.id);
        let region = first_region(&self.identity.first_region(), first.as_slice());
        let client = self.client.clone();
        self.bridge.wait(async move {
            let replicas = stores.len();
            join::join(&client, stores, region).await?;
            if let Err(error) = replicas::set(&client.urls(), client.security(), replicas).await {
                tracing::warn!(error, replicas, "PD keeps its own number of replicas");
            }
            Ok(())
        })?
    }

    /// A store of the cluster.
    pub(crate) fn member(self: &Arc<Self>, store: &Arc<Store>) -> Member {
        let report = Report::new(store.store_id(), self.term.clone());
        store.observe(report.clone());
        Member {
            pd: self.clone(),
            store: store.clone(),
            report,
        }
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
}

impl Member {
    /// Tells PD of a store that comes back. Blocks; fails after some seconds without PD.
    pub(crate) fn announce(&self, meta: metapb::Store) -> Result<(), RealPdError> {
        let client = self.pd.client.clone();
        let told = self
            .pd
            .bridge
            .wait(async move { calls::put_store(&client, meta).await });
        Ok(told??)
    }

    /// Begins the heartbeats of the store and of the regions that it leads.
    pub(crate) fn beat(&self) -> Heartbeats {
        let client = self.pd.client.clone();
        let (store, report) = (self.store.clone(), self.report.clone());
        Heartbeats(self.pd.bridge.spawn(async move {
            tokio::join!(
                stores::run(client.clone(), store.clone(), report.clone()),
                regions::run(client.clone(), store.clone(), report.clone()),
                regions::report_splits(client, store, report),
            );
        }))
    }
}

/// The first URL as a socket address.
fn resolve(urls: &[String]) -> Result<SocketAddr, RealPdError> {
    let url = urls.first().map(String::as_str).unwrap_or_default();
    let bare = url.split_once("://").map_or(url, |(_, host)| host);
    let bare = bare.trim_end_matches('/');
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
