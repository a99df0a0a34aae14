//! Waiting between attempts: doubling delays with half jitter, pure (the caller sleeps).
//!
//! The defaults follow TiCDC's region retry: 50 ms … 2 s. Source: pingcap/ticdc
//! `logservice/logpuller/region_failure_handler.go`.

use std::time::Duration;

/// Delays of one retry loop or of one failing range.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempts: u32,
    state: u64,
}

impl Backoff {
    /// Delays from `base`, doubled up to `max`. `seed` spreads the jitter of many ranges.
    pub fn new(base: Duration, max: Duration, seed: u64) -> Self {
        Backoff {
            base,
            max,
            attempts: 0,
            state: seed ^ 0x9E37_79B9_7F4A_7C15,
        }
    }

    /// 50 ms … 2 s.
    pub fn for_regions(seed: u64) -> Self {
        Backoff::new(Duration::from_millis(50), Duration::from_secs(2), seed)
    }

    /// How often a delay was taken since the start or the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts over: the thing worked.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next delay: between half of the doubled base and all of it.
    pub fn next_delay(&mut self) -> Duration {
        let full = self
            .base
            .saturating_mul(1u32 << self.attempts.min(20))
            .min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        let half = full / 2;
        half + half.mul_f64(self.next_unit())
    }

    /// splitmix64: enough to keep many ranges from waking up together.
    fn next_unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_reset() {
        let mut backoff = Backoff::for_regions(7);
        for full in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let full = Duration::from_millis(full);
            let delay = backoff.next_delay();
            assert!(delay >= full / 2 && delay <= full, "{delay:?} of {full:?}");
        }
        for _ in 0..100 {
            assert!(backoff.next_delay() <= Duration::from_secs(2));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(50));
    }

    #[test]
    fn two_ranges_do_not_wait_for_the_same_time() {
        let (mut a, mut b) = (Backoff::for_regions(1), Backoff::for_regions(2));
        assert_ne!(a.next_delay(), b.next_delay());
    }
}
