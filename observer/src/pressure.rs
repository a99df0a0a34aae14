//! When memory is short, and what goes to disk then.
//!
//! Two marks of the one budget. Above the high mark shards close the larger half of their open
//! slices, encoders spill what they have compressed, and slices of sealed generations that wait for
//! a slow storage are spilled, oldest first, until the low mark is reached. What has no room under
//! the disk quota stays in memory; then the budget fills up, and sending is refused at the door.
//! Bytes under way to the storage are left alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_budget::spill::{SpillDir, SpillError, SpillFile};
use prometheus::IntGauge;

use crate::encode::Body;

/// A temporary file is closed at this size, so that its room comes back when the generations of
/// its slices are durable.
const FILE_LIMIT: u64 = 32 << 20;

/// Watches the budget for one observer, and owns what spilling needs.
pub(crate) struct Pressure {
    budget: Arc<MemoryBudget>,
    dir: Option<Arc<SpillDir>>,
    gauge: IntGauge,
    spill: Mutex<Spill>,
    /// Whether a spill failed for another reason than room, so that it is told once.
    told: AtomicBool,
}

#[derive(Default)]
struct Spill {
    /// Stored in memory, oldest first; those of durable generations are dead.
    bodies: VecDeque<Weak<Body>>,
    file: Option<SpillFile>,
}

impl Pressure {
    /// Watches `budget`; without a directory nothing is spilled. `gauge` shows the bytes on disk.
    pub fn new(budget: Arc<MemoryBudget>, dir: Option<Arc<SpillDir>>, gauge: IntGauge) -> Self {
        Pressure {
            budget,
            dir,
            gauge,
            spill: Mutex::default(),
            told: AtomicBool::new(false),
        }
    }

    /// What is watched.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// Whether memory is short: 5/8 of the budget are used.
    pub fn is_high(&self) -> bool {
        self.budget.used() > self.budget.limit() / 8 * 5
    }

    /// Whether what was short is no longer: half of the budget is free.
    fn is_low(&self) -> bool {
        self.budget.used() <= self.budget.limit() / 2
    }

    /// A slice was stored in memory; it may be spilled from now on.
    pub fn stored(&self, body: &Arc<Body>) {
        if self.dir.is_none() {
            return;
        }
        let mut spill = self.spill.lock();
        let bodies = &mut spill.bodies;
        while bodies.front().is_some_and(|body| body.strong_count() == 0) {
            bodies.pop_front();
        }
        bodies.push_back(Arc::downgrade(body));
    }

    /// Spills until the low mark, if the high mark was passed. Blocks on the disk.
    pub fn relieve(&self) {
        let Some(dir) = self.dir.as_ref().filter(|_| self.is_high()) else {
            return;
        };
        let mut spill = self.spill.lock();
        if let Err(error) = self.spill_until_low(&mut spill, dir)
            && !error.is_full()
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "nothing can be spilled; rows wait in memory only");
        }
        self.gauge.set(dir.used() as i64);
    }

    fn spill_until_low(&self, spill: &mut Spill, dir: &Arc<SpillDir>) -> Result<(), SpillError> {
        // Each once: those that are being uploaded stay.
        for _ in 0..spill.bodies.len() {
            if self.is_low() {
                break;
            }
            let Some(weak) = spill.bodies.pop_front() else {
                break;
            };
            let Some(body) = weak.upgrade() else {
                continue;
            };
            let spilled = match &mut spill.file {
                Some(file) if file.len() < FILE_LIMIT => body.spill(file),
                old => dir.create().and_then(|file| body.spill(old.insert(file))),
            };
            if body.in_memory() {
                spill.bodies.push_back(weak);
            }
            if let Err(error) = spilled {
                if !error.is_full() {
                    // Its extents keep what they need; the next attempt begins another.
                    spill.file = None;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A generation is over: what follows goes to a file of its own.
    pub fn next_file(&self) {
        self.spill.lock().file = None;
        if let Some(dir) = &self.dir {
            self.gauge.set(dir.used() as i64);
        }
    }
}
