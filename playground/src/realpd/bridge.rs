//! From the store's blocking code to PD's asynchronous client.
//!
//! A future runs on the playground's runtime while the calling thread waits; so a call works inside
//! and outside of any runtime. Called by threads that may block.

use std::future::Future;
use std::sync::mpsc;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::error::RealPdError;

/// See the module.
pub(super) struct Bridge(Handle);

impl Bridge {
    pub(super) fn new(runtime: Handle) -> Self {
        Bridge(runtime)
    }

    /// Runs until it is aborted.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.0.spawn(work).abort_handle()
    }

    /// Waits for the outcome; fails if the runtime ends before.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, RealPdError> {
        let (done, outcome) = mpsc::sync_channel(1);
        self.0.spawn(async move {
            // Nobody waits any more if this fails.
            let _ = done.send(work.await);
        });
        outcome.recv().map_err(|_| RealPdError::Stopped)
    }
}
