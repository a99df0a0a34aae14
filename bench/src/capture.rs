//! `capture`: events of a source → shards → slices → seal → payloads of objects; no network.

use std::sync::Arc;
use std::time::Duration;

use pitr_format::{EncodedRange, RecordBatch, Ts};
use pitr_observer::{
    Env, Flusher, FlusherConfig, Observer, ObserverConfig, ObserverHandle, SendError, SourceEvent,
};
use pitr_storage::{SharedStorage, open_url};
use prometheus::Registry;
use tokio::runtime::Runtime;

use crate::bench::Bench;
use crate::clock::timed_async;
use crate::limits::{self, Corpus};
use crate::rows::{REGIONS, Shape, region};
use crate::sink::Sink;
use crate::{Error, Result, stages};

/// Bytes of rows that the observer may hold: more than any bench sends.
const MEMORY: u64 = 4 << 30;
/// A ts behind all rows.
pub const END: Ts = Ts::new(1 << 62);

/// An observer and its flusher over a storage.
pub struct Capture {
    observer: ObserverHandle,
    flusher: Flusher,
    storage: SharedStorage,
}

impl Capture {
    /// Starts an observer of all keys with two shards, and a subscription for each of `regions`.
    pub async fn start(
        storage: SharedStorage,
        regions: impl IntoIterator<Item = u64>,
        slice_limit: u64,
    ) -> Result<Self> {
        let env = Env::with_registry(&Registry::new(), MEMORY)?;
        let config = ObserverConfig {
            slice_limit,
            ..ObserverConfig::default()
        };
        let observer = Observer::start(config, env.clone(), [EncodedRange::ALL])?;
        let config = FlusherConfig::new(1);
        let flusher = Flusher::open(storage.clone(), config, &env).await?;
        for id in regions {
            let started = SourceEvent::Started {
                sub: id,
                region: region(id),
                checkpoint_ts: Ts::new(1),
            };
            send(&observer, started).await?;
        }
        Ok(Capture {
            observer,
            flusher,
            storage,
        })
    }

    /// Where events go.
    pub fn observer(&self) -> &ObserverHandle {
        &self.observer
    }

    /// Seals what was sent and makes it durable.
    pub async fn flush(&mut self) -> Result<()> {
        let mut generation = self.observer.seal().await?;
        if let Some(fault) = generation.faults().first() {
            return Err(format!("a row was not kept: {}", fault.reason).into());
        }
        self.flusher.flush(&mut generation, Ts::new(1)).await?;
        Ok(())
    }

    /// Removes what was flushed, so that the next round writes into an empty storage.
    pub async fn clear(&self) -> Result<()> {
        for object in self.storage.list("v1/").await? {
            self.storage.delete(&object.path).await?;
        }
        Ok(())
    }
}

/// Where the figures' slices go.
pub fn nowhere() -> Result<SharedStorage> {
    Ok(Arc::new(Sink(open_url("memory://")?)))
}

/// Hands an event over, waiting while the queue is full.
pub async fn send(observer: &ObserverHandle, event: SourceEvent) -> Result<()> {
    match observer.try_send(event) {
        Ok(()) => Ok(()),
        Err(SendError::Full(event)) => Ok(observer.send(event).await?),
        Err(closed) => Err(closed.into()),
    }
}

/// The events of a corpus, then the resolved ts of every region.
pub fn events_of(corpus: &Corpus) -> Vec<SourceEvent> {
    let batch = |(sub, records): &(u64, _)| SourceEvent::Batch {
        sub: *sub,
        records: RecordBatch::clone(records),
    };
    let mut events: Vec<_> = corpus.events.iter().map(batch).collect();
    events.extend((1..=REGIONS).map(|sub| SourceEvent::Resolved { sub, ts: END }));
    events
}

/// A runtime like the daemon's.
pub fn runtime() -> Result<Arc<Runtime>> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    Ok(Arc::new(built?))
}

/// The limits of everything between a record and a stored slice.
pub fn slice_limits(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    limits::copy(bench, corpus);
    limits::crc64(bench, corpus);
    limits::sha256(bench, corpus);
    limits::compress(bench, corpus)
}

/// The bench of one shape.
pub fn bench(shape: Shape, megabytes: usize) -> Result<Bench> {
    let corpus = Corpus::new(shape, megabytes)?;
    let mut bench = Bench::new(format!("capture-{shape}"), corpus.bytes);
    slice_limits(&mut bench, &corpus)?;
    stages::build_slices(&mut bench, &corpus)?;
    bench.whole(&[], path(corpus)?);
    Ok(bench)
}

fn path(corpus: Arc<Corpus>) -> Result<impl FnMut() -> Result<Duration>> {
    let runtime = runtime()?;
    let limit = ObserverConfig::default().slice_limit;
    let start = Capture::start(nowhere()?, 1..=REGIONS, limit);
    let mut capture = runtime.block_on(start)?;
    Ok(move || {
        let events = events_of(&corpus);
        runtime.block_on(async {
            let (time, sent) = timed_async(async {
                for event in events {
                    send(&capture.observer, event).await?;
                }
                capture.flush().await
            })
            .await;
            sent?;
            capture.clear().await?;
            Ok::<_, Error>(time)
        })
    })
}
