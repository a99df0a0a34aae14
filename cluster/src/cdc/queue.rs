//! The queue between the reader, which never waits, and the user.
//!
//! Bounded in bytes. When records do not fit, whole subscriptions are given back, newest first,
//! with all they have queued: their ranges are scanned again from the durable frontier, so
//! nothing is lost, and a resolved ts that stands behind purged records goes with them.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{CdcEvent, SubId};

/// Memory of an event or record besides its bytes.
const OVERHEAD: usize = 96;

pub(super) struct EventQueue {
    inner: Mutex<Inner>,
    filled: Notify,
    limit: usize,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<CdcEvent>,
    bytes: usize,
    /// Bytes of queued records per subscription.
    queued: BTreeMap<SubId, usize>,
    closed: bool,
}

impl EventQueue {
    pub fn new(limit: usize) -> Self {
        EventQueue {
            inner: Mutex::default(),
            filled: Notify::new(),
            limit,
        }
    }

    pub fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }

    /// Appends without waiting. Returns the subscriptions that had to give way; the caller ends
    /// those that are alive. They have nothing queued any more; if the event's own is among them,
    /// the event is gone too.
    pub fn push(&self, event: CdcEvent) -> Vec<SubId> {
        let mut inner = self.inner.lock();
        let mut victims = Vec::new();
        let size = charge(&event);
        match &event {
            CdcEvent::Records { sub, .. } => {
                let sub = *sub;
                while inner.bytes + size > self.limit {
                    let newest = inner.queued.last_key_value().map(|(id, _)| *id);
                    let victim = newest.map_or(sub, |id| id.max(sub));
                    inner.purge(victim);
                    victims.push(victim);
                    if victim == sub {
                        return victims;
                    }
                }
                *inner.queued.entry(sub).or_insert(0) += size;
            }
            // The next one comes in a second.
            CdcEvent::Resolved { .. } if inner.bytes + size > self.limit => return victims,
            _ => {}
        }
        inner.bytes += size;
        inner.events.push_back(event);
        drop(inner);
        self.filled.notify_one();
        victims
    }

    /// No more events will come.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_one();
    }

    /// The next event; `None` when the queue is closed and empty. One reader; cancel-safe.
    pub async fn pop(&self) -> Option<CdcEvent> {
        loop {
            {
                let mut inner = self.inner.lock();
                if let Some(event) = inner.take() {
                    return Some(event);
                }
                if inner.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

impl Inner {
    fn take(&mut self) -> Option<CdcEvent> {
        let event = self.events.pop_front()?;
        let size = charge(&event);
        self.bytes -= size;
        if let CdcEvent::Records { sub, .. } = &event
            && let Some(queued) = self.queued.get_mut(sub)
        {
            *queued -= size;
            if *queued == 0 {
                self.queued.remove(sub);
            }
        }
        Some(event)
    }

    /// Removes all that is queued of a subscription but its end.
    fn purge(&mut self, victim: SubId) {
        self.queued.remove(&victim);
        for event in &mut self.events {
            if let CdcEvent::Resolved { subs, .. } = event {
                subs.retain(|sub| *sub != victim);
            }
        }
        self.events.retain(|event| match event {
            CdcEvent::Records { sub, .. } | CdcEvent::Initialized { sub } => *sub != victim,
            CdcEvent::Resolved { subs, .. } => !subs.is_empty(),
            CdcEvent::Ended { .. } | CdcEvent::Disconnected { .. } => true,
        });
        self.bytes = self.events.iter().map(charge).sum();
    }
}

/// Bytes charged. Ends are free: there is at most one per subscription.
fn charge(event: &CdcEvent) -> usize {
    match event {
        CdcEvent::Records { records, .. } => {
            let bytes: usize = records.iter().map(|r| r.size() + OVERHEAD).sum();
            OVERHEAD + bytes
        }
        CdcEvent::Resolved { subs, .. } => OVERHEAD + subs.len() * std::mem::size_of::<SubId>(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_format::{Cf, KvRecord, OpKind, Ts};

    use super::super::{EndKind, EndReason};
    use super::*;

    fn records(sub: u64, bytes: usize) -> CdcEvent {
        CdcEvent::Records {
            sub: SubId(sub),
            records: vec![KvRecord {
                cf: Cf::Write,
                op: OpKind::Put,
                key: Bytes::new(),
                value: Bytes::from(vec![0; bytes]),
            }],
        }
    }

    fn resolved(subs: &[u64]) -> CdcEvent {
        CdcEvent::Resolved {
            subs: subs.iter().map(|s| SubId(*s)).collect(),
            ts: Ts::new(9),
        }
    }

    fn drain(queue: &EventQueue) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(event) = queue.inner.lock().take() {
            out.push(match event {
                CdcEvent::Records { sub, .. } => format!("rows {}", sub.0),
                CdcEvent::Initialized { sub } => format!("init {}", sub.0),
                CdcEvent::Resolved { subs, .. } => format!("resolved {subs:?}"),
                CdcEvent::Ended { sub, .. } => format!("end {}", sub.0),
                CdcEvent::Disconnected { .. } => "gone".into(),
            });
        }
        assert_eq!(queue.bytes(), 0);
        assert!(queue.inner.lock().queued.is_empty());
        out
    }

    #[test]
    fn a_full_queue_gives_the_newest_subscription_back_with_all_it_has_queued() {
        let queue = EventQueue::new(10_000);
        assert!(queue.push(records(1, 4000)).is_empty());
        queue.push(CdcEvent::Initialized { sub: SubId(2) });
        assert!(queue.push(records(2, 4000)).is_empty());
        queue.push(resolved(&[1, 2]));
        queue.push(resolved(&[2]));
        assert_eq!(queue.push(records(1, 4000)), [SubId(2)]);
        assert_eq!(drain(&queue), ["rows 1", "resolved [SubId(1)]", "rows 1"]);
    }

    #[test]
    fn the_newest_one_that_brings_too_much_gives_way_itself() {
        let queue = EventQueue::new(10_000);
        queue.push(records(1, 6000));
        assert_eq!(queue.push(records(5, 6000)), [SubId(5)]);
        assert_eq!(drain(&queue), ["rows 1"]);
    }

    #[test]
    fn a_full_queue_drops_resolved_ts_but_never_an_end() {
        let queue = EventQueue::new(1000);
        queue.push(records(1, 800));
        assert!(queue.push(resolved(&[1])).is_empty());
        queue.push(CdcEvent::Ended {
            sub: SubId(1),
            reason: EndReason::new(EndKind::Unknown, ""),
        });
        assert_eq!(drain(&queue), ["rows 1", "end 1"]);
    }

    #[tokio::test]
    async fn a_closed_queue_delivers_the_rest_and_then_ends() {
        let queue = EventQueue::new(1000);
        queue.push(records(1, 8));
        queue.close();
        assert!(queue.pop().await.is_some());
        assert!(queue.pop().await.is_none());
    }
}
