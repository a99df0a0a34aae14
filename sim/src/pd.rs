//! The part of PD that publication talks to. It outlives every crash of the observer.

use async_trait::async_trait;
use parking_lot::Mutex;
use pitr_format::{Class, Ts};
use pitr_observer::{ProgressSink, SinkError};

#[derive(Default)]
struct State {
    global: Option<Ts>,
    storage: Ts,
    /// Calls to fail from now on.
    refusals: u32,
}

/// PD's values; can refuse a number of calls.
#[derive(Default)]
pub struct SimPd(Mutex<State>);

impl SimPd {
    /// The global checkpoint, if one was ever raised.
    pub fn global(&self) -> Option<Ts> {
        self.0.lock().global
    }

    /// The storage checkpoint.
    pub fn storage_checkpoint(&self) -> Ts {
        self.0.lock().storage
    }

    /// Fails the next `calls` calls.
    pub fn refuse(&self, calls: u32) {
        self.0.lock().refusals = calls;
    }

    fn answer<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T, SinkError> {
        let mut state = self.0.lock();
        if state.refusals > 0 {
            state.refusals -= 1;
            return Err(SinkError::new(Class::Retry, "PD is not reachable"));
        }
        Ok(act(&mut state))
    }
}

#[async_trait]
impl ProgressSink for SimPd {
    async fn raise_global(&self, ts: Ts) -> Result<Ts, SinkError> {
        self.answer(|state| *state.global.insert(state.global.unwrap_or(ts).max(ts)))
    }

    async fn set_storage_checkpoint(&self, ts: Ts) -> Result<(), SinkError> {
        self.answer(|state| state.storage = ts)
    }
}
