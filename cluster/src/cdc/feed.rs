//! The state of one stream: which subscription an event belongs to. No network; the driver moves
//! the messages.
//!
//! A message is taken as bytes ([`Feed::take`]) and worked off in steps of bounded output
//! ([`Feed::step`]), since a few commits can complete many megabytes of long values.
//!
//! When the rows of unfinished transactions fit neither into memory nor onto disk, a subscription
//! is given back: the newest among those that hold at least half as much as the one that holds
//! most. So what is given back helps, and old progress stays.
//!
//! **Request ids.** The store groups resolved ts by request id, so one id per subscription would
//! cost one message per region and second. An id per store-wide set alone would mix incarnations:
//! after an error event the scan's channel can still deliver rows, and an INITIALIZED, of the dead
//! subscription. So the n-th subscription of a region on one stream takes request id n: regions
//! that never failed share id 1, and a pair (request id, region id) is used at most once per
//! stream. A subscription that is to be told alone takes an id of its own, far above. A late event of an old incarnation then names a pair that is no longer known and is
//! dropped, and no re-register has to wait for the answer of a deregister.
//! Source: tikv/tikv `components/cdc/src/{endpoint, delegate, channel}.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::cdcpb::change_data_request::{Deregister, KvApi, Register, Request};
use pitr_proto::cdcpb::{self, ChangeDataRequest};
use pitr_proto::metapb;

use super::matcher::{MatchError, Matcher, Stage, Step};
use super::pool::Pool;
use super::records::Batch;
use super::wire::{self, Body, WireError};
use super::{CdcEvent, CdcOptions, EndKind, EndReason, SubId};

type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// Bytes of records that are told at a time.
pub(super) const BATCH_BYTES: usize = 256 << 10;

/// Request ids above are of one subscription each; no region fails that often on one stream.
const ALONE: u64 = 1 << 32;

/// In TiCDC's numbering: from 5.3.0 on the store checks the cluster id, below 4.0.8 a multiplexed
/// stream never carries a resolved ts.
pub(super) const TICDC_VERSION: &str = "8.5.0";

/// What to subscribe.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its name from now on.
    pub id: SubId,
    /// A region that the store leads.
    pub region: metapb::Region,
    /// The scan delivers what committed after it.
    pub checkpoint_ts: Ts,
    /// Ranges of the task; rows outside are dropped.
    pub wanted: Arc<[EncodedRange]>,
    /// The store tells its resolved ts by itself, not the smallest of a group of regions.
    pub alone: bool,
}

/// What the store calls a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Route {
    request_id: u64,
    region_id: u64,
}

struct Sub {
    id: SubId,
    matcher: Matcher,
}

/// Rows of one event that are being worked off.
struct Work {
    route: Route,
    rows: Bytes,
    at: usize,
}

/// Subscriptions of one stream.
pub struct Feed {
    cluster_id: u64,
    subs: HashMap<Route, Sub>,
    routes: BTreeMap<SubId, Route>,
    /// Per region the last request id used on this stream.
    used: HashMap<u64, u64>,
    /// Request ids used on this stream by those that are told alone.
    alone: u64,
    outgoing: VecDeque<ChangeDataRequest>,
    pool: Pool,
    held: usize,

    /// What is left of the message.
    message: VecDeque<wire::Event>,
    resolved: Option<cdcpb::ResolvedTs>,
    work: Option<Work>,
    stage: Stage,
    /// Records of `batch_of`, not told yet.
    batch: Batch,
    batch_of: Option<SubId>,
}

impl Feed {
    /// An empty feed for stores of a cluster.
    pub fn new(cluster_id: u64, options: &CdcOptions) -> Self {
        let (budget, spill) = (options.budget.clone(), options.spill.clone());
        Feed {
            cluster_id,
            subs: HashMap::default(),
            routes: BTreeMap::new(),
            used: HashMap::default(),
            alone: 0,
            outgoing: VecDeque::new(),
            pool: Pool::new(budget, spill, options.prewrite_limit as u64),
            held: 0,
            message: VecDeque::new(),
            resolved: None,
            work: None,
            stage: Stage::default(),
            batch: Batch::default(),
            batch_of: None,
        }
    }

    /// Subscriptions alive.
    pub fn len(&self) -> usize {
        self.subs.len()
    }

    /// Whether nothing is subscribed.
    pub fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }

    /// Whether a subscription is alive.
    pub fn has(&self, id: SubId) -> bool {
        self.routes.contains_key(&id)
    }

    /// Bytes of rows of unfinished transactions, in memory or on disk.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Bytes of memory that they take.
    pub fn memory(&self) -> usize {
        self.pool.bytes() as usize
    }

    /// The next request to send.
    pub fn next_request(&mut self) -> Option<ChangeDataRequest> {
        self.outgoing.pop_front()
    }

    /// Whether a request waits to be sent.
    pub fn has_request(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Registers. A second subscription under a living id is refused with `false`.
    pub fn subscribe(&mut self, subscription: Subscription) -> bool {
        let Subscription {
            id,
            region,
            checkpoint_ts,
            wanted,
            alone,
        } = subscription;
        if self.routes.contains_key(&id) {
            return false;
        }
        let route = Route {
            request_id: self.next_request_id(region.id, alone),
            region_id: region.id,
        };
        let range = EncodedRange::new(region.start_key.clone(), region.end_key.clone());
        let (start_key, end_key) = register_bounds(&range, &wanted);
        let sub = Sub {
            id,
            matcher: Matcher::new(&range, &wanted, &self.pool),
        };
        self.subs.insert(route, sub);
        self.routes.insert(id, route);
        let request = ChangeDataRequest {
            region_epoch: region.region_epoch,
            checkpoint_ts: checkpoint_ts.get(),
            start_key,
            end_key,
            request: Some(Request::Register(Register {})),
            ..self.request(route)
        };
        self.outgoing.push_back(request);
        true
    }

    fn next_request_id(&mut self, region_id: u64, alone: bool) -> u64 {
        if alone {
            self.alone += 1;
            return ALONE + self.alone;
        }
        let last = self.used.entry(region_id).or_insert(0);
        *last += 1;
        *last
    }

    /// Ends a subscription and deregisters it; false if it was over already.
    pub fn unsubscribe(&mut self, id: SubId) -> bool {
        let Some(route) = self.routes.get(&id).copied() else {
            return false;
        };
        self.remove(route);
        let request = ChangeDataRequest {
            request: Some(Request::Deregister(Deregister {})),
            ..self.request(route)
        };
        self.outgoing.push_back(request);
        true
    }

    /// Which subscription is given back for the rows of unfinished transactions.
    fn victim(&self) -> Option<SubId> {
        let held = |route: &Route| self.subs.get(route).map_or(0, |sub| sub.matcher.held());
        let most = self.routes.values().map(held).max()?;
        let mut newest_first = self.routes.iter().rev();
        newest_first.find_map(|(id, route)| (held(route) * 2 >= most).then_some(*id))
    }

    /// Takes one message. The one before must have been worked off.
    pub fn take(&mut self, message: &Bytes) -> Result<(), WireError> {
        let parsed = wire::parse(message)?;
        self.message = parsed.events.into();
        self.resolved = parsed.resolved;
        Ok(())
    }

    /// Works off a part of the message and appends what it means, in order; true if there is more.
    /// One step gives about [`BATCH_BYTES`] of records, more only for a larger row.
    pub fn step(&mut self, out: &mut Vec<CdcEvent>) -> bool {
        loop {
            if self.work.is_some() {
                if self.work_off(out) {
                    return true;
                }
                continue;
            }
            let Some(event) = self.message.pop_front() else {
                break;
            };
            let route = Route {
                request_id: event.request_id,
                region_id: event.region_id,
            };
            match event.body {
                // Of a subscription that is over it may be still on its way.
                Body::Rows(rows) if self.subs.contains_key(&route) => {
                    self.stage.clear();
                    self.work = Some(Work { route, rows, at: 0 });
                }
                Body::Error(error) => self.on_error(route, *error, out),
                Body::Resolved(ts) => self.on_resolved(&[route], ts, out),
                Body::Rows(_) | Body::Other => {}
            }
        }
        if let Some(resolved) = self.resolved.take() {
            let request_id = resolved.request_id;
            let route = |region_id: &u64| Route {
                request_id,
                region_id: *region_id,
            };
            let routes: Vec<_> = resolved.regions.iter().map(route).collect();
            self.on_resolved(&routes, resolved.ts, out);
        }
        self.flush(out);
        false
    }

    /// [`Feed::take`] and all its steps.
    pub fn on_message(
        &mut self,
        message: &Bytes,
        out: &mut Vec<CdcEvent>,
    ) -> Result<(), WireError> {
        self.take(message)?;
        while self.step(out) {}
        Ok(())
    }

    /// Works on the rows at hand; true if the step is over.
    fn work_off(&mut self, out: &mut Vec<CdcEvent>) -> bool {
        let Some(mut work) = self.work.take() else {
            return false;
        };
        let known = self.subs.get(&work.route);
        let Some((id, before)) = known.map(|sub| (sub.id, sub.matcher.held())) else {
            return false;
        };
        if self.batch_of != Some(id) {
            self.flush(out);
            self.batch_of = Some(id);
        }
        let progress = self.advance(&mut work);
        let after = self
            .subs
            .get(&work.route)
            .map_or(before, |sub| sub.matcher.held());
        self.held = self.held + after - before;
        match progress {
            Ok(Step::Done) if work.at >= work.rows.len() => {
                // What was kept of the rows belongs to the matcher alone now.
                self.stage.clear();
                false
            }
            Ok(Step::Done) => {
                self.work = Some(work);
                false
            }
            Ok(Step::Initialized) => {
                self.flush(out);
                out.push(CdcEvent::Initialized { sub: id });
                self.work = Some(work);
                false
            }
            Ok(Step::Enough) => {
                self.flush(out);
                self.work = Some(work);
                true
            }
            Err(error) => self.failed(work, id, error, out),
        }
    }

    fn advance(&mut self, work: &mut Work) -> Result<Step, MatchError> {
        let Some(sub) = self.subs.get_mut(&work.route) else {
            return Ok(Step::Done);
        };
        let matcher = &mut sub.matcher;
        if self.stage.is_done() {
            matcher.stage(&work.rows, &mut work.at, &mut self.stage, &mut self.pool)?;
        }
        let (stage, pool) = (&mut self.stage, &mut self.pool);
        matcher.advance(&work.rows, stage, pool, &mut self.batch, BATCH_BYTES)
    }

    /// Ends the subscription, or another one that makes room for it.
    fn failed(
        &mut self,
        work: Work,
        id: SubId,
        error: MatchError,
        out: &mut Vec<CdcEvent>,
    ) -> bool {
        let victim = match &error {
            MatchError::NoRoom(_) => self.victim().unwrap_or(id),
            _ => id,
        };
        self.flush(out);
        self.unsubscribe(victim);
        let reason = EndReason::from(error);
        out.push(CdcEvent::Ended {
            sub: victim,
            reason,
        });
        match victim == id {
            true => self.stage.clear(),
            false => self.work = Some(work),
        }
        false
    }

    /// Tells the records of the batch.
    fn flush(&mut self, out: &mut Vec<CdcEvent>) {
        if let Some(sub) = self.batch_of
            && !self.batch.is_empty()
        {
            let records = self.batch.finish();
            out.push(CdcEvent::Records { sub, records });
        }
    }

    fn on_error(&mut self, route: Route, error: cdcpb::Error, out: &mut Vec<CdcEvent>) {
        let Some(id) = self.subs.get(&route).map(|sub| sub.id) else {
            return;
        };
        self.flush(out);
        let reason = EndReason::from(error);
        match reason.kind {
            // The store keeps the older one of the pair: it must not go on unheard.
            EndKind::DuplicateRequest => {
                self.unsubscribe(id);
            }
            _ => self.remove(route),
        }
        out.push(CdcEvent::Ended { sub: id, reason });
    }

    fn on_resolved(&mut self, routes: &[Route], ts: u64, out: &mut Vec<CdcEvent>) {
        let ready = |route: &Route| {
            let sub = self.subs.get(route)?;
            sub.matcher.is_initialized().then_some(sub.id)
        };
        let subs: Vec<_> = routes.iter().filter_map(ready).collect();
        if ts != 0 && !subs.is_empty() {
            self.flush(out);
            let ts = Ts::new(ts);
            out.push(CdcEvent::Resolved { subs, ts });
        }
    }

    fn remove(&mut self, route: Route) {
        if let Some(sub) = self.subs.remove(&route) {
            self.held -= sub.matcher.held();
            self.routes.remove(&sub.id);
        }
        if self.subs.is_empty() {
            self.pool.rest();
        }
    }

    fn request(&self, route: Route) -> ChangeDataRequest {
        ChangeDataRequest {
            header: Some(cdcpb::Header {
                cluster_id: self.cluster_id,
                ticdc_version: TICDC_VERSION.to_owned(),
            }),
            region_id: route.region_id,
            request_id: route.request_id,
            // Transactional rows, whatever client wrote them; loop filters off.
            kv_api: KvApi::TiDb as i32,
            filter_loop: false,
            ..Default::default()
        }
    }

    /// The stream is gone: forgets everything and returns what was alive. The next stream starts
    /// with fresh request ids, since nothing of this one can arrive there.
    pub fn disconnect(&mut self) -> Vec<SubId> {
        let subs = std::mem::take(&mut self.routes).into_keys().collect();
        self.subs.clear();
        self.used.clear();
        self.alone = 0;
        self.outgoing.clear();
        self.held = 0;
        self.message.clear();
        self.resolved = None;
        self.work = None;
        self.stage.clear();
        drop(self.batch.finish());
        self.batch_of = None;
        self.pool.rest();
        subs
    }
}

/// The range that the store takes a subscription of a region for.
pub(crate) fn registered_range(region: &EncodedRange, wanted: &[EncodedRange]) -> EncodedRange {
    let (start, end) = register_bounds(region, wanted);
    match start.is_empty() && end.is_empty() {
        true => region.clone(),
        false => EncodedRange::new(start, end),
    }
}

/// The bounds to register: the hull of what is wanted of the region if both ends are valid encoded
/// keys, else none. The store falls back to the whole region when *either* does not decode.
fn register_bounds(region: &EncodedRange, wanted: &[EncodedRange]) -> (Bytes, Bytes) {
    let mut hull: Option<EncodedRange> = None;
    for part in wanted.iter().filter_map(|range| range.intersect(region)) {
        hull = Some(match hull {
            None => part,
            Some(hull) => EncodedRange {
                start: hull.start.min(part.start),
                end: match hull.end.is_empty() || part.end.is_empty() {
                    true => Bytes::new(),
                    false => hull.end.max(part.end),
                },
            },
        });
    }
    let valid = |key: &Bytes| EncodedKey::from_encoded(key.clone()).decode().is_ok();
    match hull {
        Some(hull) if valid(&hull.start) && valid(&hull.end) => (hull.start, hull.end),
        _ => (Bytes::new(), Bytes::new()),
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "feed_model_tests.rs"]
mod model_tests;
