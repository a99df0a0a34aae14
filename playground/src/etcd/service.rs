//! `etcdserverpb.KV` and `etcdserverpb.Lease`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use pitr_proto::etcdserverpb::{self as pb, kv_server::Kv, lease_server::Lease};
use tonic::{Request, Response, Status, Streaming};

use super::store::EtcdStore;

type Answer<T> = Result<Response<T>, Status>;

/// How often ended leases are looked for.
const LEASE_TICK: Duration = Duration::from_millis(500);

/// Both services; cheap to clone.
#[derive(Clone)]
pub struct EtcdService {
    store: Arc<EtcdStore>,
}

impl EtcdService {
    /// Serves `store`.
    pub fn new(store: Arc<EtcdStore>) -> Self {
        EtcdService { store }
    }

    /// Ends leases when their time is over, for ever.
    pub async fn expire_leases(self) {
        let mut ticks = tokio::time::interval(LEASE_TICK);
        loop {
            ticks.tick().await;
            if let Err(error) = self.store.expire_leases() {
                tracing::error!(%error, "leases cannot be ended");
            }
        }
    }
}

#[tonic::async_trait]
impl Kv for EtcdService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Answer<pb::RangeResponse> {
        Ok(Response::new(self.store.range(request.get_ref())?))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Answer<pb::PutResponse> {
        Ok(Response::new(self.store.put(request.get_ref())?))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Answer<pb::DeleteRangeResponse> {
        Ok(Response::new(self.store.delete_range(request.get_ref())?))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Answer<pb::TxnResponse> {
        Ok(Response::new(self.store.txn(request.get_ref())?))
    }
}

#[tonic::async_trait]
impl Lease for EtcdService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Answer<pb::LeaseGrantResponse> {
        let request = request.into_inner();
        let (id, ttl, revision) = self.store.grant(request.id, request.ttl)?;
        Ok(Response::new(pb::LeaseGrantResponse {
            header: self.store.header(revision),
            id,
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Answer<pb::LeaseRevokeResponse> {
        let revision = self.store.revoke(request.get_ref().id)?;
        Ok(Response::new(pb::LeaseRevokeResponse {
            header: self.store.header(revision),
        }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let store = self.store.clone();
        let answers = request.into_inner().map(move |message| {
            let id = message?.id;
            let (ttl, revision) = store.keep_alive(id);
            Ok(pb::LeaseKeepAliveResponse {
                header: store.header(revision),
                id,
                ttl,
            })
        });
        Ok(Response::new(answers.boxed()))
    }
}
