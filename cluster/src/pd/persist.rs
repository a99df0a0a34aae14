//! The retry loop of every call: attempts until one succeeds, one fails for good or the time is over.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::error::{PdError, Verdict};
use crate::backoff::Backoff;

/// A call and how long it is tried.
pub(super) struct Persistence<E> {
    pub call: &'static str,
    pub limit: Duration,
    /// Spreads the delays of many clients.
    pub seed: u64,
    /// Every URL that was tried, for the error.
    pub endpoints: E,
}

impl<E: Fn() -> Vec<String>> Persistence<E> {
    /// Runs `attempt` again after each failure that can pass. The error of a call whose time is over
    /// names what was heard last: an attempt that the deadline cuts off has told nothing.
    pub async fn run<T, F, Fut>(&self, attempt: F) -> Result<T, PdError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, Verdict>>,
    {
        let deadline = Instant::now() + self.limit;
        let mut backoff = Backoff::new(
            Duration::from_millis(100),
            Duration::from_secs(1),
            self.seed,
        );
        let mut last = "no answer in time".to_owned();
        loop {
            match timeout_at(deadline, attempt()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Verdict::Fail(error))) => return Err(error),
                Ok(Err(Verdict::Wait(text) | Verdict::Rediscover(text))) => last = text,
                Err(_) => {}
            }
            let delay = backoff.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(PdError::Unreachable {
                    endpoints: (self.endpoints)(),
                    call: self.call,
                    seconds: self.limit.as_secs(),
                    last,
                });
            }
            sleep(delay).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn told_after(first: Option<&str>) -> String {
        let attempts = AtomicU32::new(0);
        let call = Persistence {
            call: "GetMembers",
            limit: Duration::from_millis(300),
            seed: 1,
            endpoints: || vec!["https://pd:2379".to_owned()],
        };
        let ended: Result<(), PdError> = call
            .run(|| {
                let heard = first.filter(|_| attempts.fetch_add(1, Ordering::Relaxed) == 0);
                async move {
                    match heard {
                        Some(text) => Err(Verdict::Rediscover(text.to_owned())),
                        None => std::future::pending().await,
                    }
                }
            })
            .await;
        ended.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn an_attempt_that_the_deadline_cuts_off_does_not_hide_the_reason_heard_before_it() {
        let told = told_after(Some("not signed by our CA")).await;
        assert!(told.contains("last: not signed by our CA"), "{told}");
        assert!(told.contains("https://pd:2379"), "{told}");
    }

    #[tokio::test]
    async fn silence_is_told_where_nothing_was_heard() {
        let told = told_after(None).await;
        assert!(told.contains("last: no answer in time"), "{told}");
    }
}
