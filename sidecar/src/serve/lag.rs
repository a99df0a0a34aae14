//! How far the archive is behind PD's time, told all the time: also while a flush hangs or fails,
//! which is when people look. Between two answers of PD the local clock measures what has passed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_format::Ts;
use tokio::time::{Instant, sleep};

use super::Context;
use crate::time;

/// How often the figure is renewed.
const EVERY: Duration = Duration::from_millis(250);

/// What the lag is made of.
pub(super) struct LagClock(Mutex<Parts>);

struct Parts {
    told: Ts,
    at: Instant,
    archive: Ts,
}

impl LagClock {
    /// PD says `now`; the archive can be restored to `archive`.
    pub(super) fn new(now: Ts, archive: Ts) -> Arc<Self> {
        let at = Instant::now();
        Arc::new(LagClock(Mutex::new(Parts {
            told: now,
            at,
            archive,
        })))
    }

    /// PD told its time.
    pub(super) fn told(&self, now: Ts) {
        let mut parts = self.0.lock();
        (parts.told, parts.at) = (now, Instant::now());
    }

    /// The archive's checkpoint moved.
    pub(super) fn reached(&self, archive: Ts) {
        self.0.lock().archive = archive;
    }

    /// PD's time as far as known.
    pub(super) fn now(&self) -> Ts {
        self.read(Instant::now()).0
    }

    /// PD's time as far as known, and the archive's checkpoint.
    fn read(&self, moment: Instant) -> (Ts, Ts) {
        let parts = self.0.lock();
        let passed = moment.saturating_duration_since(parts.at).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        let now = parts.told.physical_ms().saturating_add(passed);
        (Ts::compose(now, 0), parts.archive)
    }
}

/// Shows the lag of a task until it is aborted.
pub(super) async fn show(context: Arc<Context>, task: String, clock: Arc<LagClock>) {
    loop {
        let (now, archive) = clock.read(Instant::now());
        context.metrics.observer.set_lag(&task, now, archive);
        let seconds = time::lag(now, archive).as_secs_f64();
        context
            .board
            .task(&task, |status| status.lag_seconds = Some(seconds));
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_grows_with_the_clock_and_falls_when_the_archive_reaches_further() {
        let clock = LagClock::new(Ts::compose(10_000, 3), Ts::compose(9_000, 1));
        let lag_at = |moment| {
            let (now, archive) = clock.read(moment);
            time::lag(now, archive)
        };
        let told = clock.0.lock().at;
        assert_eq!(lag_at(told), Duration::from_millis(1_000));
        assert_eq!(
            lag_at(told + Duration::from_secs(5)),
            Duration::from_millis(6_000)
        );
        clock.told(Ts::compose(15_500, 0));
        clock.reached(Ts::compose(15_000, 0));
        let told = clock.0.lock().at;
        assert_eq!(lag_at(told), Duration::from_millis(500));
    }
}
