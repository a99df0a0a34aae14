//! The task that owns the gRPC stream: commands in, messages out to the feed, events into the
//! queue. It waits for the network and for commands only, never for the reader of the events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pitr_proto::cdcpb::change_data_client::ChangeDataClient;
use pitr_proto::cdcpb::{ChangeDataEvent, ChangeDataRequest};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::client::Gauges;
use super::queue::EventQueue;
use super::{CdcEvent, CdcOptions, EndKind, EndReason, Feed, SubId, Subscription};
use crate::backoff::Backoff;
use crate::net::describe;

/// The store sends events far above tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 256 << 20;
/// Requests between us and the transport.
const REQUESTS: usize = 256;

pub(super) enum Command {
    Subscribe(Subscription),
    Unsubscribe(SubId),
}

pub(super) struct Driver {
    channel: Channel,
    options: CdcOptions,
    commands: mpsc::Receiver<Command>,
    queue: Arc<EventQueue>,
    gauges: Arc<Gauges>,
    feed: Feed,
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
        channel: Channel,
        options: CdcOptions,
        commands: mpsc::Receiver<Command>,
        queue: Arc<EventQueue>,
        gauges: Arc<Gauges>,
    ) -> Self {
        Driver {
            channel,
            options,
            commands,
            queue,
            gauges,
            feed: Feed::new(cluster_id),
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
            self.queue.push(CdcEvent::Disconnected { subs, reason });
            sleep(backoff.next_delay()).await;
        }
        self.queue.close();
    }

    async fn stream(&mut self, backoff: &mut Backoff) -> Stop {
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
        let mut answers = match self.open(receiver).await {
            Ok(answers) => answers,
            Err(reason) => return Stop::Broken(reason),
        };
        loop {
            tokio::select! {
                message = answers.message() => match message {
                    Ok(Some(message)) => {
                        backoff.reset();
                        self.deliver(message);
                    }
                    Ok(None) => {
                        let text = "the store ended the stream";
                        return Stop::Broken(EndReason::new(EndKind::Stream, text));
                    }
                    Err(status) => return Stop::Broken(end_of(&status)),
                },
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
                    Err(_) => {
                        let text = "the request half of the stream closed";
                        return Stop::Broken(EndReason::new(EndKind::Stream, text));
                    }
                },
            }
        }
    }

    async fn open(
        &self,
        requests: mpsc::Receiver<ChangeDataRequest>,
    ) -> Result<Streaming<ChangeDataEvent>, EndReason> {
        let mut request = Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert(
            "features",
            MetadataValue::from_static("stream-multiplexing"),
        );
        let mut stub =
            ChangeDataClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        match timeout(self.options.first_answer, stub.event_feed_v2(request)).await {
            Ok(Ok(answers)) => Ok(answers.into_inner()),
            Ok(Err(status)) => Err(end_of(&status)),
            Err(_) => Err(EndReason::new(
                EndKind::Stream,
                format!("no answer within {:?}", self.options.first_answer),
            )),
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe(subscription) => {
                let id = subscription.id;
                if !self.feed.subscribe(subscription) {
                    tracing::error!(sub = id.0, "subscription id is in use, ignored");
                }
            }
            Command::Unsubscribe(sub) => {
                self.feed.unsubscribe(sub);
            }
        }
        self.measure();
    }

    /// Never waits: what does not fit ends subscriptions.
    fn deliver(&mut self, message: ChangeDataEvent) {
        let mut events = Vec::new();
        self.feed.on_message(message, &mut events);
        let mut given_back = BTreeSet::new();
        for event in events {
            let Some(event) = without(event, &given_back) else {
                continue;
            };
            for victim in self.queue.push(event) {
                self.give_back(victim, "the queue of events is full");
                given_back.insert(victim);
            }
        }
        while self.feed.memory() > self.options.prewrite_limit {
            let Some(victim) = self.feed.newest_with_memory() else {
                break;
            };
            self.give_back(victim, "unfinished transactions take too much memory");
        }
        self.measure();
    }

    fn give_back(&mut self, victim: SubId, why: &str) {
        if self.feed.unsubscribe(victim) {
            let reason = EndReason::new(EndKind::Overrun, why);
            self.queue.push(CdcEvent::Ended {
                sub: victim,
                reason,
            });
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
    }
}

/// The event without the subscriptions that gave way earlier in the same message: their ends are
/// queued already, and a row that was dropped must not be followed by a resolved ts.
fn without(mut event: CdcEvent, gone: &BTreeSet<SubId>) -> Option<CdcEvent> {
    match &mut event {
        CdcEvent::Resolved { subs, .. } => {
            subs.retain(|sub| !gone.contains(sub));
            (!subs.is_empty()).then_some(event)
        }
        CdcEvent::Records { sub, .. }
        | CdcEvent::Initialized { sub }
        | CdcEvent::Ended { sub, .. } => (!gone.contains(sub)).then_some(event),
        CdcEvent::Disconnected { .. } => Some(event),
    }
}

fn end_of(status: &Status) -> EndReason {
    let kind = match status.code() {
        // No EventFeedV2 (before 7.3), or a feature that the store does not know.
        Code::Unimplemented => EndKind::Incompatible,
        _ => EndKind::Stream,
    };
    EndReason::new(kind, describe(status))
}
