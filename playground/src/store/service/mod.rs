//! `tikvpb.Tikv` over the store: one method per command, and `BatchCommands`, which carries
//! commands of all kinds over one stream.

mod batch;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use pitr_proto::kvrpcpb::*;
use pitr_proto::tikvpb::tikv_server::{Tikv, TikvServer};
use pitr_proto::tikvpb::{BatchCommandsRequest, BatchCommandsResponse};
use tonic::{Request, Response, Status, Streaming};

use super::kernel::Store;
use super::ops::pessimistic::pessimistic_lock;
use crate::metrics::KvRequests;

/// A client puts a whole transaction batch, with values of up to 6 MiB, into one message.
const MAX_MESSAGE: usize = 64 << 20;

/// The service of a store.
#[derive(Clone)]
pub struct TikvService {
    store: Arc<Store>,
    requests: Arc<KvRequests>,
}

impl TikvService {
    /// Serves a store and counts its commands.
    pub(crate) fn server(store: Arc<Store>, requests: Arc<KvRequests>) -> TikvServer<Self> {
        TikvServer::new(TikvService { store, requests })
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Runs a blocking command outside of the async threads.
    async fn run<Q, A>(
        &self,
        kind: &str,
        request: Q,
        command: fn(&Store, Q) -> A,
    ) -> Result<A, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
    {
        let _counted = self.requests.begin(kind);
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || command(&store, request))
            .await
            .map_err(|e| Status::internal(format!("the command did not end: {e}")))
    }

    /// The command that may wait for a lock, which needs no thread meanwhile.
    async fn lock(&self, request: PessimisticLockRequest) -> PessimisticLockResponse {
        let _counted = self.requests.begin("kv_pessimistic_lock");
        pessimistic_lock(self.store.clone(), request).await
    }
}

macro_rules! unary {
    ($($method:ident($request:ty) -> $response:ty = $command:expr;)*) => {
        #[tonic::async_trait]
        impl Tikv for TikvService {
            $(
                async fn $method(
                    &self,
                    request: Request<$request>,
                ) -> Result<Response<$response>, Status> {
                    let done = self.run(stringify!($method), request.into_inner(), $command);
                    done.await.map(Response::new)
                }
            )*

            async fn kv_pessimistic_lock(
                &self,
                request: Request<PessimisticLockRequest>,
            ) -> Result<Response<PessimisticLockResponse>, Status> {
                Ok(Response::new(self.lock(request.into_inner()).await))
            }

            type BatchCommandsStream =
                Pin<Box<dyn Stream<Item = Result<BatchCommandsResponse, Status>> + Send>>;

            async fn batch_commands(
                &self,
                request: Request<Streaming<BatchCommandsRequest>>,
            ) -> Result<Response<Self::BatchCommandsStream>, Status> {
                let answers = batch::serve(self.clone(), request.into_inner());
                Ok(Response::new(Box::pin(answers)))
            }
        }
    };
}

unary! {
    kv_get(GetRequest) -> GetResponse = Store::get;
    kv_scan(ScanRequest) -> ScanResponse = Store::scan;
    kv_prewrite(PrewriteRequest) -> PrewriteResponse = Store::prewrite;
    kv_pessimistic_rollback(PessimisticRollbackRequest) -> PessimisticRollbackResponse
        = Store::pessimistic_rollback;
    kv_txn_heart_beat(TxnHeartBeatRequest) -> TxnHeartBeatResponse = Store::txn_heart_beat;
    kv_check_txn_status(CheckTxnStatusRequest) -> CheckTxnStatusResponse
        = Store::check_txn_status;
    kv_check_secondary_locks(CheckSecondaryLocksRequest) -> CheckSecondaryLocksResponse
        = Store::check_secondary_locks;
    kv_commit(CommitRequest) -> CommitResponse = Store::commit;
    kv_cleanup(CleanupRequest) -> CleanupResponse = Store::cleanup;
    kv_batch_get(BatchGetRequest) -> BatchGetResponse = Store::batch_get;
    kv_batch_rollback(BatchRollbackRequest) -> BatchRollbackResponse = Store::batch_rollback;
    kv_scan_lock(ScanLockRequest) -> ScanLockResponse = Store::scan_lock;
    kv_resolve_lock(ResolveLockRequest) -> ResolveLockResponse = Store::resolve_lock;
    kv_delete_range(DeleteRangeRequest) -> DeleteRangeResponse = Store::delete_range;
    split_region(SplitRegionRequest) -> SplitRegionResponse = Store::split_region;
    mvcc_get_by_key(MvccGetByKeyRequest) -> MvccGetByKeyResponse = Store::mvcc_get_by_key;
}
