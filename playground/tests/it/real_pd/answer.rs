//! Calls and what is kept of their answers: status, error of the header, chosen fields. The
//! cluster's id is replaced by a word.

use std::time::Duration;

use pitr_proto::etcdserverpb::{kv_client::KvClient, watch_client::WatchClient};
use pitr_proto::pdpb::pd_client::PdClient;
use pitr_proto::pdpb::{ErrorType, RequestHeader, ResponseHeader};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// Clients, and the answers so far.
pub struct Asked {
    pub pd: PdClient<Channel>,
    pub kv: KvClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub cluster_id: u64,
    pub answers: Vec<Value>,
}

impl Asked {
    pub async fn connect(url: String, cluster_id: u64) -> Self {
        let endpoint = Endpoint::from_shared(url).unwrap();
        let channel = endpoint.timeout(Duration::from_secs(20)).connect().await;
        let channel = channel.unwrap();
        Asked {
            pd: PdClient::new(channel.clone()),
            kv: KvClient::new(channel.clone()),
            watch: WatchClient::new(channel),
            cluster_id,
            answers: Vec::new(),
        }
    }

    pub fn header(&self) -> Option<RequestHeader> {
        Some(RequestHeader {
            cluster_id: self.cluster_id,
            ..Default::default()
        })
    }

    /// Keeps the answer of a call that has PD's header.
    pub fn pd<T>(
        &mut self,
        call: &str,
        answer: Result<Response<T>, Status>,
        header: impl FnOnce(&T) -> Option<&ResponseHeader>,
        show: impl FnOnce(&T) -> Value,
    ) {
        let value = match &answer {
            Err(status) => refused(status),
            Ok(answer) => {
                let header = header(answer.get_ref());
                assert_eq!(
                    header.map(|h| h.cluster_id),
                    Some(self.cluster_id),
                    "{call}"
                );
                match header.and_then(|h| h.error.as_ref()) {
                    Some(error) if error.r#type() != ErrorType::Ok => {
                        json!({"error": error.r#type().as_str_name(), "message": error.message})
                    }
                    _ => json!({"ok": show(answer.get_ref())}),
                }
            }
        };
        self.keep(call, value);
    }

    /// Keeps the answer of a call without such a header.
    pub fn plain<T>(
        &mut self,
        call: &str,
        answer: Result<T, Status>,
        show: impl FnOnce(&T) -> Value,
    ) {
        let value = match &answer {
            Err(status) => refused(status),
            Ok(answer) => json!({"ok": show(answer)}),
        };
        self.keep(call, value);
    }

    fn keep(&mut self, call: &str, value: Value) {
        let id = self.cluster_id.to_string();
        let text = value.to_string().replace(&id, "CLUSTER");
        let value: Value = serde_json::from_str(&text).unwrap();
        self.answers.push(json!({"call": call, "answer": value}));
    }
}

fn refused(status: &Status) -> Value {
    json!({"status": format!("{:?}", status.code()), "message": status.message()})
}
