//! The timestamp oracle: strictly increasing over the life of the data directory.
//!
//! The file holds a bound ahead of time; no timestamp at or behind the bound is handed out before
//! a later bound is durable, and a restart begins at the bound. So a clock that jumps back, a
//! burst and `kill -9` cannot make a timestamp appear twice.

use std::sync::Arc;

use parking_lot::Mutex;
use pitr_format::Ts;

use super::clock::Clock;
use super::state::{StateError, StateFile};

/// How far ahead the durable bound is written; PD uses 3 s.
const SAVE_AHEAD_MS: u64 = 3000;
const LOGICAL_LIMIT: u64 = 1 << 18;

/// The largest batch one request may ask for.
pub const MAX_COUNT: u32 = (LOGICAL_LIMIT - 1) as u32;

/// Hands out timestamps.
pub struct TimestampOracle {
    state: Arc<StateFile>,
    clock: Clock,
    last: Mutex<Last>,
}

struct Last {
    physical: u64,
    logical: u64,
    until: u64,
}

impl TimestampOracle {
    /// Continues behind everything that was ever handed out from `state`.
    pub fn new(state: Arc<StateFile>, clock: Clock) -> Self {
        let until = state.read(|record| record.tso_until_ms);
        TimestampOracle {
            state,
            clock,
            last: Mutex::new(Last {
                physical: until,
                logical: 0,
                until,
            }),
        }
    }

    /// Takes `count` timestamps (1 to [`MAX_COUNT`]) and returns the largest.
    pub fn next(&self, count: u32) -> Result<Ts, StateError> {
        let count = u64::from(count.clamp(1, MAX_COUNT));
        let mut last = self.last.lock();
        let now = (self.clock)();
        let (mut physical, mut logical) = if now > last.physical {
            (now, 0)
        } else {
            (last.physical, last.logical)
        };
        if logical + count >= LOGICAL_LIMIT {
            physical += 1;
            logical = 0;
        }
        if physical >= last.until {
            let until = physical + SAVE_AHEAD_MS;
            self.state.update(|record| record.tso_until_ms = until)?;
            last.until = until;
        }
        last.physical = physical;
        last.logical = logical + count;
        Ok(Ts::compose(physical, last.logical))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn oracle(dir: &std::path::Path, now: &Arc<AtomicU64>) -> TimestampOracle {
        let now = now.clone();
        TimestampOracle::new(
            Arc::new(StateFile::open(dir, Some(1)).unwrap()),
            Arc::new(move || now.load(Ordering::Relaxed)),
        )
    }

    #[test]
    fn timestamps_never_go_back_over_restarts_and_clock_jumps() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(1_000_000));
        let mut previous = Ts::ZERO;
        for round in 0..6 {
            let oracle = oracle(dir.path(), &now);
            for step in 0..50 {
                let ts = oracle.next(1 + step).unwrap();
                let smallest = ts.get() - u64::from(step);
                assert!(smallest > previous.get(), "round {round} step {step}");
                previous = ts;
                now.fetch_add(37, Ordering::Relaxed);
            }
            // Each restart finds the clock far behind.
            now.fetch_sub(4000, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_batch_stays_inside_one_millisecond_and_follows_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(5_000_000));
        let oracle = oracle(dir.path(), &now);
        let first = oracle.next(MAX_COUNT).unwrap();
        assert_eq!(first.logical(), u64::from(MAX_COUNT));
        let second = oracle.next(10).unwrap();
        assert_eq!(
            (second.physical_ms(), second.logical()),
            (first.physical_ms() + 1, 10)
        );
        now.store(9_000_000, Ordering::Relaxed);
        assert_eq!(oracle.next(1).unwrap(), Ts::compose(9_000_000, 1));
    }
}
