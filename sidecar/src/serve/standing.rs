//! What holds a checkpoint: the regions that are tailed, why others are not, and from both the one
//! line that an operator wants to read. Written by the reader of the change stream, read by the
//! session; nothing is decided by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_format::{EncodedRange, Ts};
use tokio::time::Instant;

use crate::admin::HeldBy;
use crate::ranges;
use crate::time;

/// Ends that are remembered.
const ENDS: usize = 256;

/// Regions of one session.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Subscription → what it covers.
    tailed: BTreeMap<u64, (u64, EncodedRange)>,
    /// Newest last: region, its range, why it is not tailed.
    ended: VecDeque<(u64, EncodedRange, String)>,
}

impl Regions {
    /// A region is being tailed.
    pub fn started(&self, sub: u64, region_id: u64, range: EncodedRange) {
        self.0.lock().tailed.insert(sub, (region_id, range));
    }

    /// A subscription ended.
    pub fn ended(&self, sub: u64, reason: String) {
        let mut known = self.0.lock();
        if let Some((region_id, range)) = known.tailed.remove(&sub) {
            if known.ended.len() == ENDS {
                known.ended.pop_front();
            }
            known.ended.push_back((region_id, range, reason));
        }
    }

    /// Region at a key and why it holds the checkpoint, as far as known.
    fn at(&self, key: &[u8]) -> (Option<u64>, String) {
        let known = self.0.lock();
        let tailed = known.tailed.values().find(|(_, range)| range.contains(key));
        if let Some((region_id, _)) = tailed {
            let why = "its resolved ts does not move: a transaction that is not finished holds a \
                       lock, or its first scan still runs";
            return (Some(*region_id), why.to_owned());
        }
        let mut newest_first = known.ended.iter().rev();
        match newest_first.find(|(_, range, _)| range.contains(key)) {
            Some((region_id, _, why)) => (Some(*region_id), format!("it is not tailed: {why}")),
            None => (
                None,
                "no region of this store was tailed there: it is led elsewhere, or its scan waits"
                    .to_owned(),
            ),
        }
    }

    /// What holds the checkpoint of a task, or nothing while the lag is what flushes make of it.
    pub fn held_by(
        &self,
        lowest: (EncodedRange, Ts),
        now: Ts,
        usual: Duration,
        failing: Option<&str>,
    ) -> Option<HeldBy> {
        let (range, ts) = lowest;
        if time::lag(now, ts) <= usual {
            return None;
        }
        let (region_id, why) = self.at(&range.start);
        Some(HeldBy {
            region_id,
            range: ranges::show_encoded(&range),
            ts: time::show(ts),
            reason: failing.map_or(why, str::to_owned),
        })
    }
}

/// Records a second, measured over some seconds.
pub(super) struct Rate {
    since: Instant,
    events: u64,
}

impl Rate {
    /// How often the rate is told.
    const EVERY: Duration = Duration::from_secs(2);

    /// Begins to measure with the next call of [`Rate::measure`].
    pub fn new(now: Instant) -> Self {
        Rate {
            since: now,
            events: u64::MAX,
        }
    }

    /// The rate, when it is time for a new figure. `events` only grows.
    pub fn measure(&mut self, now: Instant, events: u64) -> Option<f64> {
        let passed = now.saturating_duration_since(self.since);
        if passed < Self::EVERY {
            return None;
        }
        let new = events.saturating_sub(self.events);
        (self.since, self.events) = (now, events);
        Some(new as f64 / passed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn range(start: &'static str, end: &'static str) -> EncodedRange {
        EncodedRange::new(
            Bytes::from_static(start.as_bytes()),
            Bytes::from_static(end.as_bytes()),
        )
    }

    fn held(regions: &Regions, failing: Option<&str>) -> Option<HeldBy> {
        let lowest = (range("b", "c"), Ts::compose(1_000, 0));
        regions.held_by(
            lowest,
            Ts::compose(9_000, 0),
            Duration::from_secs(5),
            failing,
        )
    }

    #[test]
    fn a_lag_that_a_flush_explains_is_held_by_nothing() {
        let regions = Regions::default();
        let lowest = (range("b", "c"), Ts::compose(5_000, 0));
        let now = Ts::compose(9_000, 0);
        assert_eq!(
            regions.held_by(lowest, now, Duration::from_secs(5), Some("x")),
            None
        );
        assert!(held(&regions, None).is_some());
    }

    #[test]
    fn the_region_and_the_reason_are_named() {
        let regions = Regions::default();
        let nobody = held(&regions, None).unwrap();
        assert_eq!(nobody.region_id, None);
        assert!(nobody.reason.contains("led elsewhere"));

        regions.started(1, 44, range("a", "m"));
        let tailed = held(&regions, None).unwrap();
        assert_eq!(tailed.region_id, Some(44));
        assert!(tailed.reason.contains("lock"));

        regions.ended(1, "not leader".to_owned());
        let ended = held(&regions, None).unwrap();
        assert_eq!(ended.region_id, Some(44));
        assert_eq!(ended.reason, "it is not tailed: not leader");

        regions.started(2, 45, range("a", ""));
        let again = held(&regions, Some("the storage is full")).unwrap();
        assert_eq!(
            (again.region_id, again.reason.as_str()),
            (Some(45), "the storage is full")
        );
    }

    #[test]
    fn the_rate_is_told_every_two_seconds_and_begins_at_nothing() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::new(start);
        assert_eq!(rate.measure(at(1), 500), None);
        assert_eq!(
            rate.measure(at(2), 1_000),
            Some(0.0),
            "what was before does not count"
        );
        assert_eq!(rate.measure(at(6), 1_400), Some(100.0));
        assert_eq!(rate.measure(at(8), 1_400), Some(0.0));
    }

    #[test]
    fn only_the_newest_ends_are_remembered() {
        let regions = Regions::default();
        for sub in 0..2 * ENDS as u64 {
            regions.started(sub, sub, range("x", "y"));
            regions.ended(sub, "split".to_owned());
        }
        assert_eq!(regions.0.lock().ended.len(), ENDS);
        regions.ended(7, "unknown ones are no end".to_owned());
        assert_eq!(regions.0.lock().ended.len(), ENDS);
    }
}
