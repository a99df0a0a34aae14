//! What the coordinator of a task does about time: which parts it asks for, when it warns, pauses,
//! or looks for locks. Pure: time comes as an argument, nothing is done here.
//!
//! The figures are those of the stock advancer (pingcap/tidb
//! `br/pkg/streamhelper/config/advancer_conf.go`), which are made for a flush every three minutes,
//! as shares of the interval that is in force.

use std::time::Duration;

use pitr_format::Ts;

/// How the coordinator treats its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Longest time between two flushes of a store.
    pub flush_interval: Duration,
    /// Lag at which a task is paused; stock: 48 h.
    pub lag_limit: Duration,
    /// How long a checkpoint stands still before locks are looked for; stock: 3 min. Nothing:
    /// whoever tails the regions does that.
    pub standstill: Option<Duration>,
}

/// What a lag calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LagStage {
    /// Nothing.
    Fine,
    /// A quarter of the limit: it is told.
    Warn,
    /// Half of the limit: it is told as an error, and every store is asked to flush.
    Urge,
    /// The limit: the task is paused, so that GC is not held for ever.
    Pause,
}

impl Policy {
    /// Parts that lag by more are asked for, whether their stores tell of themselves or not;
    /// earlier when one of them does not.
    pub fn poll_threshold(&self, all_tell: bool) -> Duration {
        let healthy = self.flush_interval * 4 / 3;
        match all_tell {
            true => healthy,
            false => healthy * 9 / 20,
        }
    }

    /// How often it is looked whether something lags: a fifteenth of the interval, as 12 s are of
    /// three minutes.
    pub fn tick(&self) -> Duration {
        let tick = self.flush_interval / 15;
        tick.clamp(Duration::from_millis(500), Duration::from_secs(12))
    }

    /// What the lag of a checkpoint calls for.
    pub fn lag_stage(&self, lag: Duration) -> LagStage {
        let reached = |part: u32| lag >= self.lag_limit / part;
        match () {
            () if reached(1) => LagStage::Pause,
            () if reached(2) => LagStage::Urge,
            () if reached(4) => LagStage::Warn,
            () => LagStage::Fine,
        }
    }
}

/// Keeps the pause of a task that lags too much from undoing a resume: it gets a quarter of the limit to catch
/// up, from when it was last seen paused, or from when a coordinator first saw that it lags.
#[derive(Clone, Debug, Default)]
pub struct Grace {
    since: Option<Duration>,
}

impl Grace {
    /// The task is paused, or lags as this coordinator begins (`moment` on any clock that only rises).
    pub fn begin(&mut self, moment: Duration) {
        self.since = Some(moment);
    }

    /// Whether the task may still catch up.
    pub fn lasts(&self, policy: &Policy, moment: Duration) -> bool {
        let until = |since: Duration| since + policy.lag_limit / 4;
        self.since.is_some_and(|since| moment < until(since))
    }
}

/// How far `checkpoint` is behind PD's time.
pub fn lag(now: Ts, checkpoint: Ts) -> Duration {
    Duration::from_millis(now.physical_ms().saturating_sub(checkpoint.physical_ms()))
}

/// The ts that lies `by` before `now`.
pub fn earlier(now: Ts, by: Duration) -> Ts {
    let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    Ts::compose(now.physical_ms().saturating_sub(by), 0)
}

/// Parts up to this much above a checkpoint that stands still are searched for locks with it.
const NEIGHBOURS: Duration = Duration::from_secs(60);

/// Notices that a checkpoint stands still.
#[derive(Clone, Debug)]
pub struct Standstill {
    at: Ts,
    since: Duration,
}

impl Standstill {
    /// The checkpoint is `at` now (`moment` on any clock that only rises).
    pub fn new(at: Ts, moment: Duration) -> Self {
        Standstill { at, since: moment }
    }

    /// Where the checkpoint is. When it stands for `patience`: the ts below which parts are
    /// searched for locks. Then it is patient again.
    pub fn look(&mut self, checkpoint: Ts, moment: Duration, patience: Duration) -> Option<Ts> {
        if checkpoint > self.at {
            (self.at, self.since) = (checkpoint, moment);
        }
        if moment.saturating_sub(self.since) < patience {
            return None;
        }
        self.since = moment;
        let ms = checkpoint.physical_ms() + NEIGHBOURS.as_millis() as u64;
        Some(Ts::compose(ms, 0))
    }

    /// For how long it stands.
    pub fn lasts(&self, moment: Duration) -> Duration {
        moment.saturating_sub(self.since)
    }
}

/// What one task needs of GC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its checkpoint is not known yet.
    Unknown,
    /// Everything from this checkpoint on.
    From(Ts),
    /// Nothing any more: it lags by more than the limit.
    LetGo,
}

/// What becomes of the coordinator's service safepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafePoint {
    /// There is no task: it goes.
    Remove,
    /// It stays as it is, until it expires.
    Leave,
    /// It stands here: one below the smallest checkpoint of all tasks, so that a scan *at* a
    /// checkpoint finds every version.
    At(Ts),
}

/// The safepoint that serves all tasks.
pub fn safe_point(needs: impl IntoIterator<Item = Need>) -> SafePoint {
    let mut point = SafePoint::Remove;
    for need in needs {
        point = match (need, point) {
            (Need::Unknown, _) => return SafePoint::Leave,
            (Need::LetGo, SafePoint::Remove) => SafePoint::Leave,
            (Need::LetGo, point) => point,
            (Need::From(ts), SafePoint::At(least)) => SafePoint::At(least.min(ts.prev())),
            (Need::From(ts), _) => SafePoint::At(ts.prev()),
        };
    }
    point
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock() -> Policy {
        Policy {
            flush_interval: Duration::from_secs(180),
            lag_limit: Duration::from_secs(48 * 3600),
            standstill: Some(Duration::from_secs(180)),
        }
    }

    #[test]
    fn with_three_minutes_between_flushes_the_figures_are_those_of_the_stock_advancer() {
        let policy = stock();
        assert_eq!(policy.poll_threshold(true), Duration::from_secs(240));
        assert_eq!(policy.poll_threshold(false), Duration::from_secs(108));
        assert_eq!(policy.tick(), Duration::from_secs(12));
        let fast = Policy {
            flush_interval: Duration::from_secs(3),
            ..stock()
        };
        assert_eq!(fast.poll_threshold(true), Duration::from_secs(4));
        assert_eq!(fast.tick(), Duration::from_millis(500));
    }

    #[test]
    fn a_lag_is_told_then_urged_then_pauses_the_task() {
        let hours = |hours: u64| stock().lag_stage(Duration::from_secs(hours * 3600));
        let stages = [11, 12, 23, 24, 47, 48].map(hours);
        use LagStage::{Fine, Pause, Urge, Warn};
        assert_eq!(stages, [Fine, Warn, Warn, Urge, Urge, Pause]);
    }

    #[test]
    fn a_task_that_was_resumed_over_its_limit_has_a_quarter_of_it_to_catch_up() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let mut grace = Grace::default();
        assert!(!grace.lasts(&stock(), hours(1)));
        for moment in [2, 3] {
            grace.begin(hours(moment));
        }
        let lasts = [14, 15].map(|moment| grace.lasts(&stock(), hours(moment)));
        assert_eq!(lasts, [true, false]);
    }

    #[test]
    fn a_checkpoint_that_moves_is_never_searched_for_locks() {
        let seconds = Duration::from_secs;
        let mut still = Standstill::new(Ts::compose(1_000, 0), seconds(0));
        for moment in 1..100 {
            let checkpoint = Ts::compose(1_000 + moment, 0);
            assert_eq!(
                still.look(checkpoint, seconds(2 * moment), seconds(3)),
                None
            );
        }
    }

    #[test]
    fn one_that_stands_is_searched_once_a_patience_with_its_neighbours() {
        let seconds = Duration::from_secs;
        let at = Ts::compose(1_000, 7);
        let mut still = Standstill::new(at, seconds(10));
        let mut look = |moment| still.look(at, seconds(moment), seconds(180));
        assert_eq!(look(189), None);
        assert_eq!(look(190), Some(Ts::compose(61_000, 0)));
        assert_eq!(look(191), None);
        assert_eq!(look(370), Some(Ts::compose(61_000, 0)));
        assert_eq!(still.lasts(seconds(371)), seconds(1));
    }

    #[test]
    fn a_checkpoint_that_falls_back_counts_as_standing() {
        let mut still = Standstill::new(Ts::compose(5_000, 0), Duration::ZERO);
        let look = still.look(
            Ts::compose(4_000, 0),
            Duration::from_secs(9),
            Duration::from_secs(9),
        );
        assert_eq!(look, Some(Ts::compose(64_000, 0)));
    }

    #[test]
    fn the_safepoint_is_below_every_task_and_left_alone_while_one_is_unknown() {
        let from = |ts| Need::From(Ts::new(ts));
        assert_eq!(safe_point([from(30), from(20)]), SafePoint::At(Ts::new(19)));
        assert_eq!(safe_point([from(30), Need::Unknown]), SafePoint::Leave);
        assert_eq!(safe_point([]), SafePoint::Remove);
    }

    #[test]
    fn a_task_over_its_limit_holds_gc_no_longer_but_does_not_take_it_from_others() {
        let from = |ts| Need::From(Ts::new(ts));
        assert_eq!(safe_point([Need::LetGo]), SafePoint::Leave);
        for needs in [[Need::LetGo, from(30)], [from(30), Need::LetGo]] {
            assert_eq!(safe_point(needs), SafePoint::At(Ts::new(29)));
        }
    }

    #[test]
    fn a_lag_is_never_negative_and_earlier_never_below_nothing() {
        assert_eq!(lag(Ts::compose(5, 0), Ts::compose(9, 0)), Duration::ZERO);
        let now = Ts::compose(5_000, 77);
        assert_eq!(earlier(now, Duration::from_secs(2)), Ts::compose(3_000, 0));
        assert_eq!(earlier(now, Duration::from_secs(9)), Ts::ZERO);
    }
}
