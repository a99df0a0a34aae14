//! The clock of resolved timestamps.
//!
//! Each tick takes a timestamp and tells the store that no one-phase or async commit may land at
//! or below it from now on; only then is it sent. A two-phase commit below it either has its lock
//! in a table already or takes its commit ts from the oracle later. Without a timestamp the tick
//! is left out; rows go on.

use std::sync::Arc;
use std::time::Duration;

use super::host::Host;
use super::hub::Hub;

/// Ticks for ever.
pub async fn run(host: Arc<dyn Host>, hub: Arc<Hub>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (host, hub) = (host.clone(), hub.clone());
        // The store's write lock may be held for a while.
        let _ = tokio::task::spawn_blocking(move || tick(&*host, &hub)).await;
    }
}

/// One tick.
pub fn tick(host: &dyn Host, hub: &Hub) {
    match host.timestamp() {
        Ok(now) => host.while_quiet(now, &mut || hub.resolve(now)),
        Err(error) => tracing::warn!(error, "no timestamp, no resolved ts"),
    }
}
