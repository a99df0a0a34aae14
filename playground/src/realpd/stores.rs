//! The heartbeat of one store. After 20 s without one PD calls a store disconnected.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pitr_cluster::pd::PdClient;
use pitr_proto::pdpb;
use tokio::time::{MissedTickBehavior, interval};

use super::calls;
use super::report::Report;
use crate::store::Store;

/// TiKV's default is 10 s.
const EVERY: Duration = Duration::from_secs(5);
/// A round number: the playground does not look at the disk, and PD only has to see room.
const CAPACITY: u64 = 1 << 40;

/// Unix time in seconds.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Sends heartbeats for ever.
pub(super) async fn run(client: Arc<PdClient>, store: Arc<Store>, report: Arc<Report>) {
    let started = now();
    let mut before = started;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (written, until) = (report.take_store(), now());
        let stats = pdpb::StoreStats {
            store_id: store.store_id(),
            capacity: CAPACITY,
            available: CAPACITY,
            region_count: u32::try_from(store.regions().iter().count()).unwrap_or(u32::MAX),
            start_time: u32::try_from(started).unwrap_or(u32::MAX),
            bytes_written: written.bytes,
            keys_written: written.keys,
            interval: Some(pdpb::TimeInterval {
                start_timestamp: before,
                end_timestamp: until,
            }),
            ..Default::default()
        };
        before = until;
        if let Err(error) = calls::store_heartbeat(&client, stats).await {
            tracing::warn!(%error, "PD has not taken the heartbeat of the store");
        }
    }
}
