//! Unary etcd calls with fail-over between the end points.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::kv_client::KvClient as Stub;
use pitr_proto::mvccpb::KeyValue;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::error::{EtcdError, judge};
use super::watch::Watcher;
use crate::backoff::Backoff;
use crate::net::{normalize, pd_channel};
use crate::pd::PdClient;
use crate::tls::Security;

const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(15);
const MAX_MESSAGE: usize = 64 << 20;

/// Client of PD's embedded etcd; cheap to share.
pub struct EtcdClient {
    members: Vec<Member>,
    /// Index of the member that answered last.
    current: AtomicUsize,
}

struct Member {
    url: String,
    channel: Channel,
}

/// Outcome of a transaction.
#[derive(Clone, Debug)]
pub struct TxnOutcome {
    /// Whether all comparisons held and the operations ran.
    pub succeeded: bool,
    /// Revision of the key space afterwards.
    pub revision: i64,
    /// One entry per operation.
    pub responses: Vec<pb::ResponseOp>,
}

impl EtcdClient {
    /// The etcd inside a cluster's PD, reached as that is. Dials at the first call.
    pub fn of(pd: &PdClient) -> Result<Arc<EtcdClient>, EtcdError> {
        EtcdClient::open(&pd.urls(), pd.security())
    }

    /// A client over PD's client URLs, in plaintext. Dials at the first call.
    pub fn new(endpoints: &[String]) -> Result<Arc<EtcdClient>, EtcdError> {
        EtcdClient::open(endpoints, &Security::default())
    }

    fn open(endpoints: &[String], security: &Security) -> Result<Arc<EtcdClient>, EtcdError> {
        let mut members = Vec::new();
        for endpoint in endpoints {
            let url = normalize(security, endpoint)?;
            let channel = pd_channel(security, &url)?;
            members.push(Member { url, channel });
        }
        Ok(Arc::new(EtcdClient {
            members,
            current: AtomicUsize::new(0),
        }))
    }

    /// The value of one key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, EtcdError> {
        let request = pb::RangeRequest {
            key: Bytes::copy_from_slice(key),
            ..Default::default()
        };
        Ok(self.range(request).await?.kvs.into_iter().next())
    }

    /// All keys with a prefix, ascending, and the revision they were read at.
    pub async fn get_prefix(&self, prefix: &[u8]) -> Result<(Vec<KeyValue>, i64), EtcdError> {
        let answer = self.range(op::range_request(prefix)).await?;
        Ok((answer.kvs, revision(&answer.header)))
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        self.call("Range", |channel| {
            let request = with_leader(request.clone());
            async move { kv(channel).range(request).await }
        })
        .await
    }

    /// Sets a key; returns the revision of the write.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<i64, EtcdError> {
        let put = pb::PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        let answer = self
            .call("Put", |channel| {
                let request = with_leader(put.clone());
                async move { kv(channel).put(request).await }
            })
            .await?;
        Ok(revision(&answer.header))
    }

    /// Deletes a key; true if it existed.
    pub async fn delete(&self, key: &[u8]) -> Result<bool, EtcdError> {
        let delete = pb::DeleteRangeRequest {
            key: Bytes::copy_from_slice(key),
            ..Default::default()
        };
        let answer = self
            .call("DeleteRange", |channel| {
                let request = with_leader(delete.clone());
                async move { kv(channel).delete_range(request).await }
            })
            .await?;
        Ok(answer.deleted > 0)
    }

    /// Runs `operations` in order if every comparison holds. A lost answer makes the call repeat:
    /// the caller must be able to tell its own effect from another's.
    pub async fn txn(
        &self,
        comparisons: Vec<pb::Compare>,
        operations: Vec<pb::RequestOp>,
    ) -> Result<TxnOutcome, EtcdError> {
        self.txn_or(comparisons, operations, Vec::new()).await
    }

    /// [`EtcdClient::txn`] that runs `otherwise` if a comparison does not hold.
    pub async fn txn_or(
        &self,
        comparisons: Vec<pb::Compare>,
        operations: Vec<pb::RequestOp>,
        otherwise: Vec<pb::RequestOp>,
    ) -> Result<TxnOutcome, EtcdError> {
        let txn = pb::TxnRequest {
            compare: comparisons,
            success: operations,
            failure: otherwise,
        };
        let answer = self
            .call("Txn", |channel| {
                let request = with_leader(txn.clone());
                async move { kv(channel).txn(request).await }
            })
            .await?;
        Ok(TxnOutcome {
            succeeded: answer.succeeded,
            revision: revision(&answer.header),
            responses: answer.responses,
        })
    }

    /// Watches a prefix from `from_revision` on (inclusive).
    pub async fn watch_prefix(
        &self,
        prefix: &[u8],
        from_revision: i64,
    ) -> Result<Watcher, EtcdError> {
        let mut last = String::new();
        for _ in 0..self.members.len() {
            let (index, member) = self.member()?;
            let open = Watcher::open(member.channel.clone(), prefix, from_revision);
            last = match timeout(CALL_TIMEOUT, open).await {
                Ok(Ok(watcher)) => return Ok(watcher),
                Ok(Err(error @ EtcdError::WatchLost { .. })) => error.to_string(),
                Ok(Err(error)) => return Err(error),
                Err(_) => format!("{} did not answer in time", member.url),
            };
            self.fail_over(index);
        }
        Err(self.unreachable("Watch", CALL_TIMEOUT, last))
    }

    /// Runs one call at one member after the other until one answers.
    pub(super) async fn call<T, F, Fut>(&self, call: &'static str, run: F) -> Result<T, EtcdError>
    where
        F: Fn(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + DEADLINE;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1), 3);
        loop {
            let (index, member) = self.member()?;
            let last = match timeout(CALL_TIMEOUT, run(member.channel.clone())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => format!("{}: {}", member.url, judge(call, &status)?),
                Err(_) => format!("{} did not answer in time", member.url),
            };
            tracing::debug!(call, reason = %last, "trying the next etcd end point");
            self.fail_over(index);
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(self.unreachable(call, DEADLINE, last));
            }
            sleep(delay).await;
        }
    }

    fn member(&self) -> Result<(usize, &Member), EtcdError> {
        let index = self.current.load(Ordering::Relaxed);
        match self.members.get(index) {
            Some(member) => Ok((index, member)),
            None => Err(EtcdError::Rejected {
                call: "connect",
                text: "no end point given".to_owned(),
            }),
        }
    }

    /// Moves on from a member that failed, unless another call did so already.
    fn fail_over(&self, failed: usize) {
        let next = (failed + 1) % self.members.len().max(1);
        let _ = self
            .current
            .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn unreachable(&self, call: &'static str, tried: Duration, last: String) -> EtcdError {
        EtcdError::Unreachable {
            endpoints: self.members.iter().map(|m| m.url.clone()).collect(),
            call,
            seconds: tried.as_secs(),
            last,
        }
    }
}

fn kv(channel: Channel) -> Stub<Channel> {
    Stub::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// A request that a member without a leader refuses.
pub(super) fn with_leader<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    request
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |h| h.revision)
}

/// The first key behind every key with `prefix`; `00` = no bound (etcd's convention).
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    pitr_format::key::prefix_end(prefix).map_or(Bytes::from_static(&[0]), Bytes::from)
}

/// Comparisons of a transaction.
pub mod compare {
    use bytes::Bytes;
    use pitr_proto::etcdserverpb as pb;
    use pitr_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};

    /// The key does not exist.
    pub fn absent(key: impl Into<Bytes>) -> pb::Compare {
        created(key, CompareResult::Equal)
    }

    /// The key exists.
    pub fn exists(key: impl Into<Bytes>) -> pb::Compare {
        created(key, CompareResult::Greater)
    }

    /// The key exists since this revision.
    pub fn created_at(key: impl Into<Bytes>, revision: i64) -> pb::Compare {
        pb::Compare {
            target_union: Some(TargetUnion::CreateRevision(revision)),
            ..created(key, CompareResult::Equal)
        }
    }

    fn created(key: impl Into<Bytes>, result: CompareResult) -> pb::Compare {
        pb::Compare {
            result: result as i32,
            target: CompareTarget::Create as i32,
            key: key.into(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            range_end: Bytes::new(),
        }
    }

    /// The key was last changed at this revision (0 = it does not exist).
    pub fn unchanged(key: impl Into<Bytes>, mod_revision: i64) -> pb::Compare {
        pb::Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.into(),
            target_union: Some(TargetUnion::ModRevision(mod_revision)),
            range_end: Bytes::new(),
        }
    }

    /// No key with this prefix was written after this revision. Deletions are not seen.
    pub fn none_written_after(prefix: impl Into<Bytes>, revision: i64) -> pb::Compare {
        let prefix = prefix.into();
        pb::Compare {
            result: CompareResult::Less as i32,
            range_end: super::prefix_end(&prefix),
            ..unchanged(prefix, revision + 1)
        }
    }
}

/// Operations of a transaction.
pub mod op {
    use bytes::Bytes;
    use pitr_proto::etcdserverpb as pb;
    use pitr_proto::etcdserverpb::request_op::Request;

    /// Sets a key.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> pb::RequestOp {
        wrap(Request::RequestPut(pb::PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }))
    }

    /// Sets a key that goes when the lease ends.
    pub fn put_leased(key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> pb::RequestOp {
        wrap(Request::RequestPut(pb::PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            ..Default::default()
        }))
    }

    /// Reads a key.
    pub fn get(key: impl Into<Bytes>) -> pb::RequestOp {
        wrap(Request::RequestRange(pb::RangeRequest {
            key: key.into(),
            ..Default::default()
        }))
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<Bytes>) -> pb::RequestOp {
        wrap(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.into(),
            ..Default::default()
        }))
    }

    /// Deletes every key with a prefix.
    pub fn delete_prefix(prefix: impl Into<Bytes>) -> pb::RequestOp {
        let key = prefix.into();
        wrap(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            range_end: super::prefix_end(&key),
            key,
            prev_kv: false,
        }))
    }

    /// Reads every key with a prefix.
    pub fn get_prefix(prefix: &[u8]) -> pb::RequestOp {
        wrap(Request::RequestRange(range_request(prefix)))
    }

    pub(super) fn range_request(prefix: &[u8]) -> pb::RangeRequest {
        pb::RangeRequest {
            key: Bytes::copy_from_slice(prefix),
            range_end: super::prefix_end(prefix),
            ..Default::default()
        }
    }

    fn wrap(request: Request) -> pb::RequestOp {
        pb::RequestOp {
            request: Some(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_of_the_same_length_or_none() {
        assert_eq!(
            prefix_end(b"/tidb/br-stream/info/"),
            &b"/tidb/br-stream/info0"[..]
        );
        assert_eq!(prefix_end(&[1, 0xFF, 0xFF]), &[2][..]);
        assert_eq!(prefix_end(&[0xFF]), &[0][..]);
        assert_eq!(prefix_end(b""), &[0][..]);
    }
}
