//! Opening a subscription: the checks in TiKV's order, then activation and the initial scan.
//!
//! Activation happens under the store's write lock: live rows begin and the snapshot is taken at
//! the same point of the write order, so no row is lost between them. The scan then runs on a
//! thread of the blocking pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::{cdcpb, errorpb, metapb};
use tokio::sync::Semaphore;

use super::host::Host;
use super::hub::{Hub, Subscription, epoch_not_match, not_leader, region_not_found};
use super::queue::{Alive, Queue};
use super::resolved::LockTable;
use super::scan::{Scan, ScanError, View};
use super::version::Features;
use crate::store::lock::LockKind;

/// Scans of one connection that run at the same time; the others wait.
const SCANS_PER_CONNECTION: usize = 4;
/// Version a client would need for another key API.
const KEY_API_VERSION: &str = "6.2.0";

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An error event is large and rare.
type Refusal = Box<cdcpb::Error>;

fn refusal(error: cdcpb::Error) -> Refusal {
    Box::new(error)
}

/// A number that no other connection or subscription of the process has.
pub fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// One client's connection.
pub struct Connection {
    host: Arc<dyn Host>,
    hub: Arc<Hub>,
    id: u64,
    features: Features,
    queue: Arc<Queue>,
    scans: Arc<Semaphore>,
    max_unfinished: usize,
}

impl Connection {
    /// A connection whose events go to `queue`.
    pub fn new(
        host: Arc<dyn Host>,
        hub: Arc<Hub>,
        id: u64,
        features: Features,
        queue: Arc<Queue>,
        max_unfinished: usize,
    ) -> Self {
        Connection {
            host,
            hub,
            id,
            features,
            queue,
            scans: Arc::new(Semaphore::new(SCANS_PER_CONNECTION)),
            max_unfinished,
        }
    }

    /// Ends what the client names.
    pub fn deregister(&self, request: &cdcpb::ChangeDataRequest) {
        self.hub
            .deregister(self.id, request.request_id, request.region_id);
    }

    /// Opens a subscription, or answers why not.
    pub fn register(&self, request: cdcpb::ChangeDataRequest) {
        if let Err(error) = self.try_register(&request) {
            self.queue.refuse(cdcpb::Event {
                region_id: request.region_id,
                request_id: request.request_id,
                event: Some(cdcpb::event::Event::Error(*error)),
                ..Default::default()
            });
        }
    }

    fn try_register(&self, request: &cdcpb::ChangeDataRequest) -> Result<(), Refusal> {
        self.check_cluster(request)?;
        if request.kv_api() != cdcpb::change_data_request::KvApi::TiDb {
            return Err(refusal(cdcpb::Error {
                compatibility: Some(cdcpb::Compatibility {
                    required_version: KEY_API_VERSION.to_owned(),
                }),
                ..Default::default()
            }));
        }
        if self.hub.unfinished() >= self.max_unfinished {
            return Err(refusal(cdcpb::Error {
                server_is_busy: Some(errorpb::ServerIsBusy {
                    reason: "too many pending incremental scans".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }));
        }
        let region = self
            .host
            .region(request.region_id)
            .ok_or_else(|| refusal(region_not_found(request.region_id)))?;
        let subscription = Subscription {
            id: next_id(),
            connection: self.id,
            queue: self.queue.clone(),
            features: self.features,
            request_id: request.request_id,
            region_id: region.id,
            range: observed_range(request, &region),
            filter_loop: request.filter_loop,
            alive: Alive::new(),
        };
        if !self.hub.insert(subscription.clone()) {
            return Err(refusal(cdcpb::Error {
                duplicate_request: Some(cdcpb::DuplicateRequest {
                    region_id: request.region_id,
                }),
                ..Default::default()
            }));
        }
        if let Err(leader) = self.host.leads(region.id) {
            self.hub.end(&subscription, not_leader(region.id, leader));
            return Ok(());
        }
        let version = epoch_version(request.region_epoch.as_ref());
        if version != epoch_version(region.region_epoch.as_ref()) {
            self.hub.end(&subscription, epoch_not_match(vec![region]));
            return Ok(());
        }
        self.start_scan(subscription, version, Ts::new(request.checkpoint_ts));
        Ok(())
    }

    fn check_cluster(&self, request: &cdcpb::ChangeDataRequest) -> Result<(), Refusal> {
        let wanted = request.header.as_ref().map_or(0, |h| h.cluster_id);
        let current = self.host.cluster_id();
        if !self.features.validate_cluster_id || wanted == current {
            return Ok(());
        }
        Err(refusal(cdcpb::Error {
            cluster_id_mismatch: Some(cdcpb::ClusterIdMismatch {
                current,
                request: wanted,
            }),
            ..Default::default()
        }))
    }

    fn start_scan(&self, subscription: Subscription, version: u64, checkpoint_ts: Ts) {
        let (host, hub) = (self.host.clone(), self.hub.clone());
        let scans = self.scans.clone();
        tokio::spawn(async move {
            let Ok(permit) = scans.acquire_owned().await else {
                return;
            };
            let work = move || {
                let scan = PendingScan {
                    host: &*host,
                    hub: &hub,
                    subscription: &subscription,
                    version,
                    checkpoint_ts,
                };
                scan.run();
                drop(permit);
            };
            // A scan that dies takes only its own subscription along.
            let _ = tokio::task::spawn_blocking(work).await;
        });
    }
}

/// The part of the region that the client gets: the whole region if a bound does not decode (an
/// empty one does not) or if the bounds cover it.
fn observed_range(request: &cdcpb::ChangeDataRequest, region: &metapb::Region) -> EncodedRange {
    let decodes = |key: &bytes::Bytes| EncodedKey::from_encoded(key.clone()).decode().is_ok();
    if !decodes(&request.start_key) || !decodes(&request.end_key) {
        return EncodedRange::ALL;
    }
    let covers = request.start_key <= region.start_key
        && !region.end_key.is_empty()
        && region.end_key <= request.end_key;
    match covers {
        true => EncodedRange::ALL,
        false => EncodedRange::new(request.start_key.clone(), request.end_key.clone()),
    }
}

fn epoch_version(epoch: Option<&metapb::RegionEpoch>) -> u64 {
    epoch.map_or(0, |e| e.version)
}

struct PendingScan<'a> {
    host: &'a dyn Host,
    hub: &'a Hub,
    subscription: &'a Subscription,
    version: u64,
    checkpoint_ts: Ts,
}

impl PendingScan<'_> {
    fn run(&self) {
        match self.activate_and_scan() {
            Ok(()) | Err(ScanError::Ended) => {}
            Err(error) => {
                let region = self.subscription.region_id;
                tracing::error!(region, %error, "initial scan of change data failed");
                self.hub.end(self.subscription, region_not_found(region));
            }
        }
    }

    fn activate_and_scan(&self) -> Result<(), ScanError> {
        let mut begun = Err(ScanError::Ended);
        self.host
            .while_quiet(Ts::ZERO, &mut || begun = self.activate());
        let (view, region) = begun?;
        let all = EncodedRange::new(region.start_key, region.end_key);
        let scan = Scan {
            view: &view,
            range: all.intersect(&self.subscription.range),
            checkpoint_ts: self.checkpoint_ts,
            filter_loop: self.subscription.filter_loop,
        };
        scan.run(&mut |rows| self.send(rows))?;
        self.hub.scan_finished(self.subscription);
        Ok(())
    }

    /// Under the store's write lock: leader and epoch once more, live rows on, snapshot.
    fn activate(&self) -> Result<(View<'_>, metapb::Region), ScanError> {
        let id = self.subscription.region_id;
        let Some(region) = self.host.region(id) else {
            self.hub.end(self.subscription, region_not_found(id));
            return Err(ScanError::Ended);
        };
        if let Err(leader) = self.host.leads(id) {
            self.hub.end(self.subscription, not_leader(id, leader));
            return Err(ScanError::Ended);
        }
        if epoch_version(region.region_epoch.as_ref()) != self.version {
            let error = epoch_not_match(vec![region]);
            self.hub.end(self.subscription, error);
            return Err(ScanError::Ended);
        }
        let view = View::now(self.host.engine());
        let mut failure = None;
        let activated = self.hub.activate(self.subscription, || {
            lock_table(&view, &region)
                .map_err(|error| failure = Some(error))
                .ok()
        });
        match (activated, failure) {
            (true, _) => Ok((view, region)),
            (false, Some(error)) => Err(error),
            (false, None) => Err(ScanError::Ended),
        }
    }

    fn send(&self, rows: Vec<cdcpb::event::Row>) -> bool {
        let of = self.subscription;
        of.queue.push_scanned(&of.alive, of.rows(rows)).is_ok()
    }
}

fn lock_table(view: &View<'_>, region: &metapb::Region) -> Result<LockTable, ScanError> {
    let all = EncodedRange::new(region.start_key.clone(), region.end_key.clone());
    let mut table = LockTable::default();
    for found in view.locks(&all)? {
        let (key, lock) = found?;
        if matches!(lock.kind, LockKind::Put | LockKind::Delete) {
            table.track(key, lock.start_ts);
        }
    }
    Ok(table)
}
