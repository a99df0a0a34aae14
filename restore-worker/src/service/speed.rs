//! `SetDownloadSpeedLimit`: limits of several tasks, the smallest of which holds, and the one
//! clock by which all downloads and applies of the process go.
//!
//! Rules as in TiKV (tikv/tikv `src/import/sst_service.rs` DownloadSpeedLimitManager): 0 removes
//! a task's limit; a named task needs a time to live; without a name and without one a limit is
//! permanent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_env::Clock;
use pitr_proto::import_sstpb::SetDownloadSpeedLimitRequest;

/// Bytes are granted for this long at a time, so that a new limit is felt soon.
const QUANTUM: Duration = Duration::from_millis(100);
/// Tasks that can have a limit at once; far above any number of restores.
const MAX_TASKS: usize = 1024;

pub(super) struct SpeedLimits {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tasks: HashMap<String, Limit>,
    /// Moment of the clock when the bytes that were granted so far have been paid for.
    paid: Option<Duration>,
}

struct Limit {
    bytes_per_second: u64,
    /// A moment of the clock.
    until: Option<Duration>,
}

impl SpeedLimits {
    /// No limit.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let state = Mutex::default();
        SpeedLimits { clock, state }
    }

    /// Applies a request; the text of a refusal is for a gRPC status.
    pub(super) fn set(&self, request: &SetDownloadSpeedLimitRequest) -> Result<(), String> {
        self.set_at(request, self.clock.now())
    }

    fn set_at(&self, request: &SetDownloadSpeedLimitRequest, now: Duration) -> Result<(), String> {
        let (limit, ttl) = (request.speed_limit, request.ttl_seconds);
        let mut state = self.state.lock();
        if limit == 0 {
            state.tasks.remove(&request.task_id);
            return Ok(());
        }
        if !request.task_id.is_empty() && ttl == 0 {
            let task = &request.task_id;
            return Err(format!(
                "InvalidInput: task {task:?} limits without ttl_seconds"
            ));
        }
        state.forget_expired(now);
        if state.tasks.len() >= MAX_TASKS && !state.tasks.contains_key(&request.task_id) {
            return Err(format!(
                "InvalidInput: {MAX_TASKS} tasks have a limit already"
            ));
        }
        let until = match ttl {
            0 => None,
            ttl => now.checked_add(Duration::from_secs(ttl)),
        };
        let limit = Limit {
            bytes_per_second: limit,
            until,
        };
        state.tasks.insert(request.task_id.clone(), limit);
        Ok(())
    }

    /// Bytes per second that hold now; `None` is no limit.
    pub(super) fn current(&self) -> Option<u64> {
        self.state.lock().current(self.clock.now())
    }

    /// Waits until `bytes` may pass.
    pub(super) async fn pass(&self, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            let (granted, due) = {
                let mut state = self.state.lock();
                let now = self.clock.now();
                let Some(rate) = state.current(now) else {
                    return;
                };
                let granted = left.min((rate as u128 * QUANTUM.as_millis() / 1000).max(1) as u64);
                let takes = Duration::from_secs_f64(granted as f64 / rate as f64);
                let begin = state.paid.unwrap_or(now).max(now);
                let due = begin + takes;
                state.paid = Some(due);
                (granted, due)
            };
            left -= granted;
            self.clock.sleep(due.saturating_sub(self.clock.now())).await;
        }
    }
}

impl State {
    fn current(&mut self, now: Duration) -> Option<u64> {
        self.forget_expired(now);
        let limit = self.tasks.values().map(|l| l.bytes_per_second).min();
        if limit.is_none() {
            self.paid = None;
        }
        limit
    }

    fn forget_expired(&mut self, now: Duration) {
        self.tasks
            .retain(|_, limit| limit.until.is_none_or(|until| now < until));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use pitr_env::SystemClock;
    use proptest::prelude::*;

    use super::*;

    fn limits() -> SpeedLimits {
        SpeedLimits::new(Arc::new(SystemClock::new()))
    }

    fn request(task_id: &str, speed_limit: u64, ttl_seconds: u64) -> SetDownloadSpeedLimitRequest {
        SetDownloadSpeedLimitRequest {
            speed_limit,
            task_id: task_id.to_owned(),
            ttl_seconds,
        }
    }

    #[test]
    fn the_smallest_limit_alive_holds() {
        let limits = limits();
        let now = Duration::from_secs(1_000);
        let set = |task: &str, limit, ttl| limits.set_at(&request(task, limit, ttl), now);
        let current = |seconds| {
            let mut state = limits.state.lock();
            state.current(now + Duration::from_secs(seconds))
        };
        assert_eq!(current(0), None);
        set("", 300, 0).unwrap();
        set("a", 100, 10).unwrap();
        set("b", 200, u64::MAX).unwrap();
        assert_eq!(current(9), Some(100));
        assert_eq!(current(11), Some(200), "a has expired, b never does");
        set("b", 0, 0).unwrap();
        assert_eq!(current(11), Some(300));
        set("", 0, 0).unwrap();
        assert_eq!(current(11), None);
        assert!(set("a", 1, 0).is_err());
    }

    #[tokio::test]
    async fn all_who_pass_share_one_rate_and_a_lifted_limit_frees_them() {
        let limits = Arc::new(limits());
        limits.set(&request("", 10_000, 0)).unwrap();
        let began = Instant::now();
        let pass = |bytes| {
            let limits = Arc::clone(&limits);
            tokio::spawn(async move { limits.pass(bytes).await })
        };
        let (a, b) = (pass(1_000), pass(3_000));
        a.await.unwrap();
        b.await.unwrap();
        let took = began.elapsed().as_secs_f64();
        assert!(took >= 0.39, "{took}");
        let began = Instant::now();
        let endless = pass(1_000_000_000);
        tokio::time::sleep(Duration::from_millis(150)).await;
        limits.set(&request("", 0, 0)).unwrap();
        endless.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10));
        limits.pass(u64::MAX).await;
    }

    /// A clock that jumps to the end of every wait.
    #[derive(Default)]
    struct Jumps(Mutex<Duration>);

    impl Clock for Jumps {
        fn now(&self) -> Duration {
            *self.0.lock()
        }

        fn wall(&self) -> std::time::SystemTime {
            std::time::SystemTime::UNIX_EPOCH
        }

        fn sleep(&self, time: Duration) -> pitr_env::Sleep {
            *self.0.lock() += time;
            Box::pin(std::future::ready(()))
        }
    }

    proptest! {
        #[test]
        fn bytes_take_exactly_the_time_that_the_rate_gives_them(
            rate in 1u64..1 << 40,
            pieces in prop::collection::vec(0u64..1 << 30, 1..8),
        ) {
            let total: u64 = pieces.iter().sum();
            // Bounds the number of steps, of a tenth of a second each.
            prop_assume!(total / rate < 500);
            let clock = Arc::new(Jumps::default());
            let limits = SpeedLimits::new(clock.clone());
            limits.set(&request("", rate, 0)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(async {
                for piece in &pieces {
                    limits.pass(*piece).await;
                }
            });
            let (took, wanted) = (clock.now().as_secs_f64(), total as f64 / rate as f64);
            prop_assert!((took - wanted).abs() < 1e-3 * wanted + 1e-4, "{} {}", took, wanted);
        }
    }

    #[test]
    fn no_more_tasks_have_a_limit_than_are_remembered_and_those_may_change_theirs() {
        let limits = limits();
        for task in 0..MAX_TASKS {
            limits.set(&request(&task.to_string(), 100, 60)).unwrap();
        }
        assert!(limits.set(&request("one more", 100, 60)).is_err());
        limits.set(&request("7", 50, 60)).unwrap();
        assert_eq!(limits.current(), Some(50));
        limits.set(&request("7", 0, 0)).unwrap();
        limits.set(&request("one more", 70, 60)).unwrap();
        assert_eq!(limits.current(), Some(70));
    }
}
