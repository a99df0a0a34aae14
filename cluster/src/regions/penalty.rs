//! How long a failing range waits. Kept per range, so that a split does not start over, and
//! forgotten after five quiet minutes; a success does not reset it, because a range that fails
//! right after each scan would otherwise be scanned in a tight loop.
//!
//! Source: pingcap/ticdc `logservice/logpuller/region_failure_handler.go`.

use std::time::Duration;

use pitr_format::EncodedRange;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::cdc::{EndKind, EndReason};

const FORGET: Duration = Duration::from_secs(300);

struct Penalty {
    range: EncodedRange,
    /// For errors of the region.
    region: Backoff,
    /// For a store or a client that has too much to do.
    load: Backoff,
    until: Instant,
    touched: Instant,
}

#[derive(Default)]
pub(super) struct Penalties {
    entries: Vec<Penalty>,
}

impl Penalties {
    /// Notes a failure; returns when to try again and how often the range failed before.
    pub fn note(
        &mut self,
        range: &EncodedRange,
        reason: &EndReason,
        seed: u64,
        now: Instant,
    ) -> (Instant, u32) {
        self.entries.retain(|entry| now < entry.touched + FORGET);
        let overlapping = self
            .entries
            .iter()
            .filter(|entry| entry.range.intersect(range).is_some())
            .max_by_key(|entry| entry.region.attempts() + entry.load.attempts());
        let (mut region, mut load) = match overlapping {
            Some(entry) => (entry.region.clone(), entry.load.clone()),
            None => (
                Backoff::for_regions(seed),
                Backoff::new(Duration::from_secs(1), Duration::from_secs(30), seed),
            ),
        };
        let before = region.attempts() + load.attempts();
        let delay = match reason.kind {
            EndKind::Congested | EndKind::Overrun | EndKind::LargeTransaction => load.next_delay(),
            _ => region.next_delay(),
        };
        let until = now + delay.max(reason.retry_after.unwrap_or_default());
        // What lies inside the failing range is replaced; a wider entry stays for its other parts.
        self.entries
            .retain(|entry| entry.range.intersect(range).as_ref() != Some(&entry.range));
        self.entries.push(Penalty {
            range: range.clone(),
            region,
            load,
            until,
            touched: now,
        });
        (until, before)
    }

    /// Forgets the failures of what lies inside of a range.
    pub fn forgive(&mut self, range: &EncodedRange) {
        self.entries
            .retain(|entry| entry.range.intersect(range).as_ref() != Some(&entry.range));
    }

    /// Whether a part of the range has to wait.
    pub fn blocks(&self, range: &EncodedRange, now: Instant) -> bool {
        let blocking = |entry: &&Penalty| now < entry.until;
        let mut entries = self.entries.iter().filter(blocking);
        entries.any(|entry| entry.range.intersect(range).is_some())
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> EncodedRange {
        EncodedRange::new(start, end)
    }

    fn reason(kind: EndKind) -> EndReason {
        EndReason::new(kind, "")
    }

    #[test]
    fn a_split_does_not_start_the_backoff_over_and_quiet_minutes_do() {
        let mut penalties = Penalties::default();
        let start = Instant::now();
        let mut now = start;
        let wrong = reason(EndKind::RegionNotFound);
        for before in 0..5 {
            let (until, attempts) = penalties.note(&range("a", "z"), &wrong, 1, now);
            assert_eq!(attempts, before);
            assert!(penalties.blocks(&range("m", "n"), now));
            assert!(!penalties.blocks(&range("m", "n"), until));
            now = until;
        }
        let (until, attempts) = penalties.note(&range("a", "m"), &wrong, 1, now);
        assert_eq!(attempts, 5, "the half remembers");
        assert!(until - now >= Duration::from_millis(800));
        let later = now + FORGET + Duration::from_secs(3);
        let (until, attempts) = penalties.note(&range("a", "m"), &wrong, 1, later);
        assert_eq!(attempts, 0);
        assert!(until - later <= Duration::from_millis(50));
        assert_eq!(penalties.len(), 1);
    }

    #[test]
    fn a_busy_store_is_left_alone_for_as_long_as_it_asks_and_congestion_for_a_second_at_least() {
        let mut penalties = Penalties::default();
        let now = Instant::now();
        let busy = EndReason {
            retry_after: Some(Duration::from_secs(7)),
            ..reason(EndKind::ServerIsBusy)
        };
        let (until, _) = penalties.note(&range("a", "b"), &busy, 1, now);
        assert!(until - now >= Duration::from_secs(7));
        let (until, _) = penalties.note(&range("c", "d"), &reason(EndKind::Congested), 1, now);
        assert!(until - now >= Duration::from_millis(500));
        assert!(!penalties.blocks(&range("b", "c"), now));
    }
}

#[cfg(test)]
#[path = "penalty_tests.rs"]
mod wait_tests;
