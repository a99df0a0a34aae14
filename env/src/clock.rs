//! Time of a process.

use std::time::{Duration, Instant, SystemTime};

/// A clock. Nothing that is written depends on it: timestamps of data come from PD. It serves
/// schedules and metrics.
pub trait Clock: Send + Sync {
    /// Time since any moment that stays the same while the process lives; never goes back.
    fn now(&self) -> Duration;

    /// Time of day; may jump.
    fn wall(&self) -> SystemTime;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    began: Instant,
}

impl SystemClock {
    /// A clock that counts from now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    pub fn new() -> Self {
        SystemClock {
            began: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_clock_never_goes_back() {
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(clock.wall() > SystemTime::UNIX_EPOCH);
    }
}
