//! The stream's driver against a store that, like TiKV, sends nothing, not even headers, before it
//! has the first request.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_cluster::cdc::{CdcClient, CdcEvent, CdcEvents, CdcOptions, EndKind, SubId, Subscription};
use pitr_format::{Class, EncodedRange, Ts};
use pitr_proto::cdcpb::change_data_server::{ChangeData, ChangeDataServer};
use pitr_proto::cdcpb::event::{Entries, LogType, Row, row::OpType};
use pitr_proto::cdcpb::{ChangeDataEvent, ChangeDataRequest, Event, ResolvedTs, event};
use pitr_proto::metapb;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{bind, serve};

#[derive(Clone, Default)]
struct Store {
    requests: Arc<Mutex<Vec<ChangeDataRequest>>>,
    refuse: bool,
    /// Bytes of the values sent after each register.
    value_len: usize,
}

impl Store {
    fn answers(&self, request: &ChangeDataRequest) -> Vec<ChangeDataEvent> {
        let row = |kind: LogType, op: OpType| Row {
            start_ts: 10,
            commit_ts: 11,
            r#type: kind as i32,
            op_type: op as i32,
            key: format!("k{}", request.region_id).into(),
            value: vec![7; self.value_len].into(),
            ..Default::default()
        };
        let rows = vec![
            row(LogType::Committed, OpType::Put),
            row(LogType::Initialized, OpType::Unknown),
        ];
        let entries = Event {
            region_id: request.region_id,
            request_id: request.request_id,
            event: Some(event::Event::Entries(Entries { entries: rows })),
            ..Default::default()
        };
        let resolved = ResolvedTs {
            regions: vec![request.region_id],
            ts: 20,
            request_id: request.request_id,
        };
        vec![
            ChangeDataEvent {
                events: vec![entries],
                resolved_ts: None,
            },
            ChangeDataEvent {
                events: Vec::new(),
                resolved_ts: Some(resolved),
            },
        ]
    }
}

#[tonic::async_trait]
impl ChangeData for Store {
    type EventFeedStream = ReceiverStream<Result<ChangeDataEvent, Status>>;
    type EventFeedV2Stream = ReceiverStream<Result<ChangeDataEvent, Status>>;

    async fn event_feed(
        &self,
        _: Request<Streaming<ChangeDataRequest>>,
    ) -> Result<Response<Self::EventFeedStream>, Status> {
        Err(Status::unimplemented("V1"))
    }

    async fn event_feed_v2(
        &self,
        request: Request<Streaming<ChangeDataRequest>>,
    ) -> Result<Response<Self::EventFeedV2Stream>, Status> {
        assert_eq!(
            request.metadata().get("features").unwrap(),
            "stream-multiplexing"
        );
        if self.refuse {
            return Err(Status::unimplemented("stream-multiplexing"));
        }
        let mut requests = request.into_inner();
        // Headers go out only with the first answer.
        let mut next = requests.message().await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let store = self.clone();
        tokio::spawn(async move {
            while let Some(request) = next {
                store.requests.lock().push(request.clone());
                if request.region_id == 666 {
                    let _ = sender.send(Err(Status::unknown("EOF"))).await;
                    return;
                }
                let silent = request.request.as_ref().is_some_and(is_deregister);
                let answers = (!silent).then(|| store.answers(&request));
                for answer in answers.into_iter().flatten() {
                    if sender.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
                next = requests.message().await.unwrap_or_default();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn connect(store: &Store, options: CdcOptions) -> (CdcClient, CdcEvents) {
    let (listener, url) = bind().await;
    let router = Server::builder()
        .add_service(ChangeDataServer::new(store.clone()).max_encoding_message_size(1 << 30));
    serve(listener, router);
    CdcClient::start(42, &url[..], options)
}

fn subscription(id: u64, region_id: u64) -> Subscription {
    Subscription {
        id: SubId(id),
        region: metapb::Region {
            id: region_id,
            ..Default::default()
        },
        checkpoint_ts: Ts::new(5),
        wanted: [EncodedRange::ALL].into(),
        alone: false,
    }
}

async fn next(events: &mut CdcEvents) -> CdcEvent {
    let event = tokio::time::timeout(Duration::from_secs(10), events.next());
    event.await.unwrap().unwrap()
}

async fn show_next(events: &mut CdcEvents) -> String {
    match next(events).await {
        CdcEvent::Records { sub, records } => format!("{} rows {}", sub.0, records.len()),
        CdcEvent::Initialized { sub } => format!("{} init", sub.0),
        CdcEvent::Resolved { subs, ts } => format!("{} resolved {ts}", subs[0].0),
        CdcEvent::Ended { sub, reason } => format!("{} {:?}", sub.0, reason.kind),
        CdcEvent::Disconnected { subs, reason } => format!("gone {subs:?} {:?}", reason.kind),
    }
}

#[tokio::test]
async fn the_first_register_opens_the_stream_and_events_come_in_order() {
    let store = Store {
        value_len: 5,
        ..Store::default()
    };
    let (client, mut events) = connect(&store, CdcOptions::default()).await;
    client.subscribe(subscription(1, 4)).unwrap();
    for expected in ["1 rows 1", "1 init", "1 resolved 20"] {
        assert_eq!(show_next(&mut events).await, expected);
    }
    client.subscribe(subscription(2, 6)).unwrap();
    assert_eq!(show_next(&mut events).await, "2 rows 1");
    assert_eq!(client.stats().subscriptions, 2);
    let requests = store.requests.lock().clone();
    let header = requests[0].header.clone().unwrap();
    assert_eq!(
        (header.cluster_id, &header.ticdc_version[..]),
        (42, "8.5.0")
    );
    assert!(
        requests
            .iter()
            .all(|r| r.checkpoint_ts == 5 && !r.filter_loop && r.kv_api == 0)
    );
    drop(client);
    while events.next().await.is_some() {}
}

#[tokio::test]
async fn a_broken_stream_names_all_it_carried_and_the_next_register_opens_a_new_one() {
    let store = Store::default();
    let (client, mut events) = connect(&store, CdcOptions::default()).await;
    client.subscribe(subscription(1, 4)).unwrap();
    for _ in 0..3 {
        next(&mut events).await;
    }
    client.subscribe(subscription(2, 666)).unwrap();
    assert_eq!(
        show_next(&mut events).await,
        "gone [SubId(1), SubId(2)] Stream"
    );
    client.subscribe(subscription(3, 4)).unwrap();
    assert_eq!(show_next(&mut events).await, "3 rows 1");
}

#[tokio::test]
async fn a_store_without_the_service_is_a_permanent_end() {
    let store = Store {
        refuse: true,
        ..Store::default()
    };
    let (client, mut events) = connect(&store, CdcOptions::default()).await;
    client.subscribe(subscription(1, 4)).unwrap();
    let CdcEvent::Disconnected { reason, .. } = next(&mut events).await else {
        panic!("the stream was refused")
    };
    assert_eq!(
        (reason.kind, reason.class()),
        (EndKind::Incompatible, Class::Permanent)
    );
}

#[tokio::test]
async fn nobody_listens_and_the_store_is_not_held_up() {
    let store = Store {
        value_len: 40 << 20,
        ..Store::default()
    };
    let options = CdcOptions {
        queue_limit: 64 << 20,
        patience: Duration::from_millis(200),
        ..CdcOptions::default()
    };
    let (client, mut events) = connect(&store, options).await;
    // Nothing is taken until the store has sent all it has: the second and the third do not fit.
    for sub in 1..=3 {
        client.subscribe(subscription(sub, sub + 3)).unwrap();
    }
    let deregistered = || {
        let requests = store.requests.lock();
        requests
            .iter()
            .filter(|r| r.request.as_ref().is_some_and(is_deregister))
            .count()
    };
    for _ in 0..500 {
        if deregistered() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(deregistered(), 2);
    let mut shown = Vec::new();
    for _ in 0..5 {
        shown.push(show_next(&mut events).await);
    }
    let first = |text: &&String| text.starts_with('1');
    let first: Vec<_> = shown.iter().filter(first).cloned().collect();
    assert_eq!(
        first,
        ["1 rows 2", "1 init", "1 resolved 20"],
        "the oldest stays whole"
    );
    for sub in 2..=3 {
        assert!(shown.contains(&format!("{sub} Overrun")), "{shown:?}");
    }
}

fn is_deregister(request: &pitr_proto::cdcpb::change_data_request::Request) -> bool {
    use pitr_proto::cdcpb::change_data_request::Request;
    matches!(request, Request::Deregister(_))
}
