//! Import mode of the target's stores while files are ingested: TiKV then lets RocksDB take many
//! files without slowing writers down (tikv/tikv `components/sst_importer/src/import_mode.rs`).
//!
//! A store leaves the mode by itself after 10 minutes, so it is renewed every 5; a restore that
//! dies therefore leaves nothing behind. All of it is best effort: a store that does not switch
//! only ingests more slowly.

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::import::ImportClient;
use pitr_cluster::stores::StoreChannels;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::failure::chain;

/// Half of the time after which a store falls back.
const RENEW_EVERY: Duration = Duration::from_secs(300);
/// Longest time for the way back, so that an interrupted restore ends soon.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// Stores in import mode, until [`ImportMode::leave`].
pub struct ImportMode {
    stores: Arc<Stores>,
    renewal: JoinHandle<()>,
}

struct Stores {
    client: ImportClient,
    ids: Vec<u64>,
}

impl ImportMode {
    /// Switches every TiKV store of the cluster, and again every 5 minutes.
    pub async fn enter(cluster: &Cluster) -> Self {
        let ids = match cluster.tikv_stores().await {
            Ok(stores) => stores.iter().map(|store| store.id).collect(),
            Err(error) => {
                tracing::warn!(error = chain(&error), "stores stay in normal mode");
                Vec::new()
            }
        };
        let stores = Arc::new(Stores {
            client: ImportClient::new(StoreChannels::new(cluster.pd.clone())),
            ids,
        });
        stores.switch(true).await;
        let renewed = Arc::clone(&stores);
        let renewal = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                renewed.switch(true).await;
            }
        });
        ImportMode { stores, renewal }
    }

    /// Back to normal, after success as after failure.
    pub async fn leave(self) {
        self.renewal.abort();
        if tokio::time::timeout(LEAVE_WITHIN, self.stores.switch(false))
            .await
            .is_err()
        {
            tracing::warn!("a store may stay in import mode for up to 10 minutes");
        }
    }
}

impl Drop for ImportMode {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Stores {
    async fn switch(&self, import: bool) {
        let mut calls = tokio::task::JoinSet::new();
        for id in self.ids.iter().copied() {
            let client = self.client.clone();
            calls.spawn(async move { client.switch_mode(id, import).await });
        }
        for answer in calls.join_all().await {
            if let Err(error) = answer {
                tracing::warn!(
                    import,
                    error = chain(&error),
                    "a store did not switch its mode"
                );
            }
        }
    }
}
