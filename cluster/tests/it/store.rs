//! A store whose change stream does what a test says: it is silent about some regions, ends the
//! stream when told so, and remembers who registered. As a TiKV it sends no headers before its
//! first event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_proto::cdcpb::change_data_request::Request as Kind;
use pitr_proto::cdcpb::change_data_server::{ChangeData, ChangeDataServer};
use pitr_proto::cdcpb::event::{Entries, LogType, Row, row::OpType};
use pitr_proto::cdcpb::{self, ChangeDataEvent, ChangeDataRequest, Event, ResolvedTs, event};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{bind, serve};

/// Commit ts of the only row that a scan of any region finds.
pub const COMMIT: u64 = 211;
/// Resolved ts right after a scan.
pub const RESOLVED: u64 = 220;

type Answers = mpsc::Sender<Result<ChangeDataEvent, Status>>;

#[derive(Clone)]
pub struct ScriptedStore {
    /// Every request, in the order of arrival.
    pub requests: Arc<Mutex<Vec<ChangeDataRequest>>>,
    /// Nothing is ever said about these regions.
    pub silent: Arc<Mutex<BTreeSet<u64>>>,
    /// Answers to the next register of a region.
    pub errors: Arc<Mutex<BTreeMap<u64, cdcpb::Error>>>,
    /// Open streams.
    streams: Arc<Mutex<Vec<Answers>>>,
    /// Each change ends all streams.
    kill: watch::Sender<u64>,
}

impl ScriptedStore {
    /// Starts one on a free port; the second value is its address.
    pub async fn start() -> (ScriptedStore, String) {
        let store = ScriptedStore {
            requests: Arc::default(),
            silent: Arc::default(),
            errors: Arc::default(),
            streams: Arc::default(),
            kill: watch::channel(0).0,
        };
        let (listener, url) = bind().await;
        let service = ChangeDataServer::new(store.clone());
        serve(listener, Server::builder().add_service(service));
        (store, url)
    }

    /// Ends all streams, as a store that goes down.
    pub fn end_streams(&self) {
        self.kill.send_modify(|generation| *generation += 1);
    }

    /// Regions that were registered, in their order.
    pub fn registered(&self) -> Vec<u64> {
        let requests = self.requests.lock();
        let registers = requests.iter().filter(|r| !is_deregister(r));
        registers.map(|r| r.region_id).collect()
    }

    /// Waits until so many requests came.
    pub async fn wait_for_requests(&self, count: usize) {
        for _ in 0..500 {
            if self.requests.lock().len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} requests instead of {count}", self.requests.lock().len());
    }

    fn answers(&self, request: &ChangeDataRequest) -> Vec<ChangeDataEvent> {
        let of_region = |content| ChangeDataEvent {
            events: vec![Event {
                region_id: request.region_id,
                request_id: request.request_id,
                event: Some(content),
                ..Default::default()
            }],
            resolved_ts: None,
        };
        if let Some(error) = self.errors.lock().remove(&request.region_id) {
            return vec![of_region(event::Event::Error(error))];
        }
        let row = |kind: LogType, op: OpType| Row {
            start_ts: COMMIT - 1,
            commit_ts: COMMIT,
            r#type: kind as i32,
            op_type: op as i32,
            key: format!("row of {}", request.region_id).into(),
            ..Default::default()
        };
        let entries = vec![
            row(LogType::Committed, OpType::Put),
            row(LogType::Initialized, OpType::Unknown),
        ];
        let resolved = ChangeDataEvent {
            events: Vec::new(),
            resolved_ts: Some(ResolvedTs {
                regions: vec![request.region_id],
                ts: RESOLVED,
                request_id: request.request_id,
            }),
        };
        let rows = of_region(event::Event::Entries(Entries { entries }));
        vec![rows, resolved]
    }

    /// The scan of a silent region, registered once, comes to its end.
    pub async fn finish_scan(&self, region_id: u64) {
        self.wait_for_requests(1).await;
        let request = ChangeDataRequest {
            region_id,
            request_id: 1,
            ..Default::default()
        };
        let streams = self.streams.lock().clone();
        for stream in streams {
            for answer in self.answers(&request) {
                let _ = stream.send(Ok(answer)).await;
            }
        }
    }

    /// Tells a resolved ts of regions on all streams, as registered first.
    pub async fn resolve(&self, regions: &[u64], ts: u64) {
        let streams = self.streams.lock().clone();
        for stream in streams {
            let resolved = ChangeDataEvent {
                events: Vec::new(),
                resolved_ts: Some(ResolvedTs {
                    regions: regions.to_vec(),
                    ts,
                    request_id: 1,
                }),
            };
            let _ = stream.send(Ok(resolved)).await;
        }
    }
}

/// Whether a request gives a subscription back.
pub fn is_deregister(request: &ChangeDataRequest) -> bool {
    matches!(request.request, Some(Kind::Deregister(_)))
}

#[tonic::async_trait]
impl ChangeData for ScriptedStore {
    type EventFeedStream = ReceiverStream<Result<ChangeDataEvent, Status>>;
    type EventFeedV2Stream = ReceiverStream<Result<ChangeDataEvent, Status>>;

    async fn event_feed(
        &self,
        _: Request<Streaming<ChangeDataRequest>>,
    ) -> Result<Response<Self::EventFeedStream>, Status> {
        Err(Status::unimplemented("EventFeedV2 only"))
    }

    async fn event_feed_v2(
        &self,
        request: Request<Streaming<ChangeDataRequest>>,
    ) -> Result<Response<Self::EventFeedV2Stream>, Status> {
        let mut requests = request.into_inner();
        let mut killed = self.kill.subscribe();
        killed.mark_unchanged();
        let (sender, mut answers) = mpsc::channel(64);
        let store = self.clone();
        store.streams.lock().push(sender.clone());
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    _ = killed.changed() => {
                        store.streams.lock().clear();
                        let _ = sender.send(Err(Status::unavailable("the store goes down"))).await;
                        return;
                    }
                };
                let Ok(Some(request)) = request else {
                    return;
                };
                store.requests.lock().push(request.clone());
                if is_deregister(&request) || store.silent.lock().contains(&request.region_id) {
                    continue;
                }
                for answer in store.answers(&request) {
                    if sender.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        // Headers go out with the first event.
        let first = answers.recv().await;
        let (forward, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut next = first;
            while let Some(answer) = next {
                if forward.send(answer).await.is_err() {
                    return;
                }
                next = answers.recv().await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
