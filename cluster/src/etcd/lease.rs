//! Leases: keys that go when their writer does.

use std::time::Duration;

use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::lease_client::LeaseClient;
use tokio_stream::StreamExt;
use tonic::{Response, Status};

use super::client::{EtcdClient, with_leader};
use super::error::EtcdError;

impl EtcdClient {
    /// A new lease; its id. etcd may let it live longer than `ttl`, never shorter.
    pub async fn grant_lease(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = pb::LeaseGrantRequest { ttl, id: 0 };
        let answer = self
            .call("LeaseGrant", |channel| {
                let request = with_leader(grant);
                async move { LeaseClient::new(channel).lease_grant(request).await }
            })
            .await?;
        Ok(answer.id)
    }

    /// Lets a lease live for its whole time from now on; false if it has ended.
    pub async fn keep_lease(&self, id: i64) -> Result<bool, EtcdError> {
        let answer = self
            .call("LeaseKeepAlive", |channel| async move {
                let beat = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
                let mut stub = LeaseClient::new(channel);
                let answers = stub.lease_keep_alive(with_leader(beat)).await?;
                let mut answers = answers.into_inner();
                match answers.next().await {
                    Some(answer) => Ok(Response::new(answer?)),
                    None => Err(Status::unavailable("the stream ended without an answer")),
                }
            })
            .await?;
        Ok(answer.ttl > 0)
    }

    /// Ends a lease and removes its keys. One that has ended already is no error.
    pub async fn end_lease(&self, id: i64) -> Result<(), EtcdError> {
        let revoked = self
            .call("LeaseRevoke", |channel| {
                let request = with_leader(pb::LeaseRevokeRequest { id });
                async move { LeaseClient::new(channel).lease_revoke(request).await }
            })
            .await;
        match revoked {
            Ok(_) | Err(EtcdError::LeaseEnded { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
