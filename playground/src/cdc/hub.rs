//! Who subscribed what, and the way of each applied write to them.
//!
//! Lock order: the store's write lock, then the hub's, then a queue's. The hub is never locked
//! while the store is asked for something.
//!
//! A region has a delegate as long as somebody subscribes it. The delegate's lock table is filled
//! under the store's write lock when the first subscription is activated; from then on it follows
//! what is applied, with the gaps of a real store's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::{EncodedRange, Ts};
use pitr_proto::cdcpb::{self, event::Row};
use pitr_proto::{errorpb, metapb};
use pitr_restore_worker::engine::EngineCf;
use pitr_restore_worker::engine::rocks::RocksEngine;

use super::queue::{Alive, Queue, Refused};
use super::resolved::{LockTable, advance, groups};
use super::rows::{RowError, ended, is_reported, rows_of};
use super::scan::View;
use super::version::Features;
use crate::store::change::{ApplyObserver, Modify, RegionChange};
use crate::store::lock::{LockKind, LockRecord};

/// How a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Registered; its scan has not begun, the snapshot will hold what is written meanwhile.
    Pending,
    /// Gets live rows; its scan runs.
    Scanning,
    /// Gets live rows and resolved timestamps.
    Ready,
}

/// What a client subscribed.
#[derive(Clone)]
pub struct Subscription {
    /// Unique in the process.
    pub id: u64,
    /// The connection.
    pub connection: u64,
    /// Its queue.
    pub queue: Arc<Queue>,
    /// Its features.
    pub features: Features,
    /// The client's number.
    pub request_id: u64,
    /// The region.
    pub region_id: u64,
    /// The part of it that is wanted.
    pub range: EncodedRange,
    /// Leave out rows of another origin.
    pub filter_loop: bool,
    /// Whether it may still get events.
    pub alive: Alive,
}

impl Subscription {
    /// The event that carries `rows`.
    pub fn rows(&self, entries: Vec<Row>) -> cdcpb::Event {
        self.event(cdcpb::event::Event::Entries(cdcpb::event::Entries {
            entries,
        }))
    }

    /// Ends the subscription at the client.
    pub fn fail(&self, error: cdcpb::Error) {
        let event = self.event(cdcpb::event::Event::Error(error));
        self.queue.fail(&self.alive, event);
    }

    fn event(&self, event: cdcpb::event::Event) -> cdcpb::Event {
        cdcpb::Event {
            region_id: self.region_id,
            request_id: self.request_id,
            event: Some(event),
            ..Default::default()
        }
    }

    fn wants(&self, encoded: &Bytes, row: &Row) -> bool {
        (self.range == EncodedRange::ALL || self.range.contains(encoded))
            && is_reported(row.txn_source, self.filter_loop)
    }
}

/// The error for a region that is gone, and for everything without a better name.
pub fn region_not_found(region_id: u64) -> cdcpb::Error {
    cdcpb::Error {
        region_not_found: Some(errorpb::RegionNotFound { region_id }),
        ..Default::default()
    }
}

/// The error for a region that another store leads, or none.
pub fn not_leader(region_id: u64, leader: Option<metapb::Peer>) -> cdcpb::Error {
    cdcpb::Error {
        not_leader: Some(errorpb::NotLeader { region_id, leader }),
        ..Default::default()
    }
}

/// The error for a region of another shape.
pub fn epoch_not_match(current_regions: Vec<metapb::Region>) -> cdcpb::Error {
    cdcpb::Error {
        epoch_not_match: Some(errorpb::EpochNotMatch { current_regions }),
        ..Default::default()
    }
}

fn congested(region_id: u64) -> cdcpb::Error {
    cdcpb::Error {
        congested: Some(cdcpb::Congested { region_id }),
        ..Default::default()
    }
}

struct Member {
    subscription: Subscription,
    stage: Stage,
    /// Counts it until its scan is over.
    unfinished: Option<Arc<()>>,
    resolved: Ts,
}

#[derive(Default)]
struct Delegate {
    /// `None` until the first activation.
    locks: Option<LockTable>,
    members: Vec<Member>,
}

/// Resolved timestamps that travel together: one connection, one request id.
struct Batch {
    queue: Arc<Queue>,
    regions: Vec<(Ts, u64)>,
}

/// The registry of all subscriptions.
pub struct Hub {
    engine: RocksEngine,
    delegates: Mutex<BTreeMap<u64, Delegate>>,
    /// Held once more by each member whose scan is not over, so that nobody has to go through all.
    unfinished: Arc<()>,
}

impl Hub {
    /// An empty registry over a store's data.
    pub fn new(engine: RocksEngine) -> Self {
        Hub {
            engine,
            delegates: Mutex::default(),
            unfinished: Arc::default(),
        }
    }

    /// Adds a subscription in stage `Pending`; false if the connection has it already.
    pub fn insert(&self, subscription: Subscription) -> bool {
        let mut delegates = self.delegates.lock();
        let delegate = delegates.entry(subscription.region_id).or_default();
        let new = &subscription;
        let known = delegate.members.iter().any(|m| {
            m.subscription.connection == new.connection
                && (!new.features.multiplexing || m.subscription.request_id == new.request_id)
        });
        if !known {
            delegate.members.push(Member {
                subscription,
                stage: Stage::Pending,
                unfinished: Some(self.unfinished.clone()),
                resolved: Ts::ZERO,
            });
        }
        !known
    }

    /// Regions that somebody subscribes, and how many subscriptions are in each stage.
    pub fn counts(&self) -> (usize, BTreeMap<Stage, usize>) {
        let delegates = self.delegates.lock();
        let mut stages = BTreeMap::new();
        for member in delegates.values().flat_map(|d| &d.members) {
            *stages.entry(member.stage).or_default() += 1;
        }
        (delegates.len(), stages)
    }

    /// Ends every subscription of a region.
    fn fail_region(&self, region_id: u64, error: &cdcpb::Error) {
        let delegate = self.delegates.lock().remove(&region_id);
        if let Some(delegate) = delegate {
            delegate.fail_all(error);
        }
    }

    /// Subscriptions that wait for their scan or run it.
    pub fn unfinished(&self) -> usize {
        Arc::strong_count(&self.unfinished) - 1
    }

    /// Begins to deliver live rows. Called under the store's write lock, with the locks of the
    /// whole region as they are at this moment. False if the subscription has ended.
    pub fn activate(
        &self,
        subscription: &Subscription,
        locks: impl FnOnce() -> Option<LockTable>,
    ) -> bool {
        let mut delegates = self.delegates.lock();
        let Some(delegate) = delegates.get_mut(&subscription.region_id) else {
            return false;
        };
        if !delegate.set_stage(subscription.id, Stage::Scanning) {
            return false;
        }
        if delegate.locks.is_none() {
            delegate.locks = locks();
        }
        delegate.locks.is_some()
    }

    /// The scan is in the queue to its end: resolved timestamps may follow.
    pub fn scan_finished(&self, subscription: &Subscription) {
        let mut delegates = self.delegates.lock();
        if let Some(delegate) = delegates.get_mut(&subscription.region_id) {
            delegate.set_stage(subscription.id, Stage::Ready);
        }
    }

    /// Ends one subscription with an error.
    pub fn end(&self, subscription: &Subscription, error: cdcpb::Error) {
        self.end_where(|member| member.id == subscription.id, |_| error.clone());
    }

    /// The client deregisters: one region of a request id, or with region id 0 all of them.
    /// Without multiplexing the request id means nothing.
    pub fn deregister(&self, connection: u64, request_id: u64, region_id: u64) {
        self.end_where(
            |member| {
                member.connection == connection
                    && (region_id == 0 || member.region_id == region_id)
                    && (!member.features.multiplexing || member.request_id == request_id)
            },
            |member| region_not_found(member.region_id),
        );
    }

    /// The connection is gone.
    pub fn disconnect(&self, connection: u64) {
        self.end_where(
            |member| member.connection == connection,
            |member| region_not_found(member.region_id),
        );
    }

    fn end_where(
        &self,
        ends: impl Fn(&Subscription) -> bool,
        error: impl Fn(&Subscription) -> cdcpb::Error,
    ) {
        let mut delegates = self.delegates.lock();
        delegates.retain(|_, delegate| {
            delegate.members.retain(|member| {
                let ending = ends(&member.subscription);
                if ending {
                    member.subscription.fail(error(&member.subscription));
                }
                !ending
            });
            !delegate.members.is_empty()
        });
    }

    /// Sends resolved timestamps after a tick at `now`: no write that could commit at or below
    /// `now` without a lock in the tables may be under way any more.
    pub fn resolve(&self, now: Ts) {
        let mut delegates = self.delegates.lock();
        let mut batches: BTreeMap<(u64, u64), Batch> = BTreeMap::new();
        for delegate in delegates.values_mut() {
            let Some(locks) = &delegate.locks else {
                continue;
            };
            for member in &mut delegate.members {
                if member.stage < Stage::Ready {
                    continue;
                }
                let of = &member.subscription;
                member.resolved = advance(member.resolved, now, locks, &of.range);
                match (of.features.multiplexing, of.features.batch_resolved_ts) {
                    // A client too old for batches gets none on a multiplexed stream.
                    (true, false) => {}
                    (false, false) => {
                        let ts = cdcpb::event::Event::ResolvedTs(member.resolved.get());
                        // Full or ended: a later tick says more, or nobody listens.
                        let _ = of.queue.push_live(&of.alive, of.event(ts));
                    }
                    (multiplexing, true) => {
                        let request = if multiplexing { of.request_id } else { 0 };
                        batches
                            .entry((of.connection, request))
                            .or_insert_with(|| Batch {
                                queue: of.queue.clone(),
                                regions: Vec::new(),
                            })
                            .regions
                            .push((member.resolved, of.region_id));
                    }
                }
            }
        }
        for ((_, request_id), batch) in batches {
            for (ts, regions) in groups(batch.regions) {
                batch.queue.push_resolved(cdcpb::ResolvedTs {
                    regions,
                    ts: ts.get(),
                    request_id,
                });
            }
        }
    }
}

impl Delegate {
    fn set_stage(&mut self, id: u64, stage: Stage) -> bool {
        let member = self.members.iter_mut().find(|m| m.subscription.id == id);
        let found = member.is_some();
        if let Some(member) = member {
            member.stage = stage;
            if stage == Stage::Ready {
                member.unfinished = None;
            }
        }
        found
    }

    /// As stores from 8.5.4 on: a lock stays until a write record of its transaction is put, its
    /// removal alone does not count. A rollback that overlaps a commit and is not protected puts
    /// none, and a range that is deleted neither: such a lock stays although nobody holds it.
    fn track(&mut self, mods: &[Modify]) -> Result<(), RowError> {
        let Some(locks) = &mut self.locks else {
            return Ok(());
        };
        for change in mods {
            match change {
                Modify::Put {
                    cf: EngineCf::Lock,
                    key,
                    value,
                } => {
                    let lock = LockRecord::parse(value).map_err(|e| RowError::new(key, e))?;
                    if matches!(lock.kind, LockKind::Put | LockKind::Delete) {
                        locks.track(key.clone(), lock.start_ts);
                    }
                }
                Modify::Put {
                    cf: EngineCf::Write,
                    key,
                    value,
                } => {
                    if let Some((encoded, start_ts)) = ended(key, value)? {
                        locks.untrack(&encoded, start_ts);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends the rows of one command; ends who cannot take them.
    fn broadcast(&mut self, rows: &[(Bytes, Row)]) {
        self.members.retain(|member| {
            let of = &member.subscription;
            if member.stage == Stage::Pending {
                return true;
            }
            let wanted = rows.iter().filter(|(key, row)| of.wants(key, row));
            let entries: Vec<Row> = wanted.map(|(_, row)| row.clone()).collect();
            if entries.is_empty() {
                return true;
            }
            match of.queue.push_live(&of.alive, of.rows(entries)) {
                Ok(()) => true,
                Err(Refused::Ended) => false,
                Err(Refused::Full) => {
                    of.fail(congested(of.region_id));
                    false
                }
            }
        });
    }

    fn fail_all(&self, error: &cdcpb::Error) {
        for member in &self.members {
            member.subscription.fail(error.clone());
        }
    }
}

impl ApplyObserver for Hub {
    fn on_apply(&self, region_id: u64, mods: &[Modify], one_pc: bool) {
        let mut delegates = self.delegates.lock();
        let Some(delegate) = delegates.get_mut(&region_id) else {
            return;
        };
        let tracked = delegate.track(mods);
        let any = delegate.members.iter().any(|m| m.stage > Stage::Pending);
        if !any {
            return;
        }
        match tracked.and_then(|()| rows_of(mods, one_pc, &View::now(&self.engine))) {
            Ok(rows) if rows.is_empty() => {}
            Ok(rows) => delegate.broadcast(&rows),
            Err(error) => {
                tracing::error!(region = region_id, %error, "change data of a region end");
                delegate.fail_all(&region_not_found(region_id));
                delegate.members.clear();
            }
        }
        if delegate.members.is_empty() {
            delegates.remove(&region_id);
        }
    }

    fn on_region_change(&self, change: &RegionChange) {
        let (touched, error): (BTreeSet<u64>, _) = match change {
            RegionChange::Split { old, new } => (
                new.iter().map(|r| r.id).chain([old.id]).collect(),
                epoch_not_match(new.clone()),
            ),
            // The list of regions is empty, as in TiKV: nobody but PD can say who has the range.
            RegionChange::Merging { region } => {
                (BTreeSet::from([region.id]), epoch_not_match(Vec::new()))
            }
            RegionChange::Merged { source, target } => {
                self.fail_region(source.id, &region_not_found(source.id));
                (BTreeSet::from([target.id]), epoch_not_match(Vec::new()))
            }
            // Only the store that led the region until now has subscriptions of it.
            RegionChange::Leader { region, leader } => {
                (BTreeSet::from([region.id]), not_leader(region.id, *leader))
            }
        };
        for id in touched {
            self.fail_region(id, &error);
        }
    }
}
