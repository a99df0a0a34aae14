//! `cdcpb.ChangeData`.
//!
//! As with a real store nothing is answered, not even headers, before the first event: a client
//! has to send its first request before it waits for the call.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use pitr_proto::cdcpb::change_data_request::Request as Command;
use pitr_proto::cdcpb::{self, change_data_server::ChangeData};
use tonic::{Request, Response, Status, Streaming};

use super::host::Host;
use super::hub::Hub;
use super::queue::Queue;
use super::register::{Connection, next_id};
use super::version::{FEATURES_HEADER, Features, parse_features};

/// Bounds of the service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that wait for one client before its subscriptions are ended.
    pub queue_bytes: usize,
    /// Subscriptions without a finished scan before new ones are refused. TiKV: 10000.
    pub unfinished_scans: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            queue_bytes: 64 << 20,
            unfinished_scans: 10_000,
        }
    }
}

/// The service; cheap to clone.
#[derive(Clone)]
pub struct ChangeDataService {
    host: Arc<dyn Host>,
    hub: Arc<Hub>,
    limits: Limits,
}

type Events = BoxStream<'static, Result<cdcpb::ChangeDataEvent, Status>>;

impl ChangeDataService {
    /// Serves the subscriptions of `hub`.
    pub fn new(host: Arc<dyn Host>, hub: Arc<Hub>, limits: Limits) -> Self {
        ChangeDataService { host, hub, limits }
    }

    async fn feed(
        &self,
        requests: Streaming<cdcpb::ChangeDataRequest>,
        multiplexing: bool,
    ) -> Result<Response<Events>, Status> {
        let open = Open {
            hub: self.hub.clone(),
            queue: Arc::new(Queue::new(self.limits.queue_bytes)),
            id: next_id(),
        };
        let reader = Reader {
            service: self.clone(),
            queue: open.queue.clone(),
            id: open.id,
            multiplexing,
        };
        tokio::spawn(reader.run(requests));
        let first = match open.queue.next().await {
            Some(Err(status)) => return Err(status),
            first => first,
        };
        let rest = stream::unfold(open, |open| async move {
            let message = open.queue.next().await?;
            Some((message, open))
        });
        Ok(Response::new(stream::iter(first).chain(rest).boxed()))
    }
}

/// Ends everything of a connection when the call is over, however it ends.
struct Open {
    hub: Arc<Hub>,
    queue: Arc<Queue>,
    id: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.queue.close(Ok(()));
        self.hub.disconnect(self.id);
    }
}

/// Reads a connection's requests.
struct Reader {
    service: ChangeDataService,
    queue: Arc<Queue>,
    id: u64,
    multiplexing: bool,
}

impl Reader {
    async fn run(self, mut requests: Streaming<cdcpb::ChangeDataRequest>) {
        let mut connection: Option<Connection> = None;
        let end = loop {
            // What a request can queue is bounded only if none is read while the queue is full.
            self.queue.room().await;
            let request = match requests.next().await {
                Some(Ok(request)) => request,
                Some(Err(_)) | None => break Ok(()),
            };
            let connection = connection.get_or_insert_with(|| self.open(&request));
            match &request.request {
                None | Some(Command::Register(_)) => connection.register(request),
                Some(Command::Deregister(_)) => connection.deregister(&request),
                Some(Command::NotifyTxnStatus(_)) => {
                    // This request makes a real TiKV abort; here only the caller feels it.
                    break Err(Status::unknown("notify_txn_status: not supported"));
                }
            }
        };
        self.queue.close(end);
        self.service.hub.disconnect(self.id);
    }

    fn open(&self, first: &cdcpb::ChangeDataRequest) -> Connection {
        let version = first.header.as_ref().map_or("", |h| &h.ticdc_version[..]);
        Connection::new(
            self.service.host.clone(),
            self.service.hub.clone(),
            self.id,
            Features::of(version, self.multiplexing),
            self.queue.clone(),
            self.service.limits.unfinished_scans,
        )
    }
}

#[tonic::async_trait]
impl ChangeData for ChangeDataService {
    type EventFeedStream = Events;

    async fn event_feed(
        &self,
        request: Request<Streaming<cdcpb::ChangeDataRequest>>,
    ) -> Result<Response<Events>, Status> {
        self.feed(request.into_inner(), false).await
    }

    type EventFeedV2Stream = Events;

    async fn event_feed_v2(
        &self,
        request: Request<Streaming<cdcpb::ChangeDataRequest>>,
    ) -> Result<Response<Events>, Status> {
        // The last value counts if there are several; none is legal.
        let list = request
            .metadata()
            .get_all(FEATURES_HEADER)
            .iter()
            .next_back();
        let multiplexing = match list {
            None => false,
            Some(list) => {
                let list = list.to_str().unwrap_or("?");
                parse_features(list).map_err(Status::unimplemented)?
            }
        };
        self.feed(request.into_inner(), multiplexing).await
    }
}
