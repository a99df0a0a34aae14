//! The fence of a store: of two sidecars with one store id only the one that holds the leased key
//! writes a `.meta` or publishes.
//!
//! Asked at start, before every object that readers look for, and by PD itself in the transaction
//! of every checkpoint. Whoever was replaced stops without publishing, for ever; whoever cannot
//! reach PD goes on capturing and repeats, as for everything else that needs PD. An answer holds
//! until the lease that it speaks of can end, and the storage asks again whether that time is over
//! when only the step is left that makes the object visible: a process that was stopped in between
//! writes nothing when it wakes.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pitr_cluster::seat::{Seat, SeatError};
use pitr_cluster::tasks::TaskRegistry;
use pitr_storage::{ObjectInfo, Payload, SharedStorage, Storage, StorageError, StorageErrorKind};
use tokio::time::{Instant, sleep, timeout};

use crate::admin::{Board, Metrics};
use crate::cluster::{Cluster, code_of_cluster};
use crate::codes::Code;
use crate::failure::Failure;
use crate::members::{self, Member};
use crate::process::ProcessName;

/// How long the key of a sidecar outlives it. etcd in PD grants no shorter lease.
const TTL: Duration = Duration::from_secs(5);
/// So much earlier than its lease a permission to write ends: clocks run at different rates, and
/// the last step takes its time.
const MARGIN: Duration = Duration::from_millis(500);
/// etcd looks for ended leases that often at least, so a dead sidecar is gone after both.
const SLACK: Duration = Duration::from_secs(2);
/// How often it is looked whether the key of a predecessor is gone.
const LOOK: Duration = Duration::from_millis(200);
/// How often the lease is looked after and the state told.
const BEAT: Duration = Duration::from_secs(1);
/// How often the other stores are read.
const LIST: Duration = Duration::from_secs(5);
/// How long giving up the key may take; the lease ends by itself.
const LEAVE: Duration = Duration::from_secs(2);

/// The key of our store.
pub(crate) struct Fence {
    seat: Seat,
    cluster: Cluster,
    store_id: u64,
    me: Member,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

impl Fence {
    /// Takes the store, after waiting for a predecessor that died without saying so.
    pub(super) async fn take(
        cluster: &Cluster,
        store_id: u64,
        me: Member,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Fence>, Failure> {
        let until = Instant::now() + TTL + SLACK;
        let mut buried = None;
        loop {
            let etcd = cluster.etcd.clone();
            let holder = match Seat::take(etcd, store_id, TTL, me.encode().into()).await? {
                Ok(seat) => {
                    return Ok(Arc::new(Fence {
                        seat,
                        cluster: cluster.clone(),
                        store_id,
                        me,
                        board,
                        metrics,
                    }));
                }
                Err(holder) => {
                    let member = Member::decode(&holder);
                    let is_dead = member.process.as_ref().is_some_and(ProcessName::is_dead);
                    if is_dead && buried.as_ref() != Some(&holder) {
                        tracing::info!("{member} is dead, its lease is ended");
                        Seat::bury(&cluster.etcd, store_id, &holder).await?;
                        buried = Some(holder);
                        continue;
                    }
                    member
                }
            };
            if Instant::now() >= until {
                let what = format!("store {store_id} is served by {holder}");
                return Err(Failure::new(Code::StoreTaken, what).at(holder.address));
            }
            let what = format!("store {store_id}, which is held by {holder}");
            if board.snapshot().waiting_for != what {
                tracing::warn!("waiting for {what}: it is alive, or its lease has yet to end");
                board.update(|page| page.waiting_for = what);
            }
            sleep(LOOK).await;
        }
    }

    /// Until when the store is surely ours. An error either says who has it, or that nobody knows.
    pub(super) async fn confirm(&self) -> Result<Instant, SeatError> {
        let until = self.seat.confirm().await?;
        Ok(until - MARGIN)
    }

    /// The registry for one publication: PD refuses it if the store was taken meanwhile.
    pub(super) async fn registry(&self) -> TaskRegistry {
        self.cluster.tasks.fenced(self.seat.condition().await)
    }

    /// The storage, where every object but log files needs a confirmation.
    pub(super) fn guard(self: &Arc<Self>, inner: SharedStorage) -> SharedStorage {
        let fence = self.clone();
        Arc::new(FencedStorage { inner, fence })
    }

    /// Waits until another sidecar has the store; what this process ends with.
    pub(super) async fn lost(&self) -> Failure {
        self.seat.lost().await;
        let by = self.seat.taken_by().await.unwrap_or_default();
        taken(self.store_id, &by)
    }

    /// Keeps the key alive and up to date, and the page of all stores, until the store is lost.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut listed: Option<Instant> = None;
        let mut silent = false;
        loop {
            let value = self.me.with_tasks(&self.board.snapshot()).encode();
            match self.seat.renew(value.into()).await {
                Ok(()) => silent = false,
                Err(SeatError::Taken { .. }) => return,
                Err(error) if silent => tracing::debug!(%error, "the store's key is not renewed"),
                Err(error) => {
                    silent = true;
                    tracing::warn!(%error, "the store's key is not renewed; capture goes on");
                }
            }
            if !silent && listed.is_none_or(|at| at.elapsed() >= LIST) {
                listed = Some(Instant::now());
                match members::stores(&self.cluster).await {
                    Ok(stores) => self.board.update(|page| {
                        self.metrics.show_stores(&stores, page.tasks.keys());
                        page.stores = stores;
                    }),
                    Err(failure) => tracing::debug!(
                        reason = failure.one_line(),
                        "the other stores are not known"
                    ),
                }
            }
            sleep(BEAT).await;
        }
    }

    /// Gives the store up, so that a successor need not wait.
    pub(super) async fn leave(&self) {
        match timeout(LEAVE, self.seat.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "the store's key stays until its lease ends"),
            Err(_) => tracing::info!("the store's key stays until its lease ends"),
        }
    }
}

impl From<SeatError> for Failure {
    fn from(error: SeatError) -> Self {
        match &error {
            SeatError::Taken { store_id, by } => taken(*store_id, by),
            SeatError::Unknown { .. } => {
                Failure::from_error(code_of_cluster(error.class()), &error)
                    .effect("nothing is published; capture goes on")
            }
        }
    }
}

fn taken(store_id: u64, by: &[u8]) -> Failure {
    let by = Member::decode(by);
    let what = format!("store {store_id} was taken over by {by}");
    Failure::new(Code::StoreTaken, what).at(by.address)
}

/// A storage that takes nothing that readers look for from a sidecar that was replaced.
struct FencedStorage {
    inner: SharedStorage,
    fence: Arc<Fence>,
}

impl FencedStorage {
    async fn admit(&self, path: &str, data: Payload) -> pitr_storage::Result<Payload> {
        // A log file that no meta refers to means nothing to anybody.
        if path.ends_with(".log") {
            return Ok(data);
        }
        let confirmed = self.fence.confirm().await;
        let until = confirmed.map_err(|error| StorageError {
            kind: StorageErrorKind::Transient,
            action: "write",
            path: path.to_owned(),
            uri: self.inner.uri(),
            detail: Failure::from(error).one_line(),
        })?;
        Ok(data.only_while(move || Instant::now() < until))
    }
}

#[async_trait]
impl Storage for FencedStorage {
    async fn put(&self, path: &str, data: Payload) -> pitr_storage::Result<()> {
        let data = self.admit(path, data).await?;
        self.inner.put(path, data).await
    }

    async fn put_new(&self, path: &str, data: Payload) -> pitr_storage::Result<()> {
        let data = self.admit(path, data).await?;
        self.inner.put_new(path, data).await
    }

    async fn get(&self, path: &str) -> pitr_storage::Result<Bytes> {
        self.inner.get(path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> pitr_storage::Result<Bytes> {
        self.inner.get_range(path, range).await
    }

    async fn head(&self, path: &str) -> pitr_storage::Result<Option<ObjectInfo>> {
        self.inner.head(path).await
    }

    async fn list(&self, prefix: &str) -> pitr_storage::Result<Vec<ObjectInfo>> {
        self.inner.list(prefix).await
    }

    async fn delete(&self, path: &str) -> pitr_storage::Result<()> {
        self.inner.delete(path).await
    }

    fn uri(&self) -> String {
        self.inner.uri()
    }

    async fn remove_leftovers(&self, older_than: Duration) -> pitr_storage::Result<u64> {
        self.inner.remove_leftovers(older_than).await
    }
}
