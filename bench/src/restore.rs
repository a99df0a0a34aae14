//! `restore-sst`: an archive in memory → fetch, verify, unzip, filter, sort, cut, SST files with
//! LZ4, ingest into RocksDB. The path includes the plan and the proof at the end.

use std::sync::Arc;
use std::time::Duration;

use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::target::EngineTarget;
use pitr_restore_worker::{Env, RestoreOptions, restore};
use pitr_storage::{SharedStorage, open_url};

use crate::bench::Bench;
use crate::capture::{events_of, runtime};
use crate::clock::timed_async;
use crate::limits::{self, Corpus};
use crate::rows::{REGIONS, Shape};
use crate::{Error, Result, archive, stages};

/// Slices as large as they come.
const SLICE_LIMIT: u64 = 256 << 20;

/// The bench of one shape.
pub fn bench(shape: Shape, megabytes: usize) -> Result<Bench> {
    let corpus = Corpus::new(shape, megabytes)?;
    let mut bench = Bench::new(format!("restore-sst-{shape}"), corpus.bytes);
    limits::copy(&mut bench, &corpus);
    limits::decompress(&mut bench, &corpus)?;
    limits::sha256(&mut bench, &corpus);
    limits::crc64(&mut bench, &corpus);
    limits::sort(&mut bench, &corpus);
    limits::sst(&mut bench, &corpus)?;
    limits::ingest(&mut bench, &corpus)?;
    stages::verify_slices(&mut bench, &corpus)?;
    stages::sort(&mut bench, &corpus)?;
    stages::write_ssts(&mut bench, &corpus)?;
    let runtime = runtime()?;
    let storage = open_url("memory://")?;
    let events = events_of(&corpus);
    runtime.block_on(archive::write(
        storage.clone(),
        REGIONS,
        SLICE_LIMIT,
        events,
    ))?;
    let written = corpus.records().count() as u64;
    bench.whole(&[], move || {
        runtime.block_on(restore_once(storage.clone(), written))
    });
    Ok(bench)
}

/// Restores everything into a new engine; fails unless `records` arrive.
pub async fn restore_once(storage: SharedStorage, records: u64) -> Result<Duration> {
    let dir = tempfile::tempdir()?;
    let engine = Arc::new(RocksEngine::open(&dir.path().join("db"))?);
    let env = Env::default();
    let target = EngineTarget::new(engine, env.spawner.clone());
    let options = RestoreOptions::rocks(dir.path(), env);
    let (time, report) = timed_async(async {
        let (plan, archive) = archive::plan_all(storage).await?;
        let storage = archive.storage().clone();
        let report = restore(&plan, storage, &target, options, Arc::default()).await;
        Ok::<_, Error>(report?)
    })
    .await;
    match report?.written {
        written if written == records => Ok(time),
        written => Err(format!("{written} records restored instead of {records}").into()),
    }
}
