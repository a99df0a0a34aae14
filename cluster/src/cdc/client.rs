//! Handle of the change stream to one store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pitr_format::Class;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::driver::{Command, Driver};
use super::queue::EventQueue;
use super::{CdcEvent, SubId, Subscription};
use crate::net::{AddressError, store_channel};

/// Commands that may wait for the driver, which never waits for anything else for long.
const COMMANDS: usize = 4096;

/// Bounds of one stream.
#[derive(Clone, Debug)]
pub struct CdcOptions {
    /// Bytes of events that may wait for the user; beyond it the newest subscriptions end. A
    /// single event has up to about 16 MiB, so less than 64 MiB is raised to that.
    pub queue_limit: usize,
    /// Bytes of rows of unfinished transactions; beyond it the newest subscriptions end.
    pub prewrite_limit: usize,
    /// How long a new stream may take to its first event.
    pub first_answer: Duration,
}

impl Default for CdcOptions {
    fn default() -> Self {
        CdcOptions {
            queue_limit: 256 << 20,
            prewrite_limit: 512 << 20,
            first_answer: Duration::from_secs(30),
        }
    }
}

/// Failure of a command; failures of the stream come as events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CdcError {
    /// The store's address is not one.
    #[error("store {0}")]
    Address(#[from] AddressError),
    /// Too many commands wait for the stream; try again.
    #[error("the change stream is busy connecting; try again")]
    Busy,
    /// The stream's task is gone: the events were dropped.
    #[error("the change stream was closed")]
    Closed,
}

impl CdcError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            CdcError::Busy => Class::Retry,
            CdcError::Address(_) | CdcError::Closed => Class::Permanent,
        }
    }
}

/// Gauges of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CdcStats {
    /// Bytes of events waiting for the user.
    pub queued_bytes: usize,
    /// Bytes of rows of unfinished transactions.
    pub prewrite_bytes: usize,
    /// Subscriptions alive.
    pub subscriptions: usize,
}

/// Written by the driver, read by [`CdcClient::stats`].
#[derive(Default)]
pub(super) struct Gauges {
    pub prewrite_bytes: AtomicUsize,
    pub subscriptions: AtomicUsize,
}

/// Commands to one stream. Dropping it ends the stream.
pub struct CdcClient {
    commands: mpsc::Sender<Command>,
    queue: Arc<EventQueue>,
    gauges: Arc<Gauges>,
    driver: JoinHandle<()>,
}

/// Events of one stream, for one reader.
pub struct CdcEvents {
    queue: Arc<EventQueue>,
}

impl CdcClient {
    /// Starts the stream's task on the current runtime. It dials at the first `subscribe`.
    /// `address` is the store's client address as PD reports it.
    pub fn start(
        cluster_id: u64,
        address: &str,
        options: CdcOptions,
    ) -> Result<(CdcClient, CdcEvents), CdcError> {
        let channel = store_channel(address)?;
        let queue = Arc::new(EventQueue::new(options.queue_limit.max(64 << 20)));
        let gauges = Arc::new(Gauges::default());
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let driver = Driver::new(
            cluster_id,
            channel,
            options,
            receiver,
            queue.clone(),
            gauges.clone(),
        );
        let client = CdcClient {
            commands,
            queue: queue.clone(),
            gauges,
            driver: tokio::spawn(driver.run()),
        };
        Ok((client, CdcEvents { queue }))
    }

    /// Subscribes a region. The answer comes as events.
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), CdcError> {
        self.send(Command::Subscribe(subscription))
    }

    /// Gives a subscription back. Events of it may still be queued; no `Ended` follows.
    pub fn unsubscribe(&self, sub: SubId) -> Result<(), CdcError> {
        self.send(Command::Unsubscribe(sub))
    }

    /// Gauges for metrics.
    pub fn stats(&self) -> CdcStats {
        CdcStats {
            queued_bytes: self.queue.bytes(),
            prewrite_bytes: self.gauges.prewrite_bytes.load(Ordering::Relaxed),
            subscriptions: self.gauges.subscriptions.load(Ordering::Relaxed),
        }
    }

    fn send(&self, command: Command) -> Result<(), CdcError> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => CdcError::Busy,
                mpsc::error::TrySendError::Closed(_) => CdcError::Closed,
            })
    }
}

impl Drop for CdcClient {
    fn drop(&mut self) {
        self.driver.abort();
        self.queue.close();
    }
}

impl CdcEvents {
    /// The next event; `None` after the client was dropped. Cancel-safe.
    pub async fn next(&mut self) -> Option<CdcEvent> {
        self.queue.pop().await
    }
}
