//! The bounded queue between the store and one client.
//!
//! Live events never wait: when the client does not read and the queue is full, the subscription
//! is ended (`congested`). Scan events wait for room, on a thread of their own. Error events
//! always get in; they are few, because the connection reads no further request while the queue
//! is full. A subscription's end and its error event are one step, so no event follows the error.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pitr_proto::cdcpb;
use prost::Message;
use tokio::sync::Notify;
use tonic::Status;

/// A message is closed at this size; a larger event travels alone. TiKV: 6 MiB.
const MESSAGE_BYTES: usize = 6 << 20;
/// Events in one message. TiKV: 64.
const MESSAGE_EVENTS: usize = 64;
/// Scan events that wait. TiKV: 128.
const SCAN_EVENTS: usize = 128;

/// Whether a subscription still lives; shared by everybody who feeds it.
#[derive(Clone, Debug)]
pub struct Alive(Arc<AtomicBool>);

impl Alive {
    /// A living one.
    #[expect(
        clippy::new_without_default,
        reason = "a default would hide what it means"
    )]
    pub fn new() -> Self {
        Alive(Arc::new(AtomicBool::new(true)))
    }

    /// Whether events may still be sent.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why an event did not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The client does not read.
    Full,
    /// The subscription or the connection ended.
    Ended,
}

enum Item {
    Event(cdcpb::Event, usize),
    Scanned(cdcpb::Event, usize),
    Resolved(cdcpb::ResolvedTs, usize),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Item::Event(_, n) | Item::Scanned(_, n) | Item::Resolved(_, n) => *n,
        }
    }
}

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    bytes: usize,
    scanned: usize,
    end: Option<Result<(), Status>>,
}

/// One client's queue.
pub struct Queue {
    inner: Mutex<Inner>,
    limit: usize,
    room: Condvar,
    room_async: Notify,
    ready: Notify,
}

impl Queue {
    /// A queue for about `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Queue {
            inner: Mutex::default(),
            limit,
            room: Condvar::new(),
            room_async: Notify::new(),
            ready: Notify::new(),
        }
    }

    /// Adds a live event, or says that there is no room.
    pub fn push_live(&self, alive: &Alive, event: cdcpb::Event) -> Result<(), Refused> {
        let bytes = event.encoded_len();
        let mut inner = self.inner.lock();
        if inner.end.is_some() || !alive.get() {
            return Err(Refused::Ended);
        }
        if inner.bytes > 0 && inner.bytes + bytes > self.limit {
            return Err(Refused::Full);
        }
        self.push(&mut inner, Item::Event(event, bytes));
        Ok(())
    }

    /// Adds a scan event; blocks the thread until there is room.
    pub fn push_scanned(&self, alive: &Alive, event: cdcpb::Event) -> Result<(), Refused> {
        let bytes = event.encoded_len();
        let mut inner = self.inner.lock();
        loop {
            if inner.end.is_some() || !alive.get() {
                return Err(Refused::Ended);
            }
            // Half of the room stays for live events.
            let fits = inner.bytes == 0 || inner.bytes + bytes <= self.limit / 2;
            if fits && inner.scanned < SCAN_EVENTS {
                break;
            }
            // The end of a subscription does not signal: look from time to time.
            self.room.wait_for(&mut inner, Duration::from_millis(50));
        }
        inner.scanned += 1;
        self.push(&mut inner, Item::Scanned(event, bytes));
        Ok(())
    }

    /// Ends a subscription with an error event; does nothing if it has ended already.
    pub fn fail(&self, alive: &Alive, event: cdcpb::Event) {
        let mut inner = self.inner.lock();
        if alive.0.swap(false, Ordering::AcqRel) {
            self.push_always(&mut inner, event);
        }
    }

    /// Adds the error event of a request that opened nothing.
    pub fn refuse(&self, event: cdcpb::Event) {
        self.push_always(&mut self.inner.lock(), event);
    }

    /// Adds resolved timestamps; they are left out when there is no room, later ones say more.
    pub fn push_resolved(&self, resolved: cdcpb::ResolvedTs) {
        let bytes = resolved.encoded_len();
        let mut inner = self.inner.lock();
        if inner.end.is_none() && inner.bytes + bytes <= self.limit {
            self.push(&mut inner, Item::Resolved(resolved, bytes));
        }
    }

    /// No more events; what is queued is still delivered, then `end`.
    pub fn close(&self, end: Result<(), Status>) {
        let mut inner = self.inner.lock();
        inner.end.get_or_insert(end);
        drop(inner);
        self.ready.notify_one();
        self.room.notify_all();
        self.room_async.notify_waiters();
    }

    fn push_always(&self, inner: &mut Inner, event: cdcpb::Event) {
        if inner.end.is_none() {
            let bytes = event.encoded_len();
            self.push(inner, Item::Event(event, bytes));
        }
    }

    fn push(&self, inner: &mut Inner, item: Item) {
        inner.bytes += item.bytes();
        inner.items.push_back(item);
        self.ready.notify_one();
    }

    /// Waits until the queue is less than half full.
    pub async fn room(&self) {
        loop {
            let notified = self.room_async.notified();
            {
                let inner = self.inner.lock();
                if inner.end.is_some() || inner.bytes <= self.limit / 2 {
                    return;
                }
            }
            notified.await;
        }
    }

    /// The next message; `None` after the end. One caller at a time.
    pub async fn next(&self) -> Option<Result<cdcpb::ChangeDataEvent, Status>> {
        loop {
            let notified = self.ready.notified();
            {
                let mut inner = self.inner.lock();
                if let Some(message) = take_message(&mut inner) {
                    drop(inner);
                    self.room.notify_all();
                    self.room_async.notify_waiters();
                    return Some(Ok(message));
                }
                match &mut inner.end {
                    Some(Err(status)) => {
                        let status = std::mem::replace(status, Status::ok(""));
                        inner.end = Some(Ok(()));
                        return Some(Err(status));
                    }
                    Some(Ok(())) => return None,
                    None => {}
                }
            }
            notified.await;
        }
    }
}

/// Takes what fits into one message: events up to the limits, or one batch of resolved
/// timestamps.
fn take_message(inner: &mut Inner) -> Option<cdcpb::ChangeDataEvent> {
    let mut message = cdcpb::ChangeDataEvent::default();
    let mut bytes = 0;
    while let Some(next) = inner.items.front() {
        let resolved = matches!(next, Item::Resolved(..));
        let full = message.events.len() >= MESSAGE_EVENTS || bytes + next.bytes() > MESSAGE_BYTES;
        if !message.events.is_empty() && (resolved || full) {
            break;
        }
        let Some(item) = inner.items.pop_front() else {
            break;
        };
        inner.bytes -= item.bytes();
        bytes += item.bytes();
        match item {
            Item::Event(event, _) => message.events.push(event),
            Item::Scanned(event, _) => {
                inner.scanned -= 1;
                message.events.push(event);
            }
            Item::Resolved(resolved, _) => {
                message.resolved_ts = Some(resolved);
                break;
            }
        }
    }
    (message.resolved_ts.is_some() || !message.events.is_empty()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(region_id: u64, bytes: usize) -> cdcpb::Event {
        let row = cdcpb::event::Row {
            value: vec![b'x'; bytes].into(),
            ..Default::default()
        };
        cdcpb::Event {
            region_id,
            event: Some(cdcpb::event::Event::Entries(cdcpb::event::Entries {
                entries: vec![row],
            })),
            ..Default::default()
        }
    }

    fn resolved(ts: u64) -> cdcpb::ResolvedTs {
        cdcpb::ResolvedTs {
            ts,
            ..Default::default()
        }
    }

    async fn drain(queue: &Queue) -> Vec<(Vec<u64>, Option<u64>)> {
        queue.close(Ok(()));
        let mut messages = Vec::new();
        while let Some(message) = queue.next().await {
            let message = message.unwrap();
            messages.push((
                message.events.iter().map(|e| e.region_id).collect(),
                message.resolved_ts.map(|r| r.ts),
            ));
        }
        messages
    }

    #[tokio::test]
    async fn events_and_resolved_timestamps_keep_their_order_and_never_share_a_message() {
        let queue = Queue::new(1 << 20);
        let alive = Alive::new();
        queue.push_live(&alive, event(1, 1)).unwrap();
        queue.push_live(&alive, event(2, 1)).unwrap();
        queue.push_resolved(resolved(7));
        queue.push_resolved(resolved(8));
        queue.push_live(&alive, event(3, 1)).unwrap();
        let expected = [
            (vec![1, 2], None),
            (vec![], Some(7)),
            (vec![], Some(8)),
            (vec![3], None),
        ];
        assert_eq!(drain(&queue).await, expected);
    }

    #[tokio::test]
    async fn messages_are_closed_by_size_and_a_large_event_travels_alone() {
        let queue = Queue::new(64 << 20);
        let alive = Alive::new();
        for (region, bytes) in [(1, 100), (2, 7 << 20), (3, 100), (4, 5 << 20), (5, 2 << 20)] {
            queue.push_live(&alive, event(region, bytes)).unwrap();
        }
        let messages = drain(&queue).await;
        let regions: Vec<_> = messages.into_iter().map(|m| m.0).collect();
        assert_eq!(regions, [vec![1], vec![2], vec![3, 4], vec![5]]);
    }

    #[test]
    fn a_client_that_does_not_read_fills_its_queue_and_no_more() {
        let queue = Queue::new(1000);
        let alive = Alive::new();
        // One event of any size always fits.
        queue.push_live(&alive, event(1, 5000)).unwrap();
        assert_eq!(queue.push_live(&alive, event(1, 1)), Err(Refused::Full));
        queue.push_resolved(resolved(1));
        assert_eq!(queue.inner.lock().items.len(), 1);
    }

    #[tokio::test]
    async fn nothing_follows_the_error_of_a_subscription() {
        let queue = Queue::new(1000);
        let (alive, other) = (Alive::new(), Alive::new());
        queue.push_live(&alive, event(1, 1)).unwrap();
        queue.fail(&alive, event(9, 1));
        queue.fail(&alive, event(9, 1));
        assert_eq!(queue.push_live(&alive, event(1, 1)), Err(Refused::Ended));
        assert_eq!(queue.push_scanned(&alive, event(1, 1)), Err(Refused::Ended));
        queue.push_live(&other, event(2, 1)).unwrap();
        assert_eq!(drain(&queue).await, [(vec![1, 9, 2], None)]);
    }

    #[tokio::test]
    async fn a_scan_waits_until_the_client_reads() {
        let queue = Arc::new(Queue::new(4000));
        let alive = Alive::new();
        let scan = {
            let (queue, alive) = (queue.clone(), alive.clone());
            std::thread::spawn(move || {
                (0..50).try_for_each(|n| queue.push_scanned(&alive, event(n, 500)))
            })
        };
        let mut seen = Vec::new();
        while seen.len() < 50 {
            let message = queue.next().await.unwrap().unwrap();
            seen.extend(message.events.iter().map(|e| e.region_id));
            assert!(queue.inner.lock().bytes <= 2000);
        }
        scan.join().unwrap().unwrap();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_end_comes_after_everything_that_was_queued() {
        let queue = Queue::new(1000);
        queue.push_live(&Alive::new(), event(1, 1)).unwrap();
        queue.close(Err(Status::unknown("end")));
        assert!(queue.next().await.unwrap().is_ok());
        assert_eq!(queue.next().await.unwrap().unwrap_err().message(), "end");
        assert!(queue.next().await.is_none());
    }
}
