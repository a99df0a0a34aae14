//! Handle of the change stream to one store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pitr_budget::MemoryBudget;
use pitr_budget::spill::SpillDir;
use pitr_format::Class;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::driver::{Command, Driver};
use super::queue::EventQueue;
use super::{CdcEvent, SubId, Subscription};
use crate::tls::Security;

/// Commands that may wait for the driver, which never waits for anything else for long.
const COMMANDS: usize = 4096;

/// Budget of a stream that is given none.
const DEFAULT_BUDGET: u64 = 1 << 30;

/// Bounds of one stream.
#[derive(Clone, Debug)]
pub struct CdcOptions {
    /// What everything held here is reserved from. Shared with whoever takes the events.
    pub budget: Arc<MemoryBudget>,
    /// Where events and long values go when their share of the memory is full; without it
    /// subscriptions end at once.
    pub spill: Option<Arc<SpillDir>>,
    /// Bytes of events that may wait in memory for the user.
    pub queue_limit: usize,
    /// Bytes of rows of unfinished transactions in memory.
    pub prewrite_limit: usize,
    /// How long the stream is not read while memory and disk are full, before subscriptions are
    /// given back.
    pub patience: Duration,
    /// How long a new stream may take to its first event.
    pub first_answer: Duration,
    /// Certificates, if the store has TLS.
    pub security: Security,
}

impl CdcOptions {
    /// An eighth of the budget for events, a quarter for unfinished transactions: the rest stays
    /// for those who take the events.
    pub fn new(budget: Arc<MemoryBudget>, spill: Option<Arc<SpillDir>>) -> Self {
        let limit = usize::try_from(budget.limit()).unwrap_or(usize::MAX);
        CdcOptions {
            budget,
            spill,
            queue_limit: limit / 8,
            prewrite_limit: limit / 4,
            patience: Duration::from_secs(1),
            first_answer: Duration::from_secs(30),
            security: Security::default(),
        }
    }
}

impl Default for CdcOptions {
    /// A budget of its own of 1 GiB, and no disk.
    fn default() -> Self {
        CdcOptions::new(MemoryBudget::new(DEFAULT_BUDGET), None)
    }
}

/// Where a store listens, asked at each connect: a store may come back elsewhere.
#[derive(Clone)]
pub struct Address(Arc<dyn Fn() -> Asked + Send + Sync>);

type Asked = Pin<Box<dyn Future<Output = String> + Send>>;

impl Address {
    /// Always the same.
    pub fn fixed(address: impl Into<String>) -> Self {
        let address = address.into();
        Address::asked(move || std::future::ready(address.clone()))
    }

    /// What `ask` says at the moment; it should not take longer than a connect may.
    pub fn asked<F, A>(ask: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = String> + Send + 'static,
    {
        Address(Arc::new(move || Box::pin(ask())))
    }

    pub(super) fn ask(&self) -> Asked {
        (self.0)()
    }
}

impl From<&str> for Address {
    fn from(address: &str) -> Self {
        Address::fixed(address)
    }
}

/// Failure of a command; failures of the stream come as events.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CdcError {
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
            CdcError::Closed => Class::Permanent,
        }
    }
}

/// Gauges of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CdcStats {
    /// Bytes of events waiting for the user, in memory.
    pub queued_bytes: usize,
    /// Bytes of events waiting for the user, on disk.
    pub queued_disk_bytes: usize,
    /// Bytes of rows of unfinished transactions, in memory or on disk.
    pub unfinished_bytes: usize,
    /// Memory that they take.
    pub prewrite_bytes: usize,
    /// Subscriptions alive.
    pub subscriptions: usize,
}

/// Written by the driver, read by [`CdcClient::stats`].
#[derive(Default)]
pub(super) struct Gauges {
    pub prewrite_bytes: AtomicUsize,
    pub unfinished_bytes: AtomicUsize,
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
        address: impl Into<Address>,
        options: CdcOptions,
    ) -> (CdcClient, CdcEvents) {
        let (budget, spill) = (options.budget.clone(), options.spill.clone());
        let queue = Arc::new(EventQueue::new(options.queue_limit, budget, spill));
        let gauges = Arc::new(Gauges::default());
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let driver = Driver::new(
            cluster_id,
            address.into(),
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
        (client, CdcEvents { queue })
    }

    /// Subscribes a region. The answer comes as events.
    pub fn subscribe(&self, subscription: Subscription) -> Result<(), CdcError> {
        self.send(Command::Subscribe(Box::new(subscription)))
    }

    /// Gives a subscription back. Events of it may still be queued; no `Ended` follows.
    pub fn unsubscribe(&self, sub: SubId) -> Result<(), CdcError> {
        self.send(Command::Unsubscribe(sub))
    }

    /// Gauges for metrics.
    pub fn stats(&self) -> CdcStats {
        let load = self.queue.load();
        CdcStats {
            queued_bytes: load.memory,
            queued_disk_bytes: load.disk,
            unfinished_bytes: self.gauges.unfinished_bytes.load(Ordering::Relaxed),
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
