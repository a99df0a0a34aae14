//! `etcdserverpb.Watch`: many watchers on one stream.
//!
//! Watchers pull: each remembers the revision it needs next and reads the store's history when a
//! new revision is announced. So nothing queues up for a slow client; when the history has moved
//! past it, the watcher is cancelled with the compact revision, and the client lists again.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use pitr_proto::etcdserverpb::{self as pb, watch_request::RequestUnion, watch_server::Watch};
use pitr_proto::mvccpb::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::model::{KeySpan, revision_of};
use super::store::EtcdStore;

/// Events in one answer, about: a revision is never cut.
const PAGE: usize = 1000;
/// Answers that wait for the client.
const QUEUE: usize = 16;
/// Watchers on one stream.
const MAX_WATCHERS: usize = 10_000;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct WatchService {
    store: Arc<EtcdStore>,
}

impl WatchService {
    /// Watches `store`.
    pub fn new(store: Arc<EtcdStore>) -> Self {
        WatchService { store }
    }
}

struct Watcher {
    span: KeySpan,
    next: i64,
    prev_kv: bool,
}

/// The state of one stream.
struct WatchStream {
    store: Arc<EtcdStore>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    out: mpsc::Sender<Result<pb::WatchResponse, Status>>,
}

/// The client is gone.
struct Closed;

impl WatchStream {
    async fn run(mut self, mut requests: Streaming<pb::WatchRequest>) -> Result<(), Closed> {
        let mut revisions = self.store.subscribe();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.handle(request).await?,
                    Some(Err(_)) | None => return Ok(()),
                },
                changed = revisions.changed() => changed.map_err(|_| Closed)?,
            }
            self.deliver().await?;
        }
    }

    async fn handle(&mut self, request: pb::WatchRequest) -> Result<(), Closed> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if self.watchers.remove(&cancel.watch_id).is_none() {
                    return Ok(());
                }
                let mut answer = self.answer(cancel.watch_id, self.store.revision());
                answer.canceled = true;
                self.send(answer).await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                // Everything up to here was delivered, or is before this answer in the stream.
                let revision = self.store.revision();
                self.deliver().await?;
                self.send(self.answer(-1, revision)).await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), Closed> {
        let now = self.store.revision();
        let refuse = |mut answer: pb::WatchResponse, reason: String| {
            answer.watch_id = -1;
            answer.created = true;
            answer.canceled = true;
            answer.cancel_reason = reason;
            answer
        };
        let span = match KeySpan::new(&create.key, &create.range_end) {
            Ok(span) => span,
            Err(error) => {
                let answer = refuse(self.answer(-1, now), error.to_string());
                return self.send(answer).await;
            }
        };
        let taken = create.watch_id != 0 && self.watchers.contains_key(&create.watch_id);
        if taken || self.watchers.len() >= MAX_WATCHERS {
            let reason = match taken {
                true => "mvcc: duplicate watch ID provided on the WatchStream".to_owned(),
                false => format!("etcdserver: more than {MAX_WATCHERS} watchers on one stream"),
            };
            let answer = refuse(self.answer(-1, now), reason);
            return self.send(answer).await;
        }
        let id = match create.watch_id {
            0 => {
                while self.watchers.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id => id,
        };
        let next = match create.start_revision {
            1.. => create.start_revision,
            _ => now + 1,
        };
        self.watchers.insert(
            id,
            Watcher {
                span,
                next,
                prev_kv: create.prev_kv,
            },
        );
        let mut answer = self.answer(id, now);
        answer.created = true;
        self.send(answer).await
    }

    /// Sends every watcher what it lacks.
    async fn deliver(&mut self) -> Result<(), Closed> {
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        for id in ids {
            while let Some(answer) = self.next_page(id) {
                self.send(answer).await?;
            }
        }
        Ok(())
    }

    fn next_page(&mut self, id: i64) -> Option<pb::WatchResponse> {
        let now = self.store.revision();
        let watcher = self.watchers.get_mut(&id)?;
        if watcher.next > now {
            return None;
        }
        match self.store.events_since(&watcher.span, watcher.next, PAGE) {
            Ok(events) => {
                let Some(last) = events.last().map(revision_of) else {
                    watcher.next = now + 1;
                    return None;
                };
                watcher.next = last + 1;
                let prev_kv = watcher.prev_kv;
                let mut answer = self.answer(id, last);
                answer.events = events
                    .into_iter()
                    .map(|event| Event {
                        prev_kv: event.prev_kv.filter(|_| prev_kv),
                        ..event
                    })
                    .collect();
                Some(answer)
            }
            Err(compacted) => {
                self.watchers.remove(&id);
                let mut answer = self.answer(id, now);
                answer.canceled = true;
                answer.compact_revision = compacted;
                answer.cancel_reason =
                    "etcdserver: mvcc: required revision has been compacted".to_owned();
                Some(answer)
            }
        }
    }

    fn answer(&self, watch_id: i64, revision: i64) -> pb::WatchResponse {
        pb::WatchResponse {
            header: self.store.header(revision),
            watch_id,
            ..Default::default()
        }
    }

    async fn send(&self, answer: pb::WatchResponse) -> Result<(), Closed> {
        self.out.send(Ok(answer)).await.map_err(|_| Closed)
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (out, answers) = mpsc::channel(QUEUE);
        let stream = WatchStream {
            store: self.store.clone(),
            watchers: BTreeMap::new(),
            next_id: 0,
            out,
        };
        tokio::spawn(async move {
            // Both ends of `run` mean that the client left.
            let _ = stream.run(request.into_inner()).await;
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
