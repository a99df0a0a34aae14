//! Memory that all `Apply` calls share. Beyond it the store answers "busy" at once, as TiKV does,
//! and the driver waits.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units, since a semaphore's count is limited.
const UNIT: u64 = 1024;

pub(super) struct Quota {
    units: Arc<Semaphore>,
    capacity: u32,
}

impl Quota {
    pub(super) fn new(bytes: u64) -> Self {
        let capacity = u32::try_from(bytes.div_ceil(UNIT))
            .unwrap_or(u32::MAX / 8)
            .max(1);
        Quota {
            units: Arc::new(Semaphore::new(capacity as usize)),
            capacity,
        }
    }

    /// Reserves `bytes`, or everything when they are more; `None` when not that much is free.
    pub(super) fn reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT))
            .unwrap_or(u32::MAX)
            .min(self.capacity);
        Arc::clone(&self.units).try_acquire_many_owned(units).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_comes_back_when_it_is_dropped() {
        let quota = Quota::new(10 * UNIT);
        let half = quota.reserve(6 * UNIT).unwrap();
        assert!(quota.reserve(6 * UNIT).is_none());
        drop(half);
        let all = quota.reserve(u64::MAX).unwrap();
        assert!(quota.reserve(1).is_none());
        drop(all);
        assert!(quota.reserve(0).is_some());
    }
}
