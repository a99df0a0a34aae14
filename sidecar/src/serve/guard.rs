//! Which GC safepoints a task needs of a store, pure: ids, values and times to live are those of
//! TiKV (tikv/tikv `components/backup-stream/src/checkpoint_manager.rs`), so that others' tools see
//! and keep them.
//!
//! Invariant: a safepoint is always one below the global checkpoint, so that a scan *at* the
//! checkpoint still finds every version.

use std::time::Duration;

use pitr_format::Ts;

/// Time to live of the safepoint that a store keeps.
const STORE_TTL: Duration = Duration::from_secs(7200);

/// The safepoints must be renewed at least that often: a third of the shortest time to live.
pub const REFRESH_EVERY: Duration = Duration::from_secs(STORE_TTL.as_secs() / 3);

/// One service safepoint to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSafePoint {
    /// Service id at PD.
    pub id: String,
    /// Time to live.
    pub ttl: Duration,
    /// Oldest ts that is kept.
    pub ts: Ts,
}

/// What a task with this global checkpoint keeps alive on a store; the coordinator keeps one for
/// all stores and tasks besides.
pub fn to_hold(task: &str, store_id: u64, global: Ts) -> ServiceSafePoint {
    ServiceSafePoint {
        id: store_service(task, store_id),
        ttl: STORE_TTL,
        ts: global.prev(),
    }
}

/// The safepoint that holds GC while a task is paused.
pub fn pause_service(task: &str) -> String {
    format!("{task}_pause_safepoint")
}

/// The id of what a store keeps for a task; it goes with the task.
pub fn store_service(task: &str, store_id: u64) -> String {
    format!("backup-stream-{task}-{store_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_holds_gc_one_below_its_checkpoint_under_the_known_id() {
        let store = to_hold("demo", 4, Ts::new(100));
        assert_eq!(store.id, "backup-stream-demo-4");
        assert_eq!((store.ttl.as_secs(), store.ts), (7200, Ts::new(99)));
        assert!(REFRESH_EVERY * 3 <= store.ttl);
    }
}
