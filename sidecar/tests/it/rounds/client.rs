//! A client of the source as any other: transactions over `tikvpb`, region by region. Each method
//! is one step of a transaction, over all of its keys.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_cluster::kv::KvClient;
use pitr_cluster::pd::{PdClient, Region};
use pitr_cluster::stores::StoreChannels;
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::errorpb;
use pitr_proto::kvrpcpb::{self, Context, KeyError, LockInfo, MvccInfo, Op};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Attempts of one step while regions split.
const ATTEMPTS: usize = 50;
/// The histories of keys with long values are long.
const MAX_MESSAGE: usize = 256 << 20;

/// What kept a step from being done.
#[derive(Debug)]
#[expect(dead_code, reason = "the words are for whoever reads a failed round")]
pub enum Trouble {
    /// PD or the store did not answer: it may or may not have been done.
    Away(String),
    /// The store refused it for a key.
    Refused(Box<KeyError>),
}

/// An answer of the store.
pub trait Answer {
    fn region_error(&self) -> Option<&errorpb::Error>;
    fn key_error(&self) -> Option<KeyError>;
}

macro_rules! answers {
    ($($name:ident => |$answer:ident| $error:expr;)*) => {$(
        impl Answer for kvrpcpb::$name {
            fn region_error(&self) -> Option<&errorpb::Error> {
                self.region_error.as_ref()
            }
            fn key_error(&self) -> Option<KeyError> {
                let $answer = self;
                $error
            }
        }
    )*};
}

answers! {
    PrewriteResponse => |a| a.errors.first().cloned();
    CommitResponse => |a| a.error.clone();
    BatchRollbackResponse => |a| a.error.clone();
    PessimisticLockResponse => |a| a.errors.first().cloned();
    PessimisticRollbackResponse => |a| a.errors.first().cloned();
    GetResponse => |a| a.error.clone();
    SplitRegionResponse => |a| a.errors.first().cloned();
    ScanLockResponse => |a| a.error.clone();
    MvccGetByKeyResponse => |a| (!a.error.is_empty()).then(|| KeyError {
        abort: a.error.clone(),
        ..KeyError::default()
    });
}

/// A client; cheap to share.
#[derive(Clone)]
pub struct Client {
    stores: Arc<StoreChannels>,
    regions: Arc<Mutex<Vec<Region>>>,
}

/// The stub of one call.
pub type Stub = TikvClient<Channel>;

impl Client {
    /// A client of the cluster of this PD.
    pub async fn connect(pd: &str) -> Self {
        let pd = PdClient::connect(&[pd.to_owned()]).await.unwrap();
        Client {
            stores: StoreChannels::new(pd),
            regions: Arc::default(),
        }
    }

    /// PD of the cluster.
    pub fn pd(&self) -> &Arc<PdClient> {
        self.stores.pd()
    }

    /// A fresh timestamp.
    pub async fn now(&self) -> Result<Ts, Trouble> {
        self.pd().tso().await.map_err(away)
    }

    /// Reads at a ts, with the resolving of locks that are in the way.
    pub fn reader(&self) -> KvClient {
        KvClient::with_stores(self.stores.clone())
    }

    /// Whether all keys lie in one region, as far as this client knows.
    pub async fn in_one_region(&self, keys: &[Bytes]) -> Result<bool, Trouble> {
        Ok(self.grouped(keys).await?.len() == 1)
    }

    /// Splits the region of a key at it; a region that begins there already stays as it is.
    pub async fn split(&self, key: &Bytes) -> Result<(), Trouble> {
        let step = self.step(std::slice::from_ref(key), |mut stub, context, keys| {
            let request = kvrpcpb::SplitRegionRequest {
                context: Some(context),
                split_keys: keys,
                ..Default::default()
            };
            async move { stub.split_region(request).await }
        });
        step.await.map(drop)
    }

    /// Every version of a key.
    pub async fn history(&self, key: &Bytes) -> Result<MvccInfo, Trouble> {
        let step = self.step(std::slice::from_ref(key), |mut stub, context, mut keys| {
            let request = kvrpcpb::MvccGetByKeyRequest {
                context: Some(context),
                key: keys.remove(0),
            };
            async move { stub.mvcc_get_by_key(request).await }
        });
        let mut answers = step.await?;
        Ok(answers.remove(0).info.unwrap_or_default())
    }

    /// Locks of transactions that hold back the resolved ts: those that will change something.
    pub async fn locks(&self) -> Result<Vec<LockInfo>, Trouble> {
        self.regions.lock().clear();
        let regions = self.known_regions().await?;
        let starts = regions.iter().map(|region| {
            let start = EncodedKey::from_encoded(region.meta.start_key.clone());
            Bytes::from(start.decode().unwrap_or_default())
        });
        let starts: Vec<Bytes> = starts.collect();
        let step = self.step(&starts, |mut stub, context, _| {
            let request = kvrpcpb::ScanLockRequest {
                context: Some(context),
                max_version: u64::MAX,
                ..Default::default()
            };
            async move { stub.kv_scan_lock(request).await }
        });
        let locks = step.await?.into_iter().flat_map(|answer| answer.locks);
        Ok(locks
            .filter(|lock| matches!(lock.lock_type(), Op::Put | Op::Del))
            .collect())
    }

    /// Makes a call to each region that holds some of the keys; again with the keys that are left
    /// when regions turned out to be others.
    pub async fn step<A, F, Fut>(&self, keys: &[Bytes], call: F) -> Result<Vec<A>, Trouble>
    where
        A: Answer,
        F: Fn(Stub, Context, Vec<Bytes>) -> Fut,
        Fut: Future<Output = Result<Response<A>, Status>>,
    {
        let mut answers = Vec::new();
        let mut left = keys.to_vec();
        for attempt in 0..ATTEMPTS {
            let mut refused = Vec::new();
            for (region, keys) in self.grouped(&left).await? {
                let store = region.leader_store();
                let channel = self.stores.of(store).await.map_err(away)?;
                let stub = TikvClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
                let context = Context {
                    region_id: region.meta.id,
                    region_epoch: region.meta.region_epoch,
                    peer: region.leader,
                    is_retry_request: attempt > 0,
                    ..Context::default()
                };
                let answer = match call(stub, context, keys.clone()).await {
                    Ok(answer) => answer.into_inner(),
                    Err(status) => {
                        self.stores.forget(store);
                        return Err(away(status));
                    }
                };
                if answer.region_error().is_some() {
                    refused.extend(keys);
                } else if let Some(error) = answer.key_error() {
                    return Err(Trouble::Refused(Box::new(error)));
                } else {
                    answers.push(answer);
                }
            }
            if refused.is_empty() {
                return Ok(answers);
            }
            left = refused;
            self.regions.lock().clear();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Trouble::Away("regions are never found".to_owned()))
    }

    async fn grouped(&self, keys: &[Bytes]) -> Result<Vec<(Region, Vec<Bytes>)>, Trouble> {
        let regions = self.known_regions().await?;
        let mut groups: BTreeMap<u64, (Region, Vec<Bytes>)> = BTreeMap::new();
        for key in keys {
            let encoded = EncodedKey::encode(key);
            let holds = |region: &&Region| region.range().contains(encoded.as_bytes());
            let region = regions
                .iter()
                .find(holds)
                .ok_or_else(|| Trouble::Away(format!("no region for {key:?}")))?;
            let group = groups.entry(region.meta.id);
            let (_, keys) = group.or_insert_with(|| (region.clone(), Vec::new()));
            keys.push(key.clone());
        }
        Ok(groups.into_values().collect())
    }

    async fn known_regions(&self) -> Result<Vec<Region>, Trouble> {
        let known = self.regions.lock().clone();
        if !known.is_empty() {
            return Ok(known);
        }
        let all = EncodedRange::new(Bytes::new(), Bytes::new());
        let (regions, _) = self.pd().regions_in(&all).await.map_err(away)?;
        regions.clone_into(&mut self.regions.lock());
        Ok(regions)
    }
}

fn away(error: impl std::fmt::Display) -> Trouble {
    Trouble::Away(error.to_string())
}
