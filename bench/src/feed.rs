//! The sender of a change stream, in a process of its own so that its CPU time is not counted.
//!
//! It serves `ChangeData/EventFeedV2` on a free port, which it prints, until its standard input
//! ends. Once [`REGIONS`] regions are registered on a stream it sends, like a store under load:
//! INITIALIZED for each, then transactions of 64 rows of one region (prewrites, then their commits),
//! several of them in one message, and at the end the resolved ts of all regions.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use pitr_proto::cdcpb::change_data_server::{ChangeData, ChangeDataServer};
use pitr_proto::cdcpb::event::row::OpType;
use pitr_proto::cdcpb::event::{self, Entries, LogType};
use pitr_proto::cdcpb::{
    ChangeDataEvent, ChangeDataRequest, Event, ResolvedTs, event::Event as Content,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use crate::Result;
use crate::capture::{END, runtime};
use crate::rows::{REGIONS, Row, Rows, Shape, rows_per_region};

/// Rows of one transaction in one region.
const TRANSACTION: u64 = 64;
/// Transactions in one message.
const TOGETHER: usize = 16;
/// Windows of a store's server.
const WINDOW: u32 = 16 << 20;

/// Serves the stream until standard input ends.
pub fn serve(shape: Shape, megabytes: usize) -> Result<()> {
    let service = Feed {
        messages: messages(shape, megabytes).into(),
    };
    let runtime = runtime()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .add_service(ChangeDataServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let parent_gone = tokio::task::spawn_blocking(|| {
            let mut rest = Vec::new();
            std::io::stdin().read_to_end(&mut rest)
        });
        tokio::select! {
            served = server => Ok(served?),
            ended = parent_gone => ended?.map(|_| ()).map_err(Into::into),
        }
    })
}

struct Feed {
    messages: Arc<[ChangeDataEvent]>,
}

type Events = BoxStream<'static, std::result::Result<ChangeDataEvent, Status>>;

#[tonic::async_trait]
impl ChangeData for Feed {
    type EventFeedStream = Events;

    async fn event_feed(
        &self,
        _: Request<Streaming<ChangeDataRequest>>,
    ) -> std::result::Result<Response<Events>, Status> {
        Err(Status::unimplemented("EventFeedV2 only"))
    }

    type EventFeedV2Stream = Events;

    async fn event_feed_v2(
        &self,
        request: Request<Streaming<ChangeDataRequest>>,
    ) -> std::result::Result<Response<Events>, Status> {
        let messages = Arc::clone(&self.messages);
        let registered = stream::once(registered(request.into_inner()));
        let events = registered.flat_map(move |requests| match requests {
            // The stream stays open until the client ends it, as a store's does.
            Ok(requests) => all_of(&messages).chain(until_closed(requests)).boxed(),
            Err(status) => stream::once(async { Err(status) }).boxed(),
        });
        Ok(Response::new(events.boxed()))
    }
}

type Requests = Streaming<ChangeDataRequest>;

/// Waits until every region is registered.
async fn registered(mut requests: Requests) -> std::result::Result<Requests, Status> {
    for _ in 0..REGIONS {
        if requests.message().await?.is_none() {
            return Err(Status::invalid_argument("not all regions were registered"));
        }
    }
    Ok(requests)
}

fn all_of(messages: &Arc<[ChangeDataEvent]>) -> Events {
    let messages = Arc::clone(messages);
    let numbers = stream::iter(0..messages.len());
    numbers.map(move |at| Ok(messages[at].clone())).boxed()
}

/// Nothing, for as long as the client keeps the stream open.
fn until_closed(mut requests: Requests) -> Events {
    let closed = async move {
        while let Ok(Some(_)) = requests.message().await {}
        Err(Status::cancelled("the client is gone"))
    };
    stream::once(closed).boxed()
}

fn messages(shape: Shape, megabytes: usize) -> Vec<ChangeDataEvent> {
    let (rows, per_region) = (Rows::new(shape), rows_per_region(shape, megabytes));
    let initialized = |region| entries(region, vec![row_of(LogType::Initialized)]);
    let mut events: Vec<Event> = (1..=REGIONS).map(initialized).collect();
    for first in (0..per_region).step_by(TRANSACTION as usize) {
        for region in 1..=REGIONS {
            let last = per_region.min(first + TRANSACTION);
            let rows: Vec<_> = (first..last).map(|n| rows.row(region, n)).collect();
            events.push(entries(region, rows.iter().map(prewrite).collect()));
            let commits = rows.iter().map(|row| commit(row, shape));
            events.push(entries(region, commits.collect()));
        }
    }
    let mut messages: Vec<_> = events
        .chunks(2 * TOGETHER)
        .map(|events| ChangeDataEvent {
            events: events.to_vec(),
            resolved_ts: None,
        })
        .collect();
    messages.push(ChangeDataEvent {
        events: Vec::new(),
        resolved_ts: Some(ResolvedTs {
            regions: (1..=REGIONS).collect(),
            ts: END.get(),
            request_id: 1,
        }),
    });
    messages
}

fn entries(region_id: u64, entries: Vec<event::Row>) -> Event {
    Event {
        region_id,
        request_id: 1,
        event: Some(Content::Entries(Entries { entries })),
        ..Event::default()
    }
}

fn row_of(kind: LogType) -> event::Row {
    event::Row {
        r#type: kind.into(),
        op_type: OpType::Put.into(),
        ..event::Row::default()
    }
}

fn prewrite(row: &Row) -> event::Row {
    event::Row {
        start_ts: row.start_ts.get(),
        key: row.key.clone().into(),
        value: row.value.clone(),
        ..row_of(LogType::Prewrite)
    }
}

/// A commit repeats a short value, since that stands in the write record.
fn commit(row: &Row, shape: Shape) -> event::Row {
    event::Row {
        start_ts: row.start_ts.get(),
        commit_ts: row.commit_ts.get(),
        key: row.key.clone().into(),
        value: match shape {
            Shape::Short => row.value.clone(),
            Shape::Long => Bytes::new(),
        },
        ..row_of(LogType::Commit)
    }
}
