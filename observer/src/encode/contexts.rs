//! The zstd contexts of an observer: few, counted, reused.
//!
//! A context costs about 1.4 MB, so there are never more than the encoders need plus a bounded
//! number of streams. As many idle ones as there are encoders are kept for the next slice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pitr_budget::{MemoryBudget, Reservation};
use pitr_format::compress::CompressError;
use pitr_format::frame::FrameEncoder;

/// A context with its memory; goes back by [`Contexts::give_back`].
pub(crate) struct Lease {
    pub encoder: FrameEncoder,
    pub held: ContextRoom,
}

/// What a context in use occupies; dropped with it.
pub(crate) struct ContextRoom {
    /// `None` for an encoder that had to begin without room.
    reservation: Option<Reservation>,
    is_stream: bool,
}

/// The contexts.
pub(crate) struct Contexts {
    budget: Arc<MemoryBudget>,
    idle: Mutex<Vec<(FrameEncoder, Option<Reservation>)>>,
    max_idle: usize,
    streams: AtomicUsize,
    max_streams: usize,
}

impl Contexts {
    pub fn new(budget: Arc<MemoryBudget>, encoders: usize, max_streams: usize) -> Self {
        Contexts {
            budget,
            idle: Mutex::default(),
            max_idle: encoders,
            streams: AtomicUsize::new(0),
            max_streams,
        }
    }

    /// One context after the other, for one thread that nobody counts.
    pub fn unlimited() -> Self {
        Self::new(MemoryBudget::new(u64::MAX), 1, 0)
    }

    /// A context for a slice that goes on growing, if one is free and half of the budget is.
    pub fn for_stream(&self) -> Option<Lease> {
        if self.budget.used() > self.budget.limit() / 2 {
            return None;
        }
        let more = |streams| (streams < self.max_streams).then_some(streams + 1);
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        let free = || {
            let room = self.budget.try_reserve(FrameEncoder::MEMORY as u64)?;
            Some((FrameEncoder::new().ok()?, Some(room)))
        };
        let Some((encoder, reservation)) = self.idle_with_room().or_else(free) else {
            self.streams.fetch_sub(1, Ordering::AcqRel);
            return None;
        };
        Some(Lease {
            encoder,
            held: ContextRoom {
                reservation,
                is_stream: true,
            },
        })
    }

    fn idle_with_room(&self) -> Option<(FrameEncoder, Option<Reservation>)> {
        let mut idle = self.idle.lock();
        let counted = idle.iter().position(|(_, room)| room.is_some())?;
        Some(idle.swap_remove(counted))
    }

    /// A context for an encoder. It gets one also without room: without it nothing would ever
    /// become smaller. There are as many of these as encoders.
    pub fn for_encoder(&self) -> Result<Lease, CompressError> {
        let idle = self.idle.lock().pop();
        let (encoder, reservation) = match idle {
            Some(kept) => kept,
            None => {
                let room = self.budget.try_reserve(FrameEncoder::MEMORY as u64);
                (FrameEncoder::new()?, room)
            }
        };
        Ok(Lease {
            encoder,
            held: ContextRoom {
                reservation,
                is_stream: false,
            },
        })
    }

    /// Takes a context back, and keeps as many as there are encoders.
    pub fn give_back(&self, encoder: FrameEncoder, held: ContextRoom) {
        if held.is_stream {
            self.streams.fetch_sub(1, Ordering::AcqRel);
        }
        let mut idle = self.idle.lock();
        if idle.len() < self.max_idle {
            idle.push((encoder, held.reservation));
        }
    }

    /// Drops what nobody uses.
    pub fn trim(&self) {
        self.idle.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: u64 = FrameEncoder::MEMORY as u64;

    #[test]
    fn streams_are_bounded_by_number_and_by_room() {
        let budget = MemoryBudget::new(4 * ONE);
        let contexts = Contexts::new(Arc::clone(&budget), 1, 2);
        let first = contexts.for_stream().unwrap();
        let second = contexts.for_stream().unwrap();
        assert!(contexts.for_stream().is_none(), "two at most");
        assert_eq!(budget.used(), 2 * ONE);
        contexts.give_back(first.encoder, first.held);
        assert_eq!(budget.used(), 2 * ONE, "kept for the next");
        contexts.give_back(second.encoder, second.held);
        assert_eq!(budget.used(), ONE, "one is kept, for the encoder");
        let other = budget.try_reserve(ONE).unwrap();
        let third = contexts.for_stream().unwrap();
        let more = budget.try_reserve(ONE).unwrap();
        assert!(contexts.for_stream().is_none(), "no room");
        drop((other, more));
        assert!(contexts.for_stream().is_some(), "and one place is free");
        contexts.give_back(third.encoder, third.held);
        contexts.trim();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_encoder_gets_its_context_even_without_room_and_a_stream_never_gets_that_one() {
        let budget = MemoryBudget::new(10);
        let _full = budget.try_reserve(10).unwrap();
        let contexts = Contexts::new(Arc::clone(&budget), 1, 2);
        let lease = contexts.for_encoder().unwrap();
        assert_eq!(budget.used(), 10);
        contexts.give_back(lease.encoder, lease.held);
        assert!(contexts.for_stream().is_none());
        assert_eq!(contexts.idle.lock().len(), 1);
    }
}
