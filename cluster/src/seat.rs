//! The seat of a store: a key in PD's etcd that one process holds at a time, with a lease.
//!
//! `/tikv-pitr/v1/store/<id>` is leased and says who speaks for the store now;
//! `/tikv-pitr/v1/last/<id>` stays and says who took the seat last. Both are written in one
//! transaction, whose revision R is the fence: the leased key was *created* at R, the other one
//! *changed* at R. Whoever takes the seat later makes another revision, so
//!
//! * the seat is ours and alive: the leased key was created at R;
//! * nobody has taken it since, whether our lease lives or not: the other key was changed at R.
//!
//! A lease that ended is replaced only under the second condition, so a process that slept while
//! another one came *and went* still learns that it was replaced. Being replaced is final; not
//! reaching etcd is not: it proves nothing, and the caller neither stops nor goes on to write.
//! Called by the sidecar's fence.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::Class;
use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::response_op::Response;
use pitr_proto::mvccpb::KeyValue;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::etcd::{EtcdClient, EtcdError, TxnOutcome, compare, op};

/// Who speaks for each store now: id → the holder's own words.
pub const HOLDERS: &str = "/tikv-pitr/v1/store/";
/// Who took the seat of each store last.
pub const LAST: &str = "/tikv-pitr/v1/last/";

/// The leased key of a store.
pub fn holder_key(store_id: u64) -> String {
    format!("{HOLDERS}{store_id}")
}

/// The key that stays.
pub fn last_key(store_id: u64) -> String {
    format!("{LAST}{store_id}")
}

/// A seat cannot be confirmed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SeatError {
    /// Another process took it.
    #[error("another process has taken store {store_id}")]
    Taken {
        /// The store.
        store_id: u64,
        /// What the other one says of itself; empty if it is not known.
        by: Bytes,
    },
    /// etcd does not answer, so nothing is known.
    #[error("cannot confirm that store {store_id} is still ours: {source}")]
    Unknown {
        /// The store.
        store_id: u64,
        /// Why.
        source: EtcdError,
    },
}

impl SeatError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            SeatError::Taken { .. } => Class::Permanent,
            SeatError::Unknown { .. } => Class::Retry,
        }
    }
}

/// A seat that was taken by this process, until another one takes it.
pub struct Seat {
    keys: Keys,
    /// Every call that may change it runs alone.
    held: Mutex<Held>,
    /// Turns true when another process has the seat.
    lost: watch::Sender<bool>,
}

/// Keys of one store and how to write them.
struct Keys {
    etcd: Arc<EtcdClient>,
    store_id: u64,
    holder: String,
    last: String,
    ttl: Duration,
}

struct Held {
    lease: i64,
    /// The fence.
    revision: i64,
    /// When the lease was last known to live.
    renewed: Instant,
    /// What stands in the leased key.
    value: Bytes,
    /// Who took the seat from us.
    taken_by: Option<Bytes>,
}

/// How an attempt to take a seat ended.
enum Attempt {
    Ours { lease: i64, revision: i64 },
    Others(Bytes),
}

impl Seat {
    /// Takes the seat if nobody has it; else what the holder says of itself. `value` must name this
    /// process and no other, also in [`Seat::renew`].
    pub async fn take(
        etcd: Arc<EtcdClient>,
        store_id: u64,
        ttl: Duration,
        value: Bytes,
    ) -> Result<Result<Seat, Bytes>, EtcdError> {
        let keys = Keys {
            etcd,
            store_id,
            holder: holder_key(store_id),
            last: last_key(store_id),
            ttl,
        };
        if let Some(holder) = keys.etcd.get(keys.holder.as_bytes()).await? {
            return Ok(Err(holder.value));
        }
        let renewed = Instant::now();
        let (lease, revision) = match keys.attempt(None, &value).await? {
            Attempt::Ours { lease, revision } => (lease, revision),
            Attempt::Others(by) => return Ok(Err(by)),
        };
        let held = Held {
            lease,
            revision,
            renewed,
            value,
            taken_by: None,
        };
        Ok(Ok(Seat {
            keys,
            held: Mutex::new(held),
            lost: watch::channel(false).0,
        }))
    }

    /// Ends the lease of a holder that is known to be dead; of `holder` only, whoever it is now.
    pub async fn bury(etcd: &EtcdClient, store_id: u64, holder: &Bytes) -> Result<(), EtcdError> {
        match etcd.get(holder_key(store_id).as_bytes()).await? {
            Some(found) if found.value == *holder => etcd.end_lease(found.lease).await,
            _ => Ok(()),
        }
    }

    /// `Ok` = at some moment during this call, and less than a quarter of the lease ago, the seat
    /// was ours and alive; it stays so at least until the moment that is returned. A lease that
    /// ended is replaced, if nobody came in between.
    pub async fn confirm(&self) -> Result<Instant, SeatError> {
        let mut held = self.held.lock().await;
        loop {
            let began = Instant::now();
            if began.duration_since(held.renewed) >= self.keys.ttl / 5 {
                self.prolong(&mut held).await?;
            }
            self.check(&mut held).await?;
            // A process that was stopped in the middle knows nothing of the present.
            if began.elapsed() < self.keys.ttl / 4 {
                return Ok(held.renewed + self.keys.ttl);
            }
        }
    }

    /// Renews the lease; one that ended is replaced, if nobody came in between.
    async fn prolong(&self, held: &mut Held) -> Result<(), SeatError> {
        // From before the question: etcd counts from when it gets it.
        let began = Instant::now();
        let lives = self.keys.etcd.keep_lease(held.lease).await;
        match lives.map_err(|error| self.unknown(error))? {
            true => held.renewed = began,
            false => self.check(held).await?,
        }
        Ok(())
    }

    /// Keeps the lease alive and says `value` of this process. To be called some times a lease.
    pub async fn renew(&self, value: Bytes) -> Result<(), SeatError> {
        let mut held = self.held.lock().await;
        if held.renewed.elapsed() >= self.keys.ttl / 3 {
            self.prolong(&mut held).await?;
        }
        if held.value == value {
            return Ok(());
        }
        let ours = vec![compare::created_at(self.keys.holder.clone(), held.revision)];
        let put = op::put_leased(self.keys.holder.clone(), value.clone(), held.lease);
        match self.keys.etcd.txn(ours, vec![put]).await {
            Ok(answer) if answer.succeeded => {
                held.value = value;
                Ok(())
            }
            Ok(_) | Err(EtcdError::LeaseEnded { .. }) => self.check(&mut held).await,
            Err(error) => Err(self.unknown(error)),
        }
    }

    /// Holds in a transaction only if nobody has taken the seat since.
    pub async fn condition(&self) -> pb::Compare {
        let revision = self.held.lock().await.revision;
        compare::unchanged(self.keys.last.clone(), revision)
    }

    /// Waits until another process has the seat.
    pub async fn lost(&self) {
        let mut lost = self.lost.subscribe();
        // The sender lives as long as `self`.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// What the process that took the seat says of itself, if one did.
    pub async fn taken_by(&self) -> Option<Bytes> {
        self.held.lock().await.taken_by.clone()
    }

    /// Gives the seat up, so that a successor need not wait for the lease to end.
    pub async fn leave(&self) -> Result<(), EtcdError> {
        let lease = self.held.lock().await.lease;
        self.keys.etcd.end_lease(lease).await
    }

    async fn check(&self, held: &mut Held) -> Result<(), SeatError> {
        if let Some(by) = &held.taken_by {
            return Err(self.taken(by.clone()));
        }
        let ours = compare::created_at(self.keys.holder.clone(), held.revision);
        let asked = self.keys.etcd.txn(vec![ours], Vec::new()).await;
        if asked.map_err(|error| self.unknown(error))?.succeeded {
            return Ok(());
        }
        let began = Instant::now();
        let value = held.value.clone();
        let again = self.keys.attempt(Some(held.revision), &value);
        match again.await.map_err(|error| self.unknown(error))? {
            Attempt::Ours { lease, revision } => {
                (held.lease, held.revision, held.renewed) = (lease, revision, began);
                tracing::info!(
                    store = self.keys.store_id,
                    "the seat of the store is ours again"
                );
                Ok(())
            }
            Attempt::Others(by) => {
                held.taken_by = Some(by.clone());
                self.lost.send_replace(true);
                Err(self.taken(by))
            }
        }
    }

    fn taken(&self, by: Bytes) -> SeatError {
        let store_id = self.keys.store_id;
        SeatError::Taken { store_id, by }
    }

    fn unknown(&self, source: EtcdError) -> SeatError {
        let store_id = self.keys.store_id;
        SeatError::Unknown { store_id, source }
    }
}

impl Keys {
    /// Takes the seat under a new lease if it is free and, with `since`, was last taken at that
    /// revision. Who it is is told by the value, which names its process: an earlier attempt may
    /// have had its effect without an answer.
    async fn attempt(&self, mut since: Option<i64>, value: &Bytes) -> Result<Attempt, EtcdError> {
        let lease = self.etcd.grant_lease(self.ttl).await?;
        loop {
            let mut conditions = vec![compare::absent(self.holder.clone())];
            conditions.extend(since.map(|at| compare::unchanged(self.last.clone(), at)));
            let puts = vec![
                op::put_leased(self.holder.clone(), value.clone(), lease),
                op::put(self.last.clone(), value.clone()),
            ];
            let reads = vec![op::get(self.holder.clone()), op::get(self.last.clone())];
            let answer = self.etcd.txn_or(conditions, puts, reads).await?;
            if answer.succeeded {
                let revision = answer.revision;
                return Ok(Attempt::Ours { lease, revision });
            }
            let by = match read(answer) {
                (Some(kv), _) if kv.value == *value => {
                    if kv.lease != lease {
                        // It was granted some time ago.
                        if !self.etcd.keep_lease(kv.lease).await? {
                            continue;
                        }
                        self.forget(lease).await;
                    }
                    return Ok(Attempt::Ours {
                        lease: kv.lease,
                        revision: kv.create_revision,
                    });
                }
                (None, Some(kv)) if kv.value == *value && since != Some(kv.mod_revision) => {
                    since = Some(kv.mod_revision);
                    continue;
                }
                (holder, last) => holder.or(last),
            };
            self.forget(lease).await;
            return Ok(Attempt::Others(by.map(|kv| kv.value).unwrap_or_default()));
        }
    }

    /// Ends a lease that nothing needs; it would end by itself.
    async fn forget(&self, lease: i64) {
        if let Err(error) = self.etcd.end_lease(lease).await {
            tracing::debug!(%error, "a lease ends by itself");
        }
    }
}

/// The answers to the two reads.
fn read(answer: TxnOutcome) -> (Option<KeyValue>, Option<KeyValue>) {
    let mut found = answer.responses.into_iter().map(|op| match op.response {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    });
    (found.next().flatten(), found.next().flatten())
}

/// What every holder says of itself, by store.
pub async fn holders(etcd: &EtcdClient) -> Result<Vec<(u64, Bytes)>, EtcdError> {
    let (kvs, _) = etcd.get_prefix(HOLDERS.as_bytes()).await?;
    let parse = |kv: KeyValue| {
        let id = kv.key.strip_prefix(HOLDERS.as_bytes())?;
        let id = std::str::from_utf8(id).ok()?.parse().ok()?;
        Some((id, kv.value))
    };
    Ok(kvs.into_iter().filter_map(parse).collect())
}
