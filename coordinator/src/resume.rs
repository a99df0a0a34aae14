//! When a task that a failure paused is tried again: what was transient has passed sooner or
//! later, and nobody should have to be awake for it. Pure.

use std::time::Duration;

/// The first attempt comes after this time, each later one after twice the time of the one before.
const FIRST: Duration = Duration::from_secs(60);
/// And no later than this.
const LAST: Duration = Duration::from_secs(3600);

/// Attempts to resume one task.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    paused_since: Option<Duration>,
    attempts: u32,
}

impl Resume {
    /// The task runs; `moved`: and its checkpoint does, so that the next pause is a new one.
    pub fn runs(&mut self, moved: bool) {
        self.paused_since = None;
        if moved {
            self.attempts = 0;
        }
    }

    /// The task is paused at this moment; whether to try now.
    pub fn due(&mut self, moment: Duration) -> bool {
        let since = *self.paused_since.get_or_insert(moment);
        let wait = FIRST * 2u32.saturating_pow(self.attempts.min(10));
        moment.saturating_sub(since) >= wait.min(LAST)
    }

    /// It was tried.
    pub fn tried(&mut self) {
        self.attempts += 1;
        self.paused_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of each attempt when nothing helps.
    fn attempts(count: usize) -> Vec<u64> {
        let (mut resume, mut found) = (Resume::default(), Vec::new());
        for second in 0.. {
            if resume.due(Duration::from_secs(second)) {
                resume.tried();
                found.push(second);
                if found.len() == count {
                    break;
                }
            }
        }
        found
    }

    #[test]
    fn attempts_come_after_one_minute_then_rarer_and_once_an_hour_at_least() {
        let found = attempts(9);
        let gaps: Vec<u64> = found.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(found[0], 60);
        // One second is lost until the pause is seen again.
        assert_eq!(gaps[..3], [121, 241, 481]);
        assert_eq!(gaps[6..], [3601, 3601]);
    }

    #[test]
    fn a_task_that_ran_on_begins_anew_and_one_that_did_not_goes_on_counting() {
        let mut resume = Resume::default();
        let seconds = Duration::from_secs;
        assert!(!resume.due(seconds(0)) && resume.due(seconds(60)));
        resume.tried();
        resume.runs(false);
        assert!(!resume.due(seconds(100)) && !resume.due(seconds(160)) && resume.due(seconds(220)));
        resume.tried();
        resume.runs(true);
        assert!(!resume.due(seconds(300)) && resume.due(seconds(360)));
    }
}
