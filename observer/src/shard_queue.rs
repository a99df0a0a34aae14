//! The bounded queue of one shard.
//!
//! Who waits for a place wakes once half of the places are free: waking a sender for each place would
//! cost two switches of threads for every event. Until then nobody else gets a place either, or
//! those who never wait would keep the queue more than half full for ever, and a seal outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, RecvError, Sender, TryRecvError, TrySendError, bounded};
use tokio::sync::Notify;

use crate::shard_worker::ShardMessage;

/// The shard is gone.
#[derive(Debug)]
pub(crate) struct QueueClosed;

/// What both ends know of those who wait.
#[derive(Default)]
struct Waiters {
    number: AtomicUsize,
    half_free: Notify,
}

/// The way to a shard.
pub(crate) struct ShardQueue {
    messages: Sender<ShardMessage>,
    waiters: Arc<Waiters>,
}

/// The shard's end.
pub(crate) struct Inbox {
    messages: Receiver<ShardMessage>,
    /// Behind the messages, so that whoever wakes at the end finds them gone.
    waiters: WakeAtEnd,
}

struct WakeAtEnd(Arc<Waiters>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.half_free.notify_waiters();
    }
}

/// Counts one who waits, for as long as it does.
struct Waiting<'a>(&'a Waiters);

impl<'a> Waiting<'a> {
    fn new(waiters: &'a Waiters) -> Self {
        waiters.number.fetch_add(1, Ordering::AcqRel);
        Waiting(waiters)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.number.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A queue of `places` messages, at least one.
pub(crate) fn queue(places: usize) -> (ShardQueue, Inbox) {
    let (sender, receiver) = bounded(places.max(1));
    let waiters = Arc::<Waiters>::default();
    let queue = ShardQueue {
        messages: sender,
        waiters: Arc::clone(&waiters),
    };
    let inbox = Inbox {
        messages: receiver,
        waiters: WakeAtEnd(waiters),
    };
    (queue, inbox)
}

impl ShardQueue {
    /// Hands a message over without waiting; it comes back if the queue is full or somebody waits
    /// for a place.
    #[expect(
        clippy::result_large_err,
        reason = "the message comes back as it is; no allocation for a full queue"
    )]
    pub fn try_send(&self, message: ShardMessage) -> Result<(), TrySendError<ShardMessage>> {
        match self.waiters.number.load(Ordering::Acquire) {
            0 => self.messages.try_send(message),
            _ => Err(TrySendError::Full(message)),
        }
    }

    /// Hands a message over and waits for a place.
    pub async fn send(&self, message: ShardMessage) -> Result<(), QueueClosed> {
        let mut message = match self.try_send(message) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(back)) => back,
            Err(TrySendError::Disconnected(_)) => return Err(QueueClosed),
        };
        let _waiting = Waiting::new(&self.waiters);
        loop {
            let half_free = self.waiters.half_free.notified();
            tokio::pin!(half_free);
            half_free.as_mut().enable();
            match self.messages.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return Err(QueueClosed),
            }
            half_free.await;
        }
    }
}

impl Inbox {
    /// The next message; blocks.
    pub fn recv(&self) -> Result<ShardMessage, RecvError> {
        let message = self.messages.recv()?;
        self.taken();
        Ok(message)
    }

    /// The next message, if there is one.
    pub fn try_recv(&self) -> Result<ShardMessage, TryRecvError> {
        let message = self.messages.try_recv()?;
        self.taken();
        Ok(message)
    }

    fn taken(&self) {
        let half = self.messages.capacity().unwrap_or_default() / 2;
        if self.messages.len() <= half {
            self.waiters.0.half_free.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_full(queue: &ShardQueue) -> bool {
        matches!(
            queue.try_send(ShardMessage::Relieve),
            Err(TrySendError::Full(_))
        )
    }

    #[test]
    fn who_waits_gets_a_place_when_half_are_free_though_others_never_stop_trying() {
        let (queue, inbox) = queue(8);
        while !is_full(&queue) {}
        let mut waits = pin!(queue.send(ShardMessage::Relieve));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        for left in (4..8).rev() {
            assert!(is_full(&queue), "nobody overtakes");
            inbox.try_recv().unwrap();
            let woken = waits.as_mut().poll(&mut context).is_ready();
            assert_eq!(woken, left == 4, "{left} left");
        }
        assert!(!is_full(&queue), "and the others have their turn again");
    }

    #[test]
    fn one_who_gives_up_waiting_holds_nobody_back() {
        let (queue, inbox) = queue(1);
        while !is_full(&queue) {}
        {
            let mut waits = pin!(queue.send(ShardMessage::Relieve));
            let mut context = Context::from_waker(Waker::noop());
            assert!(waits.as_mut().poll(&mut context).is_pending());
            inbox.try_recv().unwrap();
            assert!(is_full(&queue));
        }
        assert!(!is_full(&queue));
    }

    #[test]
    fn who_waits_learns_that_the_shard_is_gone() {
        let (queue, inbox) = queue(1);
        while !is_full(&queue) {}
        let mut waits = pin!(queue.send(ShardMessage::Relieve));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(inbox);
        let end = waits.as_mut().poll(&mut context);
        assert!(matches!(end, Poll::Ready(Err(QueueClosed))));
    }
}
