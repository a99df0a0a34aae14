//! The task that owns the gRPC stream: commands in, messages out to the feed, events into the
//! queue. It waits for the network and for commands only, never for the reader of the events.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use pitr_proto::cdcpb::ChangeDataRequest;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::client::{Address, Gauges};
use super::queue::{EventQueue, charge};
use super::wire::RawCodec;
use super::{CdcEvent, CdcOptions, EndKind, EndReason, Feed, SubId, Subscription};
use crate::backoff::Backoff;
use crate::net::{describe, store_channel};

const METHOD: &str = "/cdcpb.ChangeData/EventFeedV2";
/// How often it is looked for room in the budget.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long it may take to learn the store's address.
const ASK: Duration = Duration::from_secs(5);
/// The store sends events far above tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 256 << 20;
/// Requests between us and the transport.
const REQUESTS: usize = 256;

pub(super) enum Command {
    Subscribe(Box<Subscription>),
    Unsubscribe(SubId),
}

pub(super) struct Driver {
    address: Address,
    options: CdcOptions,
    commands: mpsc::Receiver<Command>,
    queue: Arc<EventQueue>,
    gauges: Arc<Gauges>,
    feed: Feed,
    /// What a step of the feed gave.
    events: Vec<CdcEvent>,
    /// Who was given back since that step.
    gone: Vec<SubId>,
}

/// Why the stream's loop stopped.
enum Stop {
    /// The client was dropped.
    Closed,
    Broken(EndReason),
}

impl Driver {
    pub fn new(
        cluster_id: u64,
        address: Address,
        options: CdcOptions,
        commands: mpsc::Receiver<Command>,
        queue: Arc<EventQueue>,
        gauges: Arc<Gauges>,
    ) -> Self {
        Driver {
            feed: Feed::new(cluster_id, &options),
            events: Vec::new(),
            gone: Vec::new(),
            address,
            options,
            commands,
            queue,
            gauges,
        }
    }

    /// Opens a stream whenever something is to be subscribed, and again after it broke.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(3), 11);
        while let Some(command) = self.commands.recv().await {
            self.obey(command);
            if self.feed.is_empty() {
                self.feed.disconnect();
                continue;
            }
            let reason = match self.stream(&mut backoff).await {
                Stop::Closed => break,
                Stop::Broken(reason) => reason,
            };
            let subs = self.feed.disconnect();
            self.measure();
            tracing::info!(%reason, subscriptions = subs.len(), "change stream ended");
            self.tell(CdcEvent::Disconnected { subs, reason });
            sleep(backoff.next_delay()).await;
        }
        self.queue.close();
    }

    /// One stream from its call to its end. Commands are obeyed and registers sent while the call
    /// waits for its first answer, so that a region whose scan starts late holds up no other.
    async fn stream(&mut self, backoff: &mut Backoff) -> Stop {
        let channel = match self.connect().await {
            Ok(channel) => channel,
            Err(reason) => return Stop::Broken(reason),
        };
        let (requests, receiver) = mpsc::channel(REQUESTS);
        // Into the stream before the call: the store answers nothing, not even headers, until
        // the first request is there.
        while requests.capacity() > 0 {
            let Some(request) = self.feed.next_request() else {
                break;
            };
            if requests.try_send(request).is_err() {
                break;
            }
        }
        let call = open(channel, receiver);
        tokio::pin!(call);
        let mut answers: Option<Streaming<Bytes>> = None;
        let give_up = Instant::now() + self.options.first_answer;
        loop {
            tokio::select! {
                opened = &mut call, if answers.is_none() => match opened {
                    Ok(opened) => answers = Some(opened),
                    Err(status) => return Stop::Broken(end_of(&status)),
                },
                message = next_message(&mut answers), if answers.is_some() => match message {
                    Ok(Some(message)) => {
                        backoff.reset();
                        if let Err(reason) = self.deliver(&message).await {
                            return Stop::Broken(reason);
                        }
                    }
                    Ok(None) => return broken("the store ended the stream"),
                    Err(status) => return Stop::Broken(end_of(&status)),
                },
                () = sleep_until(give_up), if answers.is_none() => {
                    return broken(&format!("no answer within {:?}", self.options.first_answer));
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return Stop::Closed,
                },
                permit = requests.reserve(), if self.feed.has_request() => match permit {
                    Ok(permit) => {
                        if let Some(request) = self.feed.next_request() {
                            permit.send(request);
                        }
                    }
                    // The call's own end says why.
                    Err(_) if answers.is_none() => sleep(Duration::from_millis(10)).await,
                    Err(_) => return broken("the request half of the stream closed"),
                },
            }
        }
    }

    /// A channel to where the store is now; it dials with the first call.
    async fn connect(&self) -> Result<Channel, EndReason> {
        let unknown = |text: String| EndReason::new(EndKind::Stream, text);
        let address = timeout(ASK, self.address.ask()).await;
        let address = address.map_err(|_| unknown("the store's address is not known".into()))?;
        let security = &self.options.security;
        store_channel(security, &address).map_err(|error| unknown(format!("store {error}")))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe(subscription) => {
                let id = subscription.id;
                if !self.feed.subscribe(*subscription) {
                    tracing::error!(sub = id.0, "subscription id is in use, ignored");
                }
            }
            Command::Unsubscribe(sub) => {
                self.feed.unsubscribe(sub);
            }
        }
        self.measure();
    }

    /// Takes a message, tells all that it means.
    async fn deliver(&mut self, message: &Bytes) -> Result<(), EndReason> {
        let taken = self.feed.take(message);
        taken.map_err(|error| EndReason::new(EndKind::Stream, error.to_string()))?;
        loop {
            let mut events = std::mem::take(&mut self.events);
            let more = self.feed.step(&mut events);
            self.gone.clear();
            for event in events.drain(..) {
                self.push(event).await;
            }
            self.events = events;
            if !more {
                break;
            }
        }
        self.measure();
        Ok(())
    }

    /// Queues an event. If there is no room for records, it waits a little for the user, and then
    /// gives subscriptions back until there is.
    async fn push(&mut self, event: CdcEvent) {
        let Some(mut event) = self.without_gone(event) else {
            return;
        };
        let mut until = Instant::now() + self.options.patience;
        let mut taken = self.queue.taken();
        loop {
            event = match self.queue.try_push(event) {
                Ok(()) => return,
                Err(event) => event,
            };
            if self.drained(until).await {
                continue;
            }
            let CdcEvent::Records { sub, .. } = &event else {
                return;
            };
            let (sub, moves) = (*sub, self.queue.taken() != taken);
            let victim = self.queue.victim(sub, charge(&event));
            // The last one that holds anything would come back with the same: as long as the user
            // takes something it goes on at the user's pace.
            if !(moves && victim == sub && self.queue.holds_alone(sub)) {
                self.give_back(victim);
                if victim == sub {
                    return;
                }
            }
            until = Instant::now() + self.options.patience;
            taken = self.queue.taken();
        }
    }

    /// Waits until something may have become free; false at `until`.
    async fn drained(&self, until: Instant) -> bool {
        let now = Instant::now();
        tokio::select! {
            () = self.queue.drained().notified() => {}
            // Room in the budget is not always told.
            () = sleep_until(until.min(now + LOOK_AGAIN)) => {}
        }
        now < until
    }

    fn give_back(&mut self, victim: SubId) {
        self.queue.purge(victim);
        if self.feed.unsubscribe(victim) {
            self.gone.push(victim);
            let text = "memory and disk for changes that wait are full";
            let reason = EndReason::new(EndKind::Overrun, text);
            let sub = victim;
            self.tell(CdcEvent::Ended { sub, reason });
        }
    }

    /// Queues what always fits.
    fn tell(&self, event: CdcEvent) {
        // Only records come back.
        let _ = self.queue.try_push(event);
    }

    /// The event without those that were given back after it was made: their ends are queued
    /// already, and rows that were dropped must not be followed by a resolved ts.
    fn without_gone(&self, mut event: CdcEvent) -> Option<CdcEvent> {
        match &mut event {
            CdcEvent::Resolved { subs, .. } => {
                subs.retain(|sub| !self.gone.contains(sub));
                (!subs.is_empty()).then_some(event)
            }
            CdcEvent::Records { sub, .. }
            | CdcEvent::Initialized { sub }
            | CdcEvent::Ended { sub, .. } => (!self.gone.contains(sub)).then_some(event),
            CdcEvent::Disconnected { .. } => Some(event),
        }
    }

    fn measure(&self) {
        let gauges = &self.gauges;
        gauges
            .subscriptions
            .store(self.feed.len(), Ordering::Relaxed);
        gauges
            .prewrite_bytes
            .store(self.feed.memory(), Ordering::Relaxed);
        gauges
            .unfinished_bytes
            .store(self.feed.held(), Ordering::Relaxed);
    }
}

async fn open(
    channel: Channel,
    requests: mpsc::Receiver<ChangeDataRequest>,
) -> Result<Streaming<Bytes>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error_chain(&error)))?;
    let mut request = Request::new(ReceiverStream::new(requests));
    request.metadata_mut().insert(
        "features",
        MetadataValue::from_static("stream-multiplexing"),
    );
    let path = PathAndQuery::from_static(METHOD);
    let answer = grpc.streaming(request, path, RawCodec).await?;
    Ok(answer.into_inner())
}

/// The next message of a stream that is open.
async fn next_message(answers: &mut Option<Streaming<Bytes>>) -> Result<Option<Bytes>, Status> {
    match answers {
        Some(answers) => answers.message().await,
        None => std::future::pending().await,
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn broken(text: &str) -> Stop {
    Stop::Broken(EndReason::new(EndKind::Stream, text))
}

fn end_of(status: &Status) -> EndReason {
    let kind = match status.code() {
        // No EventFeedV2 (before 7.3), or a feature that the store does not know.
        Code::Unimplemented => EndKind::Incompatible,
        _ => EndKind::Stream,
    };
    EndReason::new(kind, describe(status))
}
