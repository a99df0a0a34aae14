//! The state of one stream: which subscription an event belongs to. Pure; the driver moves the
//! messages.
//!
//! **Request ids.** The store groups resolved ts by request id, so one id per subscription would
//! cost one message per region and second. An id per store-wide set alone would mix incarnations:
//! after an error event the scan's channel can still deliver rows, and an INITIALIZED, of the dead
//! subscription. So the n-th subscription of a region on one stream takes request id n: regions
//! that never failed share id 1, and a pair (request id, region id) is used at most once per
//! stream. A late event of an old incarnation then names a pair that is no longer known and is
//! dropped, and no re-register has to wait for the answer of a deregister.
//! Source: tikv/tikv `components/cdc/src/{endpoint, delegate, channel}.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::cdcpb::change_data_request::{Deregister, KvApi, Register, Request};
use pitr_proto::cdcpb::{self, ChangeDataEvent, ChangeDataRequest, event};
use pitr_proto::metapb;

use super::{CdcEvent, EndKind, EndReason, Matcher, SubId};

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
}

/// What the store calls a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    request_id: u64,
    region_id: u64,
}

struct Sub {
    id: SubId,
    matcher: Matcher,
}

/// Subscriptions of one stream.
pub struct Feed {
    cluster_id: u64,
    subs: BTreeMap<Route, Sub>,
    routes: BTreeMap<SubId, Route>,
    /// Per region the last request id used on this stream.
    used: BTreeMap<u64, u64>,
    outgoing: VecDeque<ChangeDataRequest>,
    memory: usize,
}

impl Feed {
    /// An empty feed for stores of a cluster.
    pub fn new(cluster_id: u64) -> Self {
        Feed {
            cluster_id,
            subs: BTreeMap::new(),
            routes: BTreeMap::new(),
            used: BTreeMap::new(),
            outgoing: VecDeque::new(),
            memory: 0,
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

    /// Bytes that all matchers keep.
    pub fn memory(&self) -> usize {
        self.memory
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
        } = subscription;
        if self.routes.contains_key(&id) {
            return false;
        }
        let last = self.used.entry(region.id).or_insert(0);
        *last += 1;
        let route = Route {
            request_id: *last,
            region_id: region.id,
        };
        let range = EncodedRange::new(region.start_key.clone(), region.end_key.clone());
        let (start_key, end_key) = register_bounds(&range, &wanted);
        let sub = Sub {
            id,
            matcher: Matcher::new(&range, &wanted),
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

    /// The newest subscription that keeps rows in memory.
    pub fn newest_with_memory(&self) -> Option<SubId> {
        let kept = |(id, route): (&SubId, &Route)| {
            let sub = self.subs.get(route)?;
            (sub.matcher.memory() > 0).then_some(*id)
        };
        self.routes.iter().rev().find_map(kept)
    }

    /// Takes one message and appends what it means.
    pub fn on_message(&mut self, message: ChangeDataEvent, out: &mut Vec<CdcEvent>) {
        for event in message.events {
            let route = Route {
                request_id: event.request_id,
                region_id: event.region_id,
            };
            match event.event {
                Some(event::Event::Entries(entries)) => self.on_rows(route, entries.entries, out),
                Some(event::Event::Error(error)) => self.on_error(route, error, out),
                Some(event::Event::ResolvedTs(ts)) => self.on_resolved(&[route], ts, out),
                // Declared, but not sent by any known store.
                Some(event::Event::Admin(_) | event::Event::LongTxn(_)) | None => {}
            }
        }
        if let Some(resolved) = message.resolved_ts {
            let request_id = resolved.request_id;
            let route = |region_id: &u64| Route {
                request_id,
                region_id: *region_id,
            };
            let routes: Vec<_> = resolved.regions.iter().map(route).collect();
            self.on_resolved(&routes, resolved.ts, out);
        }
    }

    fn on_rows(&mut self, route: Route, rows: Vec<event::Row>, out: &mut Vec<CdcEvent>) {
        // An event of a subscription that is over, still on its way.
        let Some(sub) = self.subs.get_mut(&route) else {
            return;
        };
        let id = sub.id;
        let before = sub.matcher.memory();
        let mut records = Vec::with_capacity(rows.len());
        let outcome = sub.matcher.apply(rows, &mut records);
        self.memory = self.memory + sub.matcher.memory() - before;
        if !records.is_empty() {
            out.push(CdcEvent::Records { sub: id, records });
        }
        match outcome {
            Ok(true) => out.push(CdcEvent::Initialized { sub: id }),
            Ok(false) => {}
            Err(error) => {
                self.unsubscribe(id);
                let reason = EndReason::from(error);
                out.push(CdcEvent::Ended { sub: id, reason });
            }
        }
    }

    fn on_error(&mut self, route: Route, error: cdcpb::Error, out: &mut Vec<CdcEvent>) {
        let Some(id) = self.subs.get(&route).map(|sub| sub.id) else {
            return;
        };
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
            let ts = Ts::new(ts);
            out.push(CdcEvent::Resolved { subs, ts });
        }
    }

    fn remove(&mut self, route: Route) {
        if let Some(sub) = self.subs.remove(&route) {
            self.memory -= sub.matcher.memory();
            self.routes.remove(&sub.id);
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
        *self = Feed::new(self.cluster_id);
        subs
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
