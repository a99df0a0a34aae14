//! CPU time of the process: what a stage costs, whoever else uses the machine meanwhile.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of all threads of this process so far, user and kernel.
pub fn process_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let (secs, nanos) = (now.tv_sec.max(0) as u64, now.tv_nsec.max(0) as u32);
    Duration::new(secs, nanos)
}

/// CPU time that `work` takes on all threads, and what it returns.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let before = process_cpu();
    let value = work();
    (process_cpu() - before, value)
}

/// [`timed`] for a future, with whatever runs beside it.
pub async fn timed_async<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let before = process_cpu();
    let value = work.await;
    (process_cpu() - before, value)
}

/// MB (10^6 bytes) per second.
pub fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests run in the same process, so there is no upper bound to compare with.
    #[test]
    fn the_clock_counts_all_that_another_thread_works() {
        let of_thread = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        };
        let burn = move || {
            let mut x = 1u64;
            for i in 0..50_000_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
            }
            of_thread()
        };
        let (counted, worked) = timed(|| std::thread::spawn(burn).join());
        let worked = worked.unwrap();
        assert!(worked > Duration::from_millis(5), "{worked:?}");
        assert!(counted >= worked, "{counted:?} of {worked:?}");
    }

    #[test]
    fn a_rate_is_megabytes_of_ten_to_the_six() {
        assert_eq!(rate(3_000_000, Duration::from_millis(500)), 6.0);
    }
}
