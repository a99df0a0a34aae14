//! A small world around the observer in which everything can go wrong on purpose.
//!
//! One thread, virtual time, one seed: the same seed twice gives the same bytes in the same
//! objects. The observer's own parts run in it ([`pitr_observer::ShardCore`], `Flusher`,
//! `Publisher`); only threads and clocks are replaced. The invariant that every scenario checks:
//!
//! > restore at the largest `.ts` = the store at that ts
//!
//! - [`store`]: the store that is observed, and the model of what it holds at any ts;
//! - [`archive`]: an own reader of the archive, which restores from bytes;
//! - [`node`]: the observer of the store, from events to publication, as one value that can die;
//! - [`world`]: the three together, step by step;
//! - [`scenario`]: what is played.

pub mod archive;
pub mod node;
pub mod pd;
pub mod scenario;
pub mod store;
pub mod world;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The invariant does not hold.
    #[error("at checkpoint {ts}: {what}")]
    Violation {
        /// The checkpoint that promises too much.
        ts: u64,
        /// What is wrong.
        what: String,
    },
    /// Bytes of the archive cannot be read.
    #[error("{object}: {reason}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// The run did not get where it had to get.
    #[error("stuck: {0}")]
    Stuck(String),
    /// The storage failed where no fault was planned.
    #[error(transparent)]
    Storage(#[from] pitr_storage::StorageError),
    /// The observer gave up.
    #[error("the observer gave up: {0}")]
    Observer(String),
}
