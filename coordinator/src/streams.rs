//! The flush events of one store, followed for one task: subscribed, read, and subscribed again
//! after every end, until dropped. A store without the service is remembered as such.
//!
//! Events are bytes from outside: bounds that are no encoded keys are left out with a warning, as
//! the stock advancer does. What is left out costs time, not truth: polling asks for it.

use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::backoff::Backoff;
use pitr_cluster::net::{AddressError, store_channel};
use pitr_cluster::tls::Security;
use pitr_format::{EncodedRange, Ts, key};
use pitr_proto::logbackup::log_backup_client::LogBackupClient;
use pitr_proto::logbackup::{FlushEvent, SubscribeFlushEventRequest};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::REGISTRATION;
use crate::directory::Endpoint;
use crate::status::StoreHealth;

/// How long a store may take to begin a stream.
const OPEN: Duration = Duration::from_secs(8);
/// Longest answer that is taken: 1024 events with keys of some kilobytes.
const MAX_MESSAGE: usize = 64 << 20;

/// What a store says.
#[derive(Debug)]
pub enum Heard {
    /// Ranges and up to where they are durable there.
    Flushed(Vec<(EncodedRange, Ts)>),
    /// Whether it tells of its flushes.
    Health {
        /// The store.
        store_id: u64,
        /// How it is.
        health: StoreHealth,
    },
}

/// Names the task that a request is about.
pub fn for_task<T>(message: T, registered: i64) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from(registered);
    request.metadata_mut().insert(REGISTRATION, value);
    request
}

/// A client of a store's log backup service; dials at the first call.
pub fn client(
    security: &Security,
    address: &str,
) -> Result<LogBackupClient<Channel>, AddressError> {
    let channel = store_channel(security, address)?;
    Ok(LogBackupClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Follows a store until nobody listens.
pub async fn follow(
    security: Security,
    endpoint: Endpoint,
    registered: i64,
    heard: mpsc::Sender<Heard>,
) {
    let store_id = endpoint.store_id;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), store_id);
    loop {
        let ended = read(&security, &endpoint, registered, &heard, &mut backoff).await;
        let health = match ended {
            Ok(()) => return,
            Err(status) if status.code() == Code::Unimplemented => StoreHealth::Unsupported,
            Err(status) => StoreHealth::Failing {
                reason: format!("{:?}: {}", status.code(), status.message()),
            },
        };
        let final_word = health == StoreHealth::Unsupported;
        if heard
            .send(Heard::Health { store_id, health })
            .await
            .is_err()
            || final_word
        {
            return;
        }
        sleep(backoff.next_delay()).await;
    }
}

/// One stream; `Ok` when nobody listens any more.
async fn read(
    security: &Security,
    endpoint: &Endpoint,
    registered: i64,
    heard: &mpsc::Sender<Heard>,
    backoff: &mut Backoff,
) -> Result<(), Status> {
    let mut client =
        client(security, &endpoint.address).map_err(|e| Status::invalid_argument(e.to_string()))?;
    let request = SubscribeFlushEventRequest {
        client_id: format!("tikv-pitr-{registered}"),
    };
    let opening = client.subscribe_flush_event(for_task(request, registered));
    let stream = timeout(OPEN, opening).await;
    let stream = stream.map_err(|_| Status::deadline_exceeded("no answer to the subscription"))?;
    let mut stream = stream?.into_inner();
    let store_id = endpoint.store_id;
    let health = StoreHealth::Subscribed;
    if heard
        .send(Heard::Health { store_id, health })
        .await
        .is_err()
    {
        return Ok(());
    }
    backoff.reset();
    while let Some(message) = stream.message().await? {
        let told = message.events.into_iter();
        let told = told.filter_map(|event| told_by(event, store_id)).collect();
        if heard.send(Heard::Flushed(told)).await.is_err() {
            return Ok(());
        }
    }
    Err(Status::unavailable("the store ended the stream"))
}

/// What an event says, if it says anything.
fn told_by(event: FlushEvent, store_id: u64) -> Option<(EncodedRange, Ts)> {
    let whole = |bound: &Bytes| bound.is_empty() || key::check_prefix(bound) == Ok(bound.len());
    let range = EncodedRange::new(event.start_key, event.end_key);
    if !whole(&range.start) || !whole(&range.end) || range.is_empty() {
        tracing::warn!(
            store_id,
            ?range,
            "a flush event has no usable bounds; it is left out"
        );
        return None;
    }
    (event.checkpoint > 0).then(|| (range, Ts::new(event.checkpoint)))
}

#[cfg(test)]
mod tests {
    use pitr_format::EncodedKey;

    use super::*;

    fn event(start_key: &[u8], end_key: &[u8], checkpoint: u64) -> FlushEvent {
        FlushEvent {
            start_key: Bytes::copy_from_slice(start_key),
            end_key: Bytes::copy_from_slice(end_key),
            checkpoint,
        }
    }

    #[test]
    fn an_event_of_a_stock_store_is_taken_with_its_bounds_as_they_are() {
        let start = b"r\0\0\0\0\0\0\0\xFB";
        let told = told_by(event(start, b"", 470_631_147_464_556_546), 1);
        let range = EncodedRange::new(&start[..], "");
        assert_eq!(told, Some((range, Ts::new(470_631_147_464_556_546))));
    }

    #[test]
    fn bounds_that_are_no_encoded_keys_and_checkpoints_of_nothing_are_left_out() {
        let key = EncodedKey::encode(b"k").into_bytes();
        let later = EncodedKey::encode(b"l").into_bytes();
        assert!(told_by(event(&key, &later, 5), 1).is_some());
        for wrong in [
            event(b"k", &later, 5),
            event(&key, b"l", 5),
            event(&key[..8], b"", 5),
            event(&[&key[..], b"x"].concat(), b"", 5),
            event(&later, &key, 5),
            event(&key, &later, 0),
        ] {
            assert_eq!(told_by(wrong.clone(), 1), None, "{wrong:?}");
        }
    }
}
