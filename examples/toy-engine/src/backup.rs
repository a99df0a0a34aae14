//! The backup of a store: what the hook hears goes to the observer; a flush makes it durable, and
//! only then the checkpoint rises.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::backup_meta::{self, LogBackupMeta};
use pitr_format::object_name::{BACKUP_META, START_PROBE};
use pitr_format::start_probe::{self, StartProbe};
use pitr_format::{EncodedRange, KvRecord, RecordBatch, Ts};
use pitr_observer::{
    Env, FlushTable, Flusher, FlusherConfig, Observer, ObserverConfig, ObserverHandle,
    ProgressSink, Publisher, PublisherConfig, RegionMeta, SinkError, SourceEvent,
};
use pitr_storage::SharedStorage;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Result;
use crate::hook::{Heard, Hook};
use crate::txn::Store;

/// The toy is one store with one region.
const STORE: u64 = 1;
const SUB: u64 = 1;
/// Records of the initial scan that are handed over at once.
const SCAN_BATCH: usize = 256;

/// Where the engine keeps the checkpoint of its backup: TiKV keeps it in PD.
#[derive(Default)]
pub struct Checkpoint(Mutex<Ts>);

#[async_trait]
impl ProgressSink for Checkpoint {
    /// With one store, what it made durable is what is durable.
    async fn tell(&self, table: &FlushTable) -> std::result::Result<Option<Ts>, SinkError> {
        let mut held = self.0.lock();
        *held = table.checkpoint.max(*held);
        Ok(Some(*held))
    }

    async fn set_storage_checkpoint(&self, _ts: Ts) -> std::result::Result<(), SinkError> {
        Ok(())
    }
}

/// Writes what an archive says about itself: whose log it is, from when on, and that nothing was
/// in the store before, so that the log alone is a full restore.
pub async fn describe_archive(storage: &SharedStorage, start_ts: Ts) -> Result<()> {
    let meta = LogBackupMeta {
        cluster_id: 1,
        cluster_version: "toy".to_owned(),
        start_ts,
        backup_schema_version: backup_meta::SCHEMA_VERSION,
    };
    let bytes = backup_meta::encode(&meta);
    storage.put_new(BACKUP_META, bytes.into()).await?;
    let probe = StartProbe {
        task: "toy".to_owned(),
        start_ts,
        ranges: vec![(Bytes::new(), Bytes::new())],
        empty: true,
    };
    let bytes = start_probe::encode(&probe)?;
    storage.put_new(START_PROBE, bytes.into()).await?;
    Ok(())
}

/// A running backup.
pub struct Backup {
    store: Store,
    hook: Arc<Hook>,
    observer: ObserverHandle,
    flusher: Flusher,
    publisher: Publisher,
    pump: JoinHandle<Result<()>>,
}

impl Backup {
    /// Begins at `start_ts`: every change above it will be in `storage`.
    pub async fn start(
        store: &Store,
        storage: SharedStorage,
        start_ts: Ts,
        env: Env,
    ) -> Result<Self> {
        let flusher = Flusher::open(storage.clone(), FlusherConfig::new(STORE), &env).await?;
        let config = PublisherConfig {
            task: "toy".to_owned(),
            store_id: STORE,
            ranges: vec![EncodedRange::ALL],
            start_ts,
            end_ts: Ts::MAX,
            global_checkpoint: None,
        };
        let sink = Arc::new(Checkpoint::default());
        let publisher = Publisher::open(config, storage, sink, &env).await?;
        let observer = Observer::start(ObserverConfig::default(), env, [EncodedRange::ALL])?;
        let checkpoint = publisher.frontier().min_over(&EncodedRange::ALL);
        let mut joined = None;
        let join = |replica: &_| {
            let (hook, hears, scan) = Hook::join(replica, checkpoint, 64);
            joined = Some((hears, scan));
            hook
        };
        let hook = store.log().observe(join).await;
        let (hears, scan) = joined.ok_or("the log installed no hook")?;
        let pump = tokio::spawn(pump(observer.clone(), checkpoint, scan, hears));
        Ok(Backup {
            store: store.clone(),
            hook,
            observer,
            flusher,
            publisher,
            pump,
        })
    }

    /// Makes everything up to now durable; the checkpoint that holds then.
    pub async fn flush(&mut self) -> Result<Ts> {
        let store = &self.store;
        let now = store.log().between(|| store.tso()).await;
        self.hook.resolve(now).await;
        // The queue between hook and observer is empty when the observer has seen the resolved ts;
        // a flush that comes earlier only proves less.
        tokio::task::yield_now().await;
        let mut generation = self.observer.seal().await?;
        let proof = self
            .flusher
            .flush(&mut generation, self.store.tso())
            .await?;
        self.publisher.absorb(&proof);
        self.publisher.publish().await?;
        Ok(self.publisher.checkpoint())
    }

    /// Flushes until everything up to `ts` is proven; the checkpoint.
    pub async fn flush_past(&mut self, ts: Ts) -> Result<Ts> {
        loop {
            let checkpoint = self.flush().await?;
            if checkpoint >= ts {
                return Ok(checkpoint);
            }
            if self.pump.is_finished() {
                return Err("the observer stopped taking events".into());
            }
        }
    }
}

/// Hands the scan over, then what the hook heard since; [`ObserverHandle::send`] waits for room.
async fn pump(
    observer: ObserverHandle,
    checkpoint_ts: Ts,
    scan: Vec<KvRecord>,
    mut hears: mpsc::Receiver<Heard>,
) -> Result<()> {
    let region = RegionMeta {
        id: 1,
        conf_ver: 1,
        version: 1,
        range: EncodedRange::ALL,
    };
    let started = SourceEvent::Started {
        sub: SUB,
        region,
        checkpoint_ts,
    };
    observer.send(started).await?;
    for batch in scan.chunks(SCAN_BATCH) {
        let records = RecordBatch::of(batch)?;
        observer
            .send(SourceEvent::Batch { sub: SUB, records })
            .await?;
    }
    while let Some(heard) = hears.recv().await {
        let event = match heard {
            Heard::Rows(rows) => SourceEvent::Batch {
                sub: SUB,
                records: RecordBatch::of(&rows)?,
            },
            Heard::Resolved(ts) => SourceEvent::Resolved { sub: SUB, ts },
        };
        observer.send(event).await?;
    }
    Ok(())
}
