//! `capture-grpc`: a change stream over a socket → client → row matcher → observer → objects in
//! memory. The sender is a process of its own.
//!
//! The limit adds, to the limits of `capture`, what a bare tonic client needs to receive and decode
//! the very same stream and to drop it. A live stream carries a short value twice (prewrite and
//! commit); the MB are those of the log, in the limit as in the path.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pitr_budget::MemoryBudget;
use pitr_cluster::cdc::{CdcClient, CdcEvent, CdcOptions, SubId, Subscription};
use pitr_format::{EncodedRange, Ts};
use pitr_observer::{ObserverConfig, SourceEvent};
use pitr_proto::cdcpb::change_data_client::ChangeDataClient;
use pitr_proto::cdcpb::change_data_request::{Register, Request as Kind};
use pitr_proto::cdcpb::{ChangeDataRequest, Header};
use pitr_proto::metapb;
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;

use crate::bench::Bench;
use crate::capture::{Capture, END, nowhere, runtime, send, slice_limits};
use crate::clock::timed_async;
use crate::limits::Corpus;
use crate::rows::{REGIONS, Shape, region};
use crate::{Error, Result};

/// Windows of the bare client: nothing ever waits for them.
const WINDOW: u32 = 16 << 20;
/// Far above any message of the sender.
const MAX_MESSAGE: usize = 256 << 20;

/// The sender's process; it ends with its standard input.
struct Sender {
    child: Child,
    address: String,
}

impl Sender {
    fn start(shape: Shape, megabytes: usize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["feed", "--shape", &shape.to_string()])
            .args(["--megabytes", &megabytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut address)?;
        }
        match address.trim() {
            "" => Err("the sender of the change stream did not start".into()),
            address => Ok(Sender {
                address: address.to_owned(),
                child,
            }),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the sender of the change stream: {error}");
        }
    }
}

/// The bench of one shape.
pub fn bench(shape: Shape, megabytes: usize) -> Result<Bench> {
    let corpus = Corpus::new(shape, megabytes)?;
    let mut bench = Bench::new(format!("capture-grpc-{shape}"), corpus.bytes);
    slice_limits(&mut bench, &corpus)?;
    let (runtime, sender) = (runtime()?, Arc::new(Sender::start(shape, megabytes)?));
    let (also, peer) = (Arc::clone(&runtime), Arc::clone(&sender));
    bench.limit("receive-decode", move || {
        also.block_on(receive(&peer.address))
    });
    let (also, peer) = (Arc::clone(&runtime), Arc::clone(&sender));
    let records = corpus.records().count();
    bench.stage("matcher", &["receive-decode"], move || {
        also.block_on(matched(&peer.address, records))
    });
    bench.whole(&[], path(runtime, sender, records)?);
    Ok(bench)
}

/// A bare client: receives, decodes and drops every message.
async fn receive(address: &str) -> Result<Duration> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .tcp_nodelay(true)
        .connect()
        .await?;
    let registers = (1..=REGIONS).map(|region_id| ChangeDataRequest {
        header: Some(Header::default()),
        region_id,
        request_id: 1,
        request: Some(Kind::Register(Register {})),
        ..ChangeDataRequest::default()
    });
    let waiting = futures::stream::pending();
    let requests = futures::StreamExt::chain(futures::stream::iter(registers), waiting);
    let mut request = Request::new(requests);
    let features = MetadataValue::from_static("stream-multiplexing");
    request.metadata_mut().insert("features", features);
    let mut stub = ChangeDataClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let received = timed_async(async {
        let mut answers = stub.event_feed_v2(request).await?.into_inner();
        while let Some(message) = answers.message().await? {
            if message.resolved_ts.is_some() {
                return Ok(());
            }
        }
        Err(Error::from("the stream ended early"))
    });
    let (time, done) = received.await;
    done.map(|()| time)
}

/// Our client, subscribed to all regions.
fn subscribe(address: &str) -> Result<(CdcClient, pitr_cluster::cdc::CdcEvents)> {
    let options = CdcOptions {
        queue_limit: 2 << 30,
        prewrite_limit: 2 << 30,
        ..CdcOptions::new(MemoryBudget::new(8 << 30), None)
    };
    let (client, events) = CdcClient::start(1, address, options);
    let wanted: Arc<[EncodedRange]> = Arc::from([EncodedRange::ALL]);
    for id in 1..=REGIONS {
        let range = region(id).range;
        client.subscribe(Subscription {
            id: SubId(id),
            region: metapb::Region {
                id,
                start_key: range.start,
                end_key: range.end,
                region_epoch: Some(metapb::RegionEpoch::default()),
                ..metapb::Region::default()
            },
            checkpoint_ts: Ts::new(1),
            wanted: Arc::clone(&wanted),
            alone: false,
        })?;
    }
    Ok((client, events))
}

/// Our client alone: the records are dropped.
async fn matched(address: &str, records: usize) -> Result<Duration> {
    let (time, found) = timed_async(async {
        let (client, mut events) = subscribe(address)?;
        let mut found = 0;
        loop {
            match next(&mut events).await? {
                CdcEvent::Records { records, .. } => found += records.len(),
                CdcEvent::Resolved { .. } => break,
                _ => {}
            }
        }
        drop(client);
        Ok::<_, Error>(found)
    })
    .await;
    complete(found?, records)?;
    Ok(time)
}

async fn next(events: &mut pitr_cluster::cdc::CdcEvents) -> Result<CdcEvent> {
    match events.next().await {
        Some(CdcEvent::Ended { reason, .. } | CdcEvent::Disconnected { reason, .. }) => {
            Err(format!("the stream broke: {reason}").into())
        }
        Some(event) => Ok(event),
        None => Err("the client stopped".into()),
    }
}

fn complete(found: usize, records: usize) -> Result<()> {
    match found == records {
        true => Ok(()),
        false => Err(format!("{found} records arrived instead of {records}").into()),
    }
}

fn path(
    runtime: Arc<Runtime>,
    sender: Arc<Sender>,
    records: usize,
) -> Result<impl FnMut() -> Result<Duration>> {
    let limit = ObserverConfig::default().slice_limit;
    let start = Capture::start(nowhere()?, 1..=REGIONS, limit);
    let mut capture = runtime.block_on(start)?;
    Ok(move || {
        runtime.block_on(async {
            let (time, found) = timed_async(async {
                let found = pump(&sender.address, &capture).await?;
                capture.flush().await?;
                Ok::<_, Error>(found)
            })
            .await;
            complete(found?, records)?;
            capture.clear().await?;
            Ok(time)
        })
    })
}

/// From the socket into the observer until everything is resolved.
async fn pump(address: &str, capture: &Capture) -> Result<usize> {
    let (_client, mut events) = subscribe(address)?;
    let mut found = 0;
    loop {
        match next(&mut events).await? {
            CdcEvent::Records { sub, records } => {
                found += records.len();
                let sub = sub.0;
                send(capture.observer(), SourceEvent::Batch { sub, records }).await?;
            }
            CdcEvent::Resolved { subs, ts } => {
                for sub in subs {
                    let sub = sub.0;
                    send(capture.observer(), SourceEvent::Resolved { sub, ts }).await?;
                }
                if ts == END {
                    return Ok(found);
                }
            }
            _ => {}
        }
    }
}
