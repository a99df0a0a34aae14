//! One watch stream.
//!
//! A watch ends for many reasons (member gone, no leader, compaction); it is never resumed here:
//! the owner lists again, compares, and watches from the revision of the list. That cannot skip
//! an event, whatever was lost in between.

use bytes::Bytes;
use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::watch_client::WatchClient;
use pitr_proto::etcdserverpb::watch_request::RequestUnion;
use pitr_proto::mvccpb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::client::{prefix_end, with_leader};
use super::error::{EtcdError, judge};

/// Changes of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchBatch {
    /// In order of revision; never empty.
    pub events: Vec<mvccpb::Event>,
    /// Revision of the key space when they were sent.
    pub revision: i64,
}

/// A running watch; dropping it ends the watch.
pub struct Watcher {
    prefix: Bytes,
    answers: tonic::Streaming<pb::WatchResponse>,
    /// Kept open: a closed request stream ends the watch.
    _requests: mpsc::Sender<pb::WatchRequest>,
}

impl Watcher {
    pub(super) async fn open(
        channel: Channel,
        prefix: &[u8],
        from_revision: i64,
    ) -> Result<Watcher, EtcdError> {
        let prefix = Bytes::copy_from_slice(prefix);
        let lost = |reason: String| EtcdError::WatchLost {
            prefix: String::from_utf8_lossy(&prefix).into_owned(),
            reason,
        };
        let (requests, stream) = mpsc::channel(1);
        let create = pb::WatchCreateRequest {
            key: prefix.clone(),
            range_end: prefix_end(&prefix),
            start_revision: from_revision,
            ..Default::default()
        };
        let create = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // Into the stream before the call: the server answers nothing until it is there.
        requests
            .send(create)
            .await
            .map_err(|_| lost("request stream is closed".to_owned()))?;
        let answers = WatchClient::new(channel)
            .watch(with_leader(ReceiverStream::new(stream)))
            .await;
        let answers = match answers {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Err(lost(judge("Watch", &status)?)),
        };
        Ok(Watcher {
            prefix,
            answers,
            _requests: requests,
        })
    }

    /// The next changes. An error ends the watch: list again. Cancel-safe.
    pub async fn next(&mut self) -> Result<WatchBatch, EtcdError> {
        loop {
            let answer = match self.answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.lost("the server ended the stream".to_owned())),
                Err(status) => return Err(self.lost(judge("Watch", &status)?)),
            };
            if answer.compact_revision > 0 {
                return Err(EtcdError::Compacted {
                    revision: answer.compact_revision,
                });
            }
            if answer.canceled {
                return Err(self.lost(format!("cancelled: {}", answer.cancel_reason)));
            }
            if !answer.events.is_empty() {
                return Ok(WatchBatch {
                    events: answer.events,
                    revision: answer.header.map_or(0, |h| h.revision),
                });
            }
        }
    }

    fn lost(&self, reason: String) -> EtcdError {
        EtcdError::WatchLost {
            prefix: String::from_utf8_lossy(&self.prefix).into_owned(),
            reason,
        }
    }
}
