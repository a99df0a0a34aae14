//! What a caller can do about an error.

/// The three answers to "what now?" that every error enum of the project gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call may succeed later: wait and repeat it.
    Retry,
    /// The caller's view is stale (region, leader, store): reload it, then repeat.
    Refresh,
    /// Repeating cannot help: damaged bytes, wrong argument, missing object, no permission.
    Permanent,
}
