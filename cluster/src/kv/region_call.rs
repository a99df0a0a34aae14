//! One call to the leader of the region that holds a key, repeated until the region and its leader
//! are found.

use std::future::Future;
use std::sync::Arc;

use pitr_format::EncodedKey;
use pitr_proto::tikvpb::tikv_client::TikvClient;
use pitr_proto::{errorpb, kvrpcpb};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::error::{KvError, hex, region_error_text};
use crate::backoff::Backoff;
use crate::net::describe;
use crate::pd::Region;
use crate::stores::{CALL_TIMEOUT, MAX_MESSAGE, StoreChannels};

/// About 30 s with the region backoff.
const ATTEMPTS: u32 = 20;

pub(super) type Stub = TikvClient<Channel>;

/// Answers that may carry a region error.
pub(super) trait RegionAnswer {
    fn region_error(&self) -> Option<&errorpb::Error>;
}

macro_rules! region_answer {
    ($($answer:ident),* $(,)?) => {$(
        impl RegionAnswer for kvrpcpb::$answer {
            fn region_error(&self) -> Option<&errorpb::Error> {
                self.region_error.as_ref()
            }
        }
    )*};
}

region_answer!(
    ScanResponse,
    ScanLockResponse,
    CheckTxnStatusResponse,
    CheckSecondaryLocksResponse,
    ResolveLockResponse,
);

/// Calls by key.
pub(super) struct RegionCaller {
    stores: Arc<StoreChannels>,
}

impl RegionCaller {
    pub fn new(stores: Arc<StoreChannels>) -> Self {
        RegionCaller { stores }
    }

    pub fn stores(&self) -> &Arc<StoreChannels> {
        &self.stores
    }

    /// Runs `run` with the context of the region of `key` (raw) until it answers without a region
    /// error. The region that answered is returned too: what the answer means depends on it.
    pub async fn call<T, F, Fut>(
        &self,
        call: &'static str,
        key: &[u8],
        run: F,
    ) -> Result<(T, Region), KvError>
    where
        T: RegionAnswer,
        F: Fn(Stub, kvrpcpb::Context, &Region) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let encoded = EncodedKey::encode(key);
        let mut backoff = Backoff::for_regions(key.len() as u64);
        let mut last = String::new();
        while backoff.attempts() < ATTEMPTS {
            let region = self.stores.pd().region_of(encoded.as_bytes()).await?;
            last = match self.attempt(call, &region, &run).await? {
                Ok(answer) => return Ok((answer, region)),
                Err(text) => text,
            };
            tracing::debug!(call, region = region.meta.id, reason = %last, "trying again");
            sleep(backoff.next_delay()).await;
        }
        Err(KvError::Exhausted {
            call,
            key: hex(key),
            attempts: ATTEMPTS,
            last,
        })
    }

    /// Outer error: give up. Inner error: find the region again.
    async fn attempt<T, F, Fut>(
        &self,
        call: &'static str,
        region: &Region,
        run: &F,
    ) -> Result<Result<T, String>, KvError>
    where
        T: RegionAnswer,
        F: Fn(Stub, kvrpcpb::Context, &Region) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let Some(leader) = region.leader else {
            return Ok(Err("the region has no leader".to_owned()));
        };
        let store_id = leader.store_id;
        let stub =
            Stub::new(self.stores.of(store_id).await?).max_decoding_message_size(MAX_MESSAGE);
        let context = kvrpcpb::Context {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            peer: Some(leader),
            ..Default::default()
        };
        match timeout(CALL_TIMEOUT, run(stub, context, region)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                Ok(match answer.region_error() {
                    None => Ok(answer),
                    Some(error) => Err(region_error_text(error)),
                })
            }
            Ok(Err(status)) if is_refused(&status) => Err(KvError::Refused {
                call,
                text: describe(&status),
            }),
            Ok(Err(status)) if is_too_large(&status) => Err(KvError::TooLarge {
                call,
                text: describe(&status),
            }),
            Ok(Err(status)) => {
                self.stores.forget(store_id);
                Ok(Err(describe(&status)))
            }
            Err(_) => {
                self.stores.forget(store_id);
                Ok(Err(format!("store {store_id} did not answer in time")))
            }
        }
    }
}

/// The store has no such call, or does not serve us: TiKV answers `UNAUTHENTICATED` when our common
/// name is not in its `cert-allowed-cn`.
fn is_refused(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied
    )
}

/// A message above the limit of either side: grpc servers say the first, tonic's decoder the
/// second.
fn is_too_large(status: &Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange)
}
