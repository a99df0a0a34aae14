//! Channels to the stores of a cluster, found through PD by store id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::net::{AddressError, store_channel};
use crate::pd::{PdClient, PdError};

/// Longest answer of a store that is accepted.
pub(crate) const MAX_MESSAGE: usize = 256 << 20;
/// One attempt of one call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Channels by store id; cheap to share.
pub struct StoreChannels {
    pd: Arc<PdClient>,
    channels: Mutex<BTreeMap<u64, Channel>>,
}

/// A store cannot be dialled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// PD does not know where it is.
    #[error(transparent)]
    Pd(#[from] PdError),
    /// PD reports an unusable address.
    #[error("store {store_id}: {source}")]
    Address {
        /// The store.
        store_id: u64,
        /// Why.
        source: AddressError,
    },
    /// PD has no such store, or it is a tombstone.
    #[error("PD knows no store {store_id}")]
    Unknown {
        /// The store.
        store_id: u64,
    },
}

impl StoreError {
    /// What the caller can do.
    pub fn class(&self) -> pitr_format::Class {
        match self {
            StoreError::Pd(error) => error.class(),
            StoreError::Address { .. } => pitr_format::Class::Permanent,
            StoreError::Unknown { .. } => pitr_format::Class::Refresh,
        }
    }
}

impl StoreChannels {
    /// Channels of PD's cluster.
    pub fn new(pd: Arc<PdClient>) -> Arc<Self> {
        Arc::new(StoreChannels {
            pd,
            channels: Mutex::new(BTreeMap::new()),
        })
    }

    /// The PD client this was made with.
    pub fn pd(&self) -> &Arc<PdClient> {
        &self.pd
    }

    /// The channel of a store; dials lazily.
    pub async fn of(&self, store_id: u64) -> Result<Channel, StoreError> {
        if let Some(channel) = self.channels.lock().get(&store_id) {
            return Ok(channel.clone());
        }
        let stores = self.pd.stores().await?;
        let store = stores.into_iter().find(|store| store.id == store_id);
        let store = store.ok_or(StoreError::Unknown { store_id })?;
        let channel = store_channel(self.pd.security(), &store.address)
            .map_err(|source| StoreError::Address { store_id, source })?;
        let mut channels = self.channels.lock();
        Ok(channels.entry(store_id).or_insert(channel).clone())
    }

    /// Forgets a channel after a transport error: the store may have moved.
    pub fn forget(&self, store_id: u64) {
        self.channels.lock().remove(&store_id);
    }
}
