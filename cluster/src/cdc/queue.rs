//! The queue between the reader of the stream, which never waits for long, and the user.
//!
//! Records that fit neither into the queue's share of the memory nor into the budget go to a
//! temporary file, in their place of the order ([`super::parking`]). When the disk's quota is full
//! too, whole subscriptions are given back with all they have queued: their ranges are scanned again from
//! the durable frontier, so nothing is lost, and a resolved ts that stands behind purged records
//! goes with them. Given back is the newest among those that hold at least half as much as the
//! one that holds most.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pitr_budget::spill::SpillDir;
use pitr_budget::{MemoryBudget, Reservation};
use tokio::sync::Notify;

use super::parking::{Parked, Parking, ParkingError};
use super::{CdcEvent, SubId};

/// Memory of an event besides its bytes.
const OVERHEAD: usize = 96;
/// Memory of a batch on disk.
const SLOT: usize = 256;

pub(super) struct EventQueue {
    inner: Mutex<Inner>,
    filled: Notify,
    drained: Notify,
    taken: AtomicU64,
    limit: usize,
    budget: Arc<MemoryBudget>,
}

struct Inner {
    slots: VecDeque<Slot>,
    /// Bytes in memory.
    bytes: usize,
    /// Bytes of queued records per subscription, in memory or on disk.
    held: BTreeMap<SubId, usize>,
    parking: Parking,
    closed: bool,
}

enum Slot {
    Memory {
        event: CdcEvent,
        /// As [`charge`] says.
        size: usize,
        _room: Reservation,
    },
    /// Takes [`SLOT`] bytes of memory all the same.
    Parked {
        sub: SubId,
        batch: Parked,
        /// In memory.
        size: usize,
        _room: Reservation,
    },
}

/// What is in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub memory: usize,
    pub disk: usize,
}

impl EventQueue {
    pub fn new(limit: usize, budget: Arc<MemoryBudget>, spill: Option<Arc<SpillDir>>) -> Self {
        EventQueue {
            inner: Mutex::new(Inner {
                slots: VecDeque::new(),
                bytes: 0,
                held: BTreeMap::new(),
                parking: Parking::new(spill),
                closed: false,
            }),
            filled: Notify::new(),
            drained: Notify::new(),
            taken: AtomicU64::new(0),
            limit,
            budget,
        }
    }

    pub fn load(&self) -> Load {
        let inner = self.inner.lock();
        let held: usize = inner.held.values().sum();
        Load {
            memory: inner.bytes,
            disk: held.saturating_sub(inner.bytes),
        }
    }

    /// Events taken by the user so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Wakes when the user took something.
    pub fn drained(&self) -> &Notify {
        &self.drained
    }

    /// Appends without waiting; records come back when there is no room for them.
    pub fn try_push(&self, event: CdcEvent) -> Result<(), CdcEvent> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Ok(());
        }
        let size = charge(&event);
        let CdcEvent::Records { sub, records } = &event else {
            let resolved = matches!(event, CdcEvent::Resolved { .. });
            // Left out if it does not fit: the next one comes in a second.
            if !resolved || inner.bytes + size <= self.limit || inner.slots.is_empty() {
                inner.bytes += size;
                inner.slots.push_back(Slot::Memory {
                    event,
                    size,
                    _room: self.budget.nothing(),
                });
            }
            drop(inner);
            self.filled.notify_one();
            return Ok(());
        };
        let sub = *sub;
        // As with the budget, one event of any size is accepted when nothing else waits.
        let fits = inner.bytes == 0 || inner.bytes + size <= self.limit;
        let reserved = fits.then(|| self.budget.try_reserve(size as u64));
        if let Some(reserved) = reserved.flatten() {
            inner.bytes += size;
            let _room = reserved;
            inner.slots.push_back(Slot::Memory { event, size, _room });
        } else {
            let fits = inner.bytes + SLOT <= self.limit;
            let reserved = fits.then(|| self.budget.try_reserve(SLOT as u64));
            let parked = reserved.flatten().and_then(|_room| {
                let batch = inner.parking.park(records)?;
                Some(Slot::Parked {
                    sub,
                    batch,
                    size,
                    _room,
                })
            });
            let Some(parked) = parked else {
                return Err(event);
            };
            inner.bytes += SLOT;
            inner.slots.push_back(parked);
        }
        *inner.held.entry(sub).or_insert(0) += size;
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Who is to be given back, if `waits` has `size` bytes more than fit.
    pub fn victim(&self, waits: SubId, size: usize) -> SubId {
        let inner = self.inner.lock();
        let waiting = inner.held.get(&waits).unwrap_or(&0) + size;
        let most = inner.held.values().copied().max().unwrap_or(0).max(waiting);
        let mut newest_first = inner.held.iter().rev();
        let newest = newest_first.find(|(_, held)| **held * 2 >= most);
        match newest {
            Some((newest, _)) if waiting * 2 < most => *newest,
            Some((newest, _)) => waits.max(*newest),
            None => waits,
        }
    }

    /// Whether nobody but `sub` has records here.
    pub fn holds_alone(&self, sub: SubId) -> bool {
        self.inner.lock().held.keys().all(|held| *held == sub)
    }

    /// Removes all that is queued of a subscription but its end.
    pub fn purge(&self, victim: SubId) {
        self.inner.lock().purge(victim);
        self.drained.notify_one();
    }

    /// No more events will come.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_one();
    }

    /// The next event; `None` when the queue is closed and empty, or when what was moved to disk
    /// does not come back. One reader; cancel-safe.
    pub async fn pop(&self) -> Option<CdcEvent> {
        loop {
            {
                let mut inner = self.inner.lock();
                if let Some(event) = inner.take() {
                    drop(inner);
                    self.taken.fetch_add(1, Ordering::Relaxed);
                    self.drained.notify_one();
                    return Some(event);
                }
                if inner.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

impl Inner {
    fn take(&mut self) -> Option<CdcEvent> {
        let (event, size) = match self.slots.pop_front()? {
            Slot::Memory { event, size, .. } => {
                self.bytes -= size;
                (event, size)
            }
            Slot::Parked {
                sub, batch, size, ..
            } => {
                self.bytes -= SLOT;
                match batch.read() {
                    Ok(records) => (CdcEvent::Records { sub, records }, size),
                    Err(error) => return self.broken(&error),
                }
            }
        };
        if let CdcEvent::Records { sub, .. } = &event
            && let Some(held) = self.held.get_mut(sub)
        {
            *held = held.saturating_sub(size);
            if *held == 0 {
                self.held.remove(sub);
            }
        }
        Some(event)
    }

    /// Nothing can be told any more without a hole: the user begins again at what is durable.
    fn broken(&mut self, error: &ParkingError) -> Option<CdcEvent> {
        tracing::error!(%error, "changes on disk are lost, everything is read again");
        self.slots.clear();
        self.held.clear();
        self.bytes = 0;
        self.closed = true;
        None
    }

    fn purge(&mut self, victim: SubId) {
        self.held.remove(&victim);
        for slot in &mut self.slots {
            if let Slot::Memory { event, size, .. } = slot
                && let CdcEvent::Resolved { subs, .. } = event
            {
                subs.retain(|sub| *sub != victim);
                *size = charge(event);
            }
        }
        self.slots.retain(|slot| match slot {
            Slot::Parked { sub, .. } => *sub != victim,
            Slot::Memory { event, .. } => match event {
                CdcEvent::Records { sub, .. } | CdcEvent::Initialized { sub } => *sub != victim,
                CdcEvent::Resolved { subs, .. } => !subs.is_empty(),
                CdcEvent::Ended { .. } | CdcEvent::Disconnected { .. } => true,
            },
        });
        let in_memory = |slot: &Slot| match slot {
            Slot::Memory { size, .. } => *size,
            Slot::Parked { .. } => SLOT,
        };
        self.bytes = self.slots.iter().map(in_memory).sum();
    }
}

/// Bytes charged. Ends are free: there is at most one per subscription.
pub(super) fn charge(event: &CdcEvent) -> usize {
    match event {
        CdcEvent::Records { records, .. } => OVERHEAD + records.plain_len() + records.len(),
        CdcEvent::Resolved { subs, .. } => OVERHEAD + subs.len() * size_of::<SubId>(),
        _ => 0,
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "queue_model_tests.rs"]
mod model_tests;
