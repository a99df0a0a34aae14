//! One coordinator at a time: an election in PD's etcd, in the form of etcd's own library
//! (etcd-io/etcd `client/v3/concurrency/election.go`), under the key of the stock advancer
//! (pingcap/tidb `br/pkg/streamhelper/daemon`), so that one of ours, a TiDB and `br log advancer`
//! exclude each other.
//!
//! Each candidate puts `owner/<lease, hex>` under its lease; whose key was created first leads.
//! The revision of that creation is the fence: everything a leader writes is a transaction with
//! the condition that its key was created there. Not reaching etcd proves nothing for one lease;
//! after that another may lead, and this one stops. Called by [`crate::coordinator`].

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::etcd::{EtcdClient, EtcdError, Watcher, compare, op};
use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::response_op::Response;
use pitr_proto::mvccpb::KeyValue;
use tokio::time::{Instant, timeout};

/// The candidates: lease in hex → who.
pub const OWNERS: &str = "/tidb/br-stream/owner/";
/// How long the key of a candidate outlives it. PD's etcd grants 5 s at least.
pub const LEASE: Duration = Duration::from_secs(6);
/// How often the lease is renewed; three failures in a row end a leadership.
pub const BEAT: Duration = Duration::from_secs(2);

/// Who leads, as a candidate sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This candidate.
    Us,
    /// Another one; what it says of itself.
    Other(String),
}

/// A candidate that stands for election.
pub struct Candidate {
    etcd: Arc<EtcdClient>,
    lease: i64,
    key: String,
    /// When the key was created: its place in the queue, and the fence.
    revision: i64,
    renewed: Instant,
    bell: Option<Watcher>,
}

impl Candidate {
    /// Stands for election as `id`, at the end of the queue.
    pub async fn stand(etcd: Arc<EtcdClient>, id: &str) -> Result<Candidate, EtcdError> {
        let renewed = Instant::now();
        let lease = etcd.grant_lease(LEASE).await?;
        let key = format!("{OWNERS}{lease:x}");
        let put = op::put_leased(key.clone(), id.to_owned(), lease);
        let absent = compare::absent(key.clone());
        let read = vec![op::get(key.clone())];
        let answer = etcd.txn_or(vec![absent], vec![put], read).await?;
        // A key that exists is ours too: the first answer was lost, and nobody has our lease.
        let found = answer.responses.first().and_then(|op| match &op.response {
            Some(Response::ResponseRange(range)) => range.kvs.first(),
            _ => None,
        });
        let revision = found.map_or(answer.revision, |kv| kv.create_revision);
        Ok(Candidate {
            etcd,
            lease,
            key,
            revision,
            renewed,
            bell: None,
        })
    }

    /// Holds in a transaction only while this candidate is in the queue, and so, once it leads,
    /// only while it leads.
    pub fn condition(&self) -> pb::Compare {
        compare::created_at(self.key.clone(), self.revision)
    }

    /// Who leads; nothing if this candidate's own key is gone, and it must stand again.
    pub async fn leader(&mut self) -> Result<Option<Leader>, EtcdError> {
        let (keys, revision) = self.etcd.get_prefix(OWNERS.as_bytes()).await?;
        if self.bell.is_none() {
            let watch = self.etcd.watch_prefix(OWNERS.as_bytes(), revision + 1);
            self.bell = watch.await.ok();
        }
        let created = |kv: &KeyValue| kv.key == self.key && kv.create_revision == self.revision;
        if !keys.iter().any(created) {
            return Ok(None);
        }
        let first = keys.iter().min_by_key(|kv| kv.create_revision);
        Ok(first.map(|kv| match created(kv) {
            true => Leader::Us,
            false => Leader::Other(String::from_utf8_lossy(&kv.value).into_owned()),
        }))
    }

    /// Waits until the queue changes, or a beat.
    pub async fn wait(&mut self) {
        match &mut self.bell {
            Some(bell) => {
                if let Ok(Err(_)) = timeout(BEAT, bell.next()).await {
                    self.bell = None;
                }
            }
            None => tokio::time::sleep(BEAT).await,
        }
    }

    /// Keeps the lease alive; false if it has ended, or may have: no answer for its whole time.
    pub async fn beat(&mut self) -> bool {
        let began = Instant::now();
        match timeout(BEAT, self.etcd.keep_lease(self.lease)).await {
            Ok(Ok(true)) => {
                self.renewed = began;
                true
            }
            Ok(Ok(false)) => false,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the lease of the coordinator is not renewed");
                self.renewed.elapsed() < LEASE
            }
            Err(_) => self.renewed.elapsed() < LEASE,
        }
    }

    /// Leaves the queue, so that the next one need not wait for the lease to end.
    pub async fn resign(self) {
        match timeout(BEAT, self.etcd.end_lease(self.lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the lease of the coordinator ends by itself")
            }
            Err(_) => tracing::debug!("the lease of the coordinator ends by itself"),
        }
    }
}
