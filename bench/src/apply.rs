//! `restore-apply`: the RPC `Apply` of the import service, its handler called directly (no socket),
//! from an archive in a local directory into RocksDB's memtable.
//!
//! The host writes without RocksDB's own log, as a store does whose raft log is the log, so that the
//! path is compared with memtable writes without a log. One request for each region carries its
//! slices, as BR sends them, with a rule that renames the table. The limit counts what the call
//! cannot do without: copy, unzip, SHA-256, sort and sorted memtable writes; the line
//! `…/memtable-only` compares with the last of them alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::key::append_encoded;
use pitr_proto::errorpb;
use pitr_proto::import_sstpb::import_sst_server::ImportSst;
use pitr_proto::import_sstpb::{ApplyRequest, KvMeta, RewriteRule};
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::{Peer, Region, RegionEpoch};
use pitr_restore_worker::Env;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError, EngineOp, Pair};
use pitr_restore_worker::plan::Slice;
use pitr_restore_worker::service::{ImportHost, ImportLimits, ImportService, RegionError};
use pitr_restore_worker::sst::Tables;
use pitr_storage::{backend_of_url, open_url};
use rocksdb::{WriteBatch, WriteOptions};
use tempfile::TempDir;
use tonic::Request;

use crate::bench::Bench;
use crate::capture::{END, events_of, runtime};
use crate::clock::timed_async;
use crate::limits::{self, Corpus};
use crate::rows::{REGIONS, Shape};
use crate::{Error, Result, archive};

/// RocksDB without its own log.
struct NoLog(RocksEngine);

impl Engine for NoLog {
    fn write(&self, ops: &[EngineOp]) -> std::result::Result<(), EngineError> {
        let mut batch = WriteBatch::default();
        for op in ops {
            match op {
                EngineOp::Put { cf, key, value } => batch.put_cf(self.0.cf(*cf)?, key, value),
                EngineOp::Delete { cf, key } => batch.delete_cf(self.0.cf(*cf)?, key),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        let written = self.0.db().write_opt(batch, &options);
        written.map_err(|e| self.0.error("write", e))
    }

    fn ingest(&self, cf: EngineCf, files: &[PathBuf]) -> std::result::Result<(), EngineError> {
        self.0.ingest(cf, files)
    }

    fn get(&self, cf: EngineCf, key: &[u8]) -> std::result::Result<Option<Vec<u8>>, EngineError> {
        self.0.get(cf, key)
    }

    fn scan<'a>(
        &'a self,
        cf: EngineCf,
        start: &[u8],
        end: &[u8],
    ) -> Box<dyn Iterator<Item = std::result::Result<Pair, EngineError>> + 'a> {
        self.0.scan(cf, start, end)
    }
}

/// A store with one region of all keys.
struct Host {
    engine: Arc<NoLog>,
    writes: Mutex<()>,
}

impl ImportHost for Host {
    type Engine = NoLog;

    fn store_id(&self) -> u64 {
        1
    }

    fn engine(&self) -> Arc<NoLog> {
        Arc::clone(&self.engine)
    }

    fn region(&self, _: &Context) -> std::result::Result<Region, RegionError> {
        Ok(Region::default())
    }

    fn region_epoch(&self, _: u64) -> Option<RegionEpoch> {
        Some(RegionEpoch::default())
    }

    fn tables(&self) -> Tables {
        Tables::rocks()
    }

    fn change<R>(
        &self,
        context: &Context,
        change: impl FnOnce(&Region) -> R,
    ) -> std::result::Result<R, Box<errorpb::Error>> {
        let _alone = self.writes.lock();
        Ok(change(&self.region(context)?))
    }
}

/// The bench of one shape.
pub fn bench(shape: Shape, megabytes: usize) -> Result<Bench> {
    let corpus = Corpus::new(shape, megabytes)?;
    let mut bench = Bench::new(format!("restore-apply-{shape}"), corpus.bytes);
    limits::copy(&mut bench, &corpus);
    limits::decompress(&mut bench, &corpus)?;
    limits::sha256(&mut bench, &corpus);
    limits::sort(&mut bench, &corpus);
    limits::memtable(&mut bench, &corpus);
    let runtime = runtime()?;
    let source = tempfile::tempdir()?;
    let url = format!("local://{}", source.path().display());
    let (storage, events) = (open_url(&url)?, events_of(&corpus));
    runtime.block_on(archive::write(storage.clone(), REGIONS, 256 << 20, events))?;
    let slices = runtime.block_on(archive::slices(storage))?;
    let requests = requests(slices.into_iter(), &url)?;
    let path = Path {
        _source: source,
        requests,
        records: corpus.records().count(),
    };
    let whole = Arc::new(path);
    let again = Arc::clone(&whole);
    let beside = Arc::clone(&runtime);
    bench.whole(&[], move || runtime.block_on(whole.once()));
    bench.stage("memtable-only", &["memtable"], move || {
        beside.block_on(again.once())
    });
    Ok(bench)
}

/// One request for each region.
fn requests(slices: impl Iterator<Item = Slice>, url: &str) -> Result<Vec<ApplyRequest>> {
    let mut regions: BTreeMap<i64, ApplyRequest> = BTreeMap::new();
    for slice in slices {
        let request = regions.entry(slice.info.region_id).or_default();
        request.rewrite_rules.push(rule(&slice));
        request.metas.push(meta(slice));
    }
    for request in regions.values_mut() {
        request.storage_backend = Some(backend_of_url(url)?);
        request.context = Some(Context {
            peer: Some(Peer {
                id: 1,
                store_id: 1,
                ..Peer::default()
            }),
            ..Context::default()
        });
    }
    Ok(regions.into_values().collect())
}

fn meta(slice: Slice) -> KvMeta {
    let info = slice.info;
    KvMeta {
        name: slice.object,
        length: info.length,
        cf: info.cf,
        restore_ts: END.get(),
        sha256: info.sha256,
        range_offset: info.range_offset,
        range_length: info.range_length,
        compression_type: info.compression_type,
        ..KvMeta::default()
    }
}

/// Gives the table the next id.
fn rule(slice: &Slice) -> RewriteRule {
    let table = |id: i64| -> Bytes {
        let mut raw = vec![b't'];
        raw.extend_from_slice(&(id as u64 ^ 1 << 63).to_be_bytes());
        let mut key = Vec::new();
        append_encoded(&raw, &mut key);
        // The first group and what of the id lies in the second.
        key.truncate(raw.len() + 1);
        key.into()
    };
    RewriteRule {
        old_key_prefix: table(slice.info.table_id),
        new_key_prefix: table(slice.info.table_id + 1),
        ..RewriteRule::default()
    }
}

struct Path {
    _source: TempDir,
    requests: Vec<ApplyRequest>,
    records: usize,
}

impl Path {
    /// Applies everything to a new engine.
    async fn once(&self) -> Result<Duration> {
        let dir = tempfile::tempdir()?;
        let engine = Arc::new(NoLog(RocksEngine::open(&dir.path().join("db"))?));
        let host = Arc::new(Host {
            engine: Arc::clone(&engine),
            writes: Mutex::new(()),
        });
        let import = dir.path().join("import");
        let service = ImportService::new(host, &import, ImportLimits::default(), Env::default())?;
        let requests = self.requests.clone();
        let (time, done) = timed_async(async {
            for request in requests {
                let answer = service.apply(Request::new(request)).await?.into_inner();
                if let Some(error) = answer.error {
                    return Err(Error::from(error.message));
                }
            }
            Ok(())
        })
        .await;
        done?;
        let scan = |cf| engine.scan(cf, &[], &[]).count();
        match scan(EngineCf::Default) + scan(EngineCf::Write) {
            found if found == self.records => Ok(time),
            found => Err(format!("{found} records applied instead of {}", self.records).into()),
        }
    }
}
