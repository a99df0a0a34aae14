//! One byte budget for everything a process holds in memory.
//!
//! A reservation is taken when rows enter (`pitr_observer::ObserverHandle::try_send`), travels with them
//! through the queue, the open slices and the generation, shrinks when the rows are compressed,
//! and is given back when the generation is flushed and dropped. So the sum is bounded however
//! slow the storage is; what does not fit is refused at the door.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Shared counter of reserved bytes.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    room: Notify,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(MemoryBudget {
            limit,
            used: AtomicU64::new(0),
            room: Notify::new(),
        })
    }

    /// Reserves `bytes`, or `None` when they do not fit. An empty budget accepts any size, so that
    /// one batch above the limit cannot wait for ever.
    pub fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                let after = used.checked_add(bytes)?;
                (bytes == 0 || used == 0 || after <= self.limit).then_some(after)
            })
            .ok()?;
        Some(Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// A reservation of 0 bytes, to absorb others.
    pub fn nothing(self: &Arc<Self>) -> Reservation {
        Reservation {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }

    /// Bytes reserved now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Wakes when bytes or queue places may have become free. Register before looking:
    /// see [`Notify::notified`] and `enable`.
    pub fn room(&self) -> &Notify {
        &self.room
    }

    fn release(&self, bytes: u64) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            self.room.notify_waiters();
        }
    }
}

/// Bytes taken from a budget; given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Reservation {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes over what `other` holds. Both belong to the same budget.
    pub fn absorb(&mut self, mut other: Reservation) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget));
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back all above `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.budget.release(self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Everything held so far as its own reservation; this one stays at 0.
    pub fn take(&mut self) -> Reservation {
        Reservation {
            budget: Arc::clone(&self.budget),
            bytes: std::mem::take(&mut self.bytes),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_refuses_what_does_not_fit_and_accepts_again_after_a_release() {
        let budget = MemoryBudget::new(100);
        let mut first = budget.try_reserve(60).unwrap();
        assert!(budget.try_reserve(41).is_none());
        first.absorb(budget.try_reserve(40).unwrap());
        assert_eq!((first.bytes(), budget.used()), (100, 100));
        first.shrink_to(10);
        assert_eq!(budget.used(), 10);
        let moved = first.take();
        drop(first);
        assert_eq!(budget.used(), 10);
        drop(moved);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_empty_budget_accepts_one_batch_above_its_limit() {
        let budget = MemoryBudget::new(10);
        let huge = budget.try_reserve(1000).unwrap();
        assert!(budget.try_reserve(1).is_none());
        assert!(budget.try_reserve(0).is_some());
        drop(huge);
        assert!(budget.try_reserve(1).is_some());
    }
}
