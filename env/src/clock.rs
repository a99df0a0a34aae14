//! Time of a process.

use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

/// A wait that ends by itself.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A clock. Nothing that is written depends on it: timestamps of data come from PD. It serves
/// schedules and metrics.
pub trait Clock: Send + Sync {
    /// Time since any moment that stays the same while the process lives; never goes back.
    fn now(&self) -> Duration;

    /// Time of day; may jump.
    fn wall(&self) -> SystemTime;

    /// Waits for `time` of this clock. Unless it is implemented, a timer of the tokio runtime that
    /// polls the future.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the runtime"
    )]
    fn sleep(&self, time: Duration) -> Sleep {
        Box::pin(async move { tokio::time::sleep(time).await })
    }
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

    #[tokio::test]
    async fn a_wait_takes_at_least_the_time_asked_for() {
        let clock = SystemClock::new();
        let began = clock.now();
        clock.sleep(Duration::from_millis(20)).await;
        assert!(clock.now() - began >= Duration::from_millis(20));
    }
}
