//! Which events the log shows, changeable while the sidecar runs. The subscriber of `tracing` is
//! one per process, and so is this.

use std::sync::OnceLock;

use tracing_subscriber::{EnvFilter, Registry, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Remembers the filter of the process's log.
pub fn install(handle: reload::Handle<EnvFilter, Registry>) {
    // A second log in one process (tests) is not the one that is heard.
    let _ = FILTER.set(handle);
}

/// The filter in effect.
pub fn current() -> Option<String> {
    FILTER.get()?.with_current(EnvFilter::to_string).ok()
}

/// Sets a filter such as `debug` or `info,pitr_cluster=trace`.
pub fn set(text: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(text.trim()).map_err(|error| error.to_string())?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|error| error.to_string()),
        None => Err("the log of this process cannot be changed".to_owned()),
    }
}
