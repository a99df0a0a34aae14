//! The shared counter of reserved bytes, and reservations of it.
//!
//! Invariant: `used` never passes the limit, except for one reservation that was made, or grown by
//! [`Reservation::try_grow_alone`], while nothing else was reserved.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Shared counter of reserved bytes.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    room: Notify,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(MemoryBudget {
            limit,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            room: Notify::new(),
        })
    }

    /// Reserves `bytes`, or `None` when they do not fit. An empty budget accepts any size, so that
    /// one batch above the limit cannot wait for ever.
    pub fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.take(bytes, Some(0)).then(|| Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// Reserves `bytes` and waits until they fit. There is no order among those who wait: a small
    /// reservation may overtake a large one. Cancel-safe.
    pub async fn reserve(self: &Arc<Self>, bytes: u64) -> Reservation {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(reservation) = self.try_reserve(bytes) {
                return reservation;
            }
            room.await;
        }
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

    /// Most bytes that were ever reserved at a time.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Acquire)
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

    /// Adds `bytes` to what is used if they fit, or if exactly `alone` is used.
    fn take(&self, bytes: u64, alone: Option<u64>) -> bool {
        let before = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                let after = used.checked_add(bytes)?;
                let accepts = bytes == 0 || after <= self.limit || Some(used) == alone;
                accepts.then_some(after)
            });
        match before {
            Ok(used) => {
                self.peak.fetch_max(used + bytes, Ordering::AcqRel);
                true
            }
            Err(_) => false,
        }
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

    /// The budget that they belong to.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// Takes `more` bytes if they fit; else nothing changes. Never passes the limit.
    #[must_use]
    pub fn try_grow(&mut self, more: u64) -> bool {
        self.grow(more, None)
    }

    /// As [`Reservation::try_grow`], but whoever holds everything that is reserved may pass the
    /// limit, as an empty budget accepts any size: for work that could never be done otherwise.
    #[must_use]
    pub fn try_grow_alone(&mut self, more: u64) -> bool {
        self.grow(more, Some(self.bytes))
    }

    fn grow(&mut self, more: u64, alone: Option<u64>) -> bool {
        let fits = self.budget.take(more, alone);
        if fits {
            self.bytes += more;
        }
        fits
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

    /// Moves `bytes`, or as many as there are, into a reservation of their own.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Reservation {
        let moved = bytes.min(self.bytes);
        self.bytes -= moved;
        Reservation {
            budget: Arc::clone(&self.budget),
            bytes: moved,
        }
    }

    /// Everything held so far as its own reservation; this one stays at 0.
    pub fn take(&mut self) -> Reservation {
        self.split(u64::MAX)
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

    #[test]
    fn a_reservation_grows_within_the_limit_and_splits_without_changing_the_sum() {
        let budget = MemoryBudget::new(100);
        let mut first = budget.try_reserve(60).unwrap();
        let other = budget.try_reserve(10).unwrap();
        assert!(!first.try_grow(31));
        assert!(first.try_grow(30));
        let mut part = first.split(40);
        assert_eq!((first.bytes(), part.bytes(), budget.used()), (50, 40, 100));
        assert_eq!(part.split(99).bytes(), 40);
        assert_eq!((part.bytes(), budget.used()), (0, 60));
        drop(other);
        assert!(!first.try_grow(51), "not even alone");
        drop(first);
        assert_eq!((budget.used(), budget.peak()), (0, 100));
    }

    #[test]
    fn only_who_holds_everything_may_grow_above_the_limit_and_only_when_it_says_so() {
        let budget = MemoryBudget::new(100);
        let mut first = budget.try_reserve(60).unwrap();
        let other = budget.try_reserve(1).unwrap();
        assert!(!first.try_grow_alone(1000), "somebody else holds a byte");
        drop(other);
        assert!(!first.try_grow(1000));
        assert!(first.try_grow_alone(1000));
        assert_eq!((first.bytes(), budget.used()), (1060, 1060));
        assert!(budget.try_reserve(1).is_none());
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_room_gets_it_when_enough_is_given_back() {
        let budget = MemoryBudget::new(100);
        let mut held = budget.try_reserve(90).unwrap();
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.reserve(50).await.bytes() }
        });
        tokio::task::yield_now().await;
        held.shrink_to(60);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.shrink_to(50);
        assert_eq!(waiting.await.unwrap(), 50);
        assert_eq!((budget.used(), budget.peak()), (50, 100));
    }

    #[test]
    fn many_threads_never_pass_the_limit_and_give_everything_back() {
        let budget = MemoryBudget::new(1000);
        std::thread::scope(|scope| {
            for thread in 1..=4u64 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut held = budget.nothing();
                    for round in 0..20_000u64 {
                        if let Some(more) = budget.try_reserve((round * thread) % 97) {
                            held.absorb(more);
                        }
                        let _ = held.try_grow(round % 13);
                        drop(held.split(round % 53));
                        if round % 7 == 0 {
                            held.shrink_to(held.bytes() / 2);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
        assert!(budget.peak() <= 1100, "{}", budget.peak());
    }
}
