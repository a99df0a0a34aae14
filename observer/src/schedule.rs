//! When to flush: by time, by size, and again after a failure. No clock of its own.
//!
//! Every `now` is a monotonic duration since any fixed moment; the caller (the sidecar's loop, the
//! simulation) owns the clock. Intervals count from the *start* of the last flush, so a slow
//! upload does not add to the checkpoint lag twice.

use std::time::Duration;

/// The shortest interval that [`FlushSchedule::new`] accepts.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(16);

/// Why a flush is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushReason {
    /// The interval is over.
    Interval,
    /// The buffered bytes reached the limit.
    Size,
    /// A failed flush is to be repeated.
    Retry,
}

/// Decides when the next flush starts. A flush that runs is never due a second time.
#[derive(Clone, Debug)]
pub struct FlushSchedule {
    interval: Duration,
    size_limit: u64,
    started: Duration,
    running: bool,
    failures: u32,
    retry_at: Duration,
}

impl FlushSchedule {
    /// `interval` is raised to [`MIN_INTERVAL`]; `size_limit` counts buffered bytes.
    pub fn new(interval: Duration, size_limit: u64, now: Duration) -> Self {
        FlushSchedule {
            interval: interval.max(MIN_INTERVAL),
            size_limit: size_limit.max(1),
            started: now,
            running: false,
            failures: 0,
            retry_at: Duration::ZERO,
        }
    }

    /// Why a flush should start now, if it should.
    pub fn due(&self, now: Duration, buffered: u64) -> Option<FlushReason> {
        if self.running {
            None
        } else if self.failures > 0 {
            (now >= self.retry_at).then_some(FlushReason::Retry)
        } else if now >= self.started + self.interval {
            Some(FlushReason::Interval)
        } else {
            (buffered >= self.size_limit).then_some(FlushReason::Size)
        }
    }

    /// The next moment at which [`FlushSchedule::due`] can change by time alone.
    pub fn wake_at(&self) -> Duration {
        if self.failures > 0 {
            self.retry_at
        } else {
            self.started + self.interval
        }
    }

    /// A flush begins.
    pub fn started(&mut self, now: Duration) {
        self.running = true;
        if self.failures == 0 {
            self.started = now;
        }
    }

    /// The flush succeeded.
    pub fn succeeded(&mut self) {
        self.running = false;
        self.failures = 0;
    }

    /// The flush failed; it becomes due again after 1, 2, 4, 8, 16, 16… seconds.
    pub fn failed(&mut self, now: Duration) {
        self.running = false;
        let wait = FIRST_RETRY * (1 << self.failures.min(4));
        self.failures += 1;
        self.retry_at = now + wait.min(LAST_RETRY);
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_flush_is_due_by_interval_or_by_size_but_not_while_one_runs() {
        let mut schedule = FlushSchedule::new(secs(10), 100, secs(0));
        assert_eq!(schedule.due(secs(9), 99), None);
        assert_eq!(schedule.due(secs(9), 100), Some(FlushReason::Size));
        assert_eq!(schedule.due(secs(10), 0), Some(FlushReason::Interval));
        schedule.started(secs(10));
        assert_eq!(schedule.due(secs(30), 1000), None);
        schedule.succeeded();
        assert_eq!(schedule.due(secs(19), 0), None);
        assert_eq!(schedule.due(secs(20), 0), Some(FlushReason::Interval));
    }

    #[test]
    fn a_failed_flush_is_repeated_with_growing_pauses_whatever_the_size() {
        let mut schedule = FlushSchedule::new(secs(60), 100, secs(0));
        let mut now = secs(0);
        for pause in [1, 2, 4, 8, 16, 16, 16] {
            schedule.started(now);
            schedule.failed(now);
            assert_eq!(schedule.due(now + secs(pause) - secs(1) / 2, 1000), None);
            now += secs(pause);
            assert_eq!(schedule.wake_at(), now);
            assert_eq!(schedule.due(now, 0), Some(FlushReason::Retry));
        }
        assert_eq!(schedule.failures(), 7);
        schedule.started(now);
        schedule.succeeded();
        // What gathered meanwhile has waited longer than the interval.
        assert_eq!(schedule.due(now, 0), Some(FlushReason::Interval));
    }

    #[test]
    fn an_interval_below_a_second_is_raised_to_a_second() {
        let schedule = FlushSchedule::new(Duration::ZERO, 1, secs(0));
        assert_eq!(schedule.due(secs(0), 0), None);
        assert_eq!(schedule.due(secs(1), 0), Some(FlushReason::Interval));
    }
}
