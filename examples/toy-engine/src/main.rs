//! A toy engine is backed up while it is written to, and restored to a moment in between.

use pitr_format::Ts;
use pitr_restore_worker::digest::scan_digest;
use pitr_storage::open_url;
use pitr_toy_engine::Result;
use pitr_toy_engine::backup::{Backup, describe_archive};
use pitr_toy_engine::environment::{environment, restore_environment};
use pitr_toy_engine::log::ReplicatedLog;
use pitr_toy_engine::restore::restore_into;
use pitr_toy_engine::txn::Store;

#[tokio::main]
async fn main() -> Result<()> {
    let registry = prometheus::Registry::new();
    let (env, threads) = environment(&registry, 32 << 20)?;
    let storage = open_url("memory://")?;
    let store = Store::new(ReplicatedLog::new(3), Ts::compose(1_700_000_000_000, 0));
    let start_ts = store.tso();
    describe_archive(&storage, start_ts).await?;
    for round in 0..10 {
        store.write(round_of(round)).await;
    }
    let mut backup = Backup::start(&store, storage.clone(), start_ts, env).await?;
    for round in 10..20 {
        store.write(round_of(round)).await;
    }
    let moment = store.tso();
    for round in 20..30 {
        store.write(round_of(round)).await;
    }
    let checkpoint = backup.flush_past(moment).await?;
    println!(
        "checkpoint {checkpoint}, {} worker threads of the engine",
        threads.started()
    );

    let target = ReplicatedLog::new(3);
    let (env, _) = restore_environment(64 << 20);
    let temp = tempfile::tempdir()?;
    let report = restore_into(&target, storage, moment, temp.path(), env).await?;
    let expected = scan_digest(store.log().replicas()[0].as_ref(), moment)?;
    for replica in target.replicas() {
        let found = scan_digest(replica.as_ref(), Ts::MAX)?;
        if found != expected {
            return Err(format!("restored {found}, expected {expected}").into());
        }
    }
    println!(
        "restored {} records to {moment}: {expected}",
        report.written
    );
    Ok(())
}

/// A hundred keys with short and long values; every seventh is deleted in odd rounds.
fn round_of(round: u32) -> Vec<(bytes::Bytes, Option<bytes::Bytes>)> {
    (0..100u32)
        .map(|number| {
            let key = format!("key-{number:03}").into_bytes().into();
            let long = if number % 3 == 0 { 300 } else { 1 };
            let value = format!("round {round} ").repeat(long).into_bytes();
            let deleted = number % 7 == 0 && round % 2 == 1;
            (key, (!deleted).then_some(value.into()))
        })
        .collect()
}
