//! One `ChangeData` stream as a client sees it, with the checks every stream must pass: batches
//! or rows but not both in a message, resolved timestamps that only rise.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use pitr_proto::cdcpb::change_data_client::ChangeDataClient;
use pitr_proto::cdcpb::event::{Event as Body, LogType, Row};
use pitr_proto::cdcpb::{ChangeDataEvent, ChangeDataRequest, Error, Event, Header};
use pitr_proto::metapb::Region;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// Nothing a test waits for takes longer.
const LIMIT: Duration = Duration::from_secs(10);

/// How the stream is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    V1,
    V2,
    /// V2 with `features` set to the text.
    Features(&'static str),
}

/// V2 as our client opens it.
pub const MULTIPLEXED: Protocol = Protocol::Features("stream-multiplexing");

/// What one message said, piece by piece.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Rows {
        request_id: u64,
        region_id: u64,
        rows: Vec<Row>,
    },
    Error {
        request_id: u64,
        region_id: u64,
        error: Error,
    },
    /// A batch.
    Resolved {
        request_id: u64,
        regions: Vec<u64>,
        ts: u64,
    },
    /// The old form, one region.
    OldResolved {
        request_id: u64,
        region_id: u64,
        ts: u64,
    },
}

/// An open stream.
pub struct Feed {
    requests: Option<mpsc::UnboundedSender<ChangeDataRequest>>,
    events: Streaming<ChangeDataEvent>,
    queue: std::collections::VecDeque<Item>,
    highest: HashMap<(u64, u64), u64>,
}

impl Feed {
    /// Opens a stream whose first messages are `first` (the server sends nothing before them).
    pub async fn open(
        channel: &Channel,
        protocol: Protocol,
        first: Vec<ChangeDataRequest>,
    ) -> Result<Feed, Status> {
        let mut client =
            ChangeDataClient::new(channel.clone()).max_decoding_message_size(256 << 20);
        let (requests, receiver) = mpsc::unbounded_channel();
        for request in first {
            requests.send(request).expect("receiver is here");
        }
        let mut call = Request::new(UnboundedReceiverStream::new(receiver));
        if let Protocol::Features(features) = protocol {
            call.metadata_mut()
                .insert("features", MetadataValue::from_static(features));
        }
        let answer = match protocol {
            Protocol::V1 => client.event_feed(call).await?,
            _ => client.event_feed_v2(call).await?,
        };
        Ok(Feed {
            requests: Some(requests),
            events: answer.into_inner(),
            queue: std::collections::VecDeque::new(),
            highest: HashMap::new(),
        })
    }

    pub fn send(&self, request: ChangeDataRequest) {
        self.requests
            .as_ref()
            .expect("open")
            .send(request)
            .expect("server reads");
    }

    /// Ends our half.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next piece, or nothing if none comes in that time; `Err` when the stream ended.
    pub async fn next_within(&mut self, limit: Duration) -> Option<Result<Item, String>> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(item) = self.queue.pop_front() {
                return Some(Ok(item));
            }
            match tokio::time::timeout_at(deadline, self.events.next()).await {
                Err(_) => return None,
                Ok(None) => return Some(Err("end of stream".to_owned())),
                Ok(Some(Err(status))) => return Some(Err(status.to_string())),
                Ok(Some(Ok(event))) => self.take(event),
            }
        }
    }

    /// The next piece; it must come.
    pub async fn next(&mut self) -> Item {
        self.next_within(LIMIT)
            .await
            .expect("an event within 10 s")
            .expect("stream is open")
    }

    /// The next error; rows and resolved timestamps before it are passed over.
    pub async fn next_error(&mut self) -> (u64, u64, Error) {
        loop {
            if let Item::Error {
                request_id,
                region_id,
                error,
            } = self.next().await
            {
                return (request_id, region_id, error);
            }
        }
    }

    /// Passes over everything until the scan of a request has ended.
    pub async fn wait_initialized(&mut self, wanted: u64) {
        loop {
            match self.next().await {
                Item::Rows {
                    request_id, rows, ..
                } if request_id == wanted
                    && rows.iter().any(|r| r.r#type() == LogType::Initialized) =>
                {
                    return;
                }
                Item::Error { error, .. } => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    /// Passes over everything until a resolved timestamp of the request.
    pub async fn wait_resolved(&mut self, wanted: u64) -> (Vec<u64>, u64) {
        loop {
            match self.next().await {
                Item::Resolved {
                    request_id,
                    regions,
                    ts,
                } if request_id == wanted => {
                    return (regions, ts);
                }
                Item::Error { error, .. } => panic!("{error:?}"),
                _ => {}
            }
        }
    }

    fn take(&mut self, message: ChangeDataEvent) {
        assert!(
            message.events.is_empty() || message.resolved_ts.is_none(),
            "rows and a batch of resolved timestamps in one message: {message:?}"
        );
        if let Some(resolved) = message.resolved_ts {
            for region in &resolved.regions {
                self.rises(resolved.request_id, *region, resolved.ts);
            }
            self.queue.push_back(Item::Resolved {
                request_id: resolved.request_id,
                regions: resolved.regions,
                ts: resolved.ts,
            });
        }
        for event in message.events {
            let item = self.item(event);
            self.queue.push_back(item);
        }
    }

    fn item(&mut self, event: Event) -> Item {
        let (request_id, region_id) = (event.request_id, event.region_id);
        match event.event.expect("an event says something") {
            Body::Entries(entries) => Item::Rows {
                request_id,
                region_id,
                rows: entries.entries,
            },
            Body::Error(error) => {
                // What follows is a new subscription, which may begin lower.
                self.highest.remove(&(request_id, region_id));
                Item::Error {
                    request_id,
                    region_id,
                    error,
                }
            }
            Body::ResolvedTs(ts) => {
                self.rises(request_id, region_id, ts);
                Item::OldResolved {
                    request_id,
                    region_id,
                    ts,
                }
            }
            other => panic!("TiKV sends no such event: {other:?}"),
        }
    }

    fn rises(&mut self, request_id: u64, region_id: u64, ts: u64) {
        let highest = self.highest.entry((request_id, region_id)).or_default();
        assert!(
            *highest <= ts,
            "resolved ts of region {region_id} fell from {highest} to {ts}"
        );
        *highest = ts;
    }
}

/// A registration of the whole region as our client would send it.
pub fn register(cluster_id: u64, region: &Region, request_id: u64, from: u64) -> ChangeDataRequest {
    ChangeDataRequest {
        header: Some(Header {
            cluster_id,
            ticdc_version: "8.5.0".to_owned(),
        }),
        region_id: region.id,
        region_epoch: region.region_epoch,
        checkpoint_ts: from,
        request_id,
        ..ChangeDataRequest::default()
    }
}
