//! A small world around the observer in which everything can go wrong on purpose.
//!
//! One thread, virtual time, one seed: the same seed twice gives the same bytes. The product's own
//! code runs in it (`Observer` with its shards, `Flusher`, `Publisher`, the coordinator's `SpanMap`,
//! and the restore at the end); threads, clock, randomness, storage and PD are doubles whose every step the seed decides.
//! Each call to storage or PD is a *pending call*: it may wait, fail before its effect, fail after
//! it, or be cut off by a crash, so a fault is possible at every action.
//!
//! - [`store`]: the cluster that is observed: regions that split, merge and move between up to three
//!   stores, transactions, versions;
//! - [`source`]: the change stream of a store, which may lag, break, and be refused;
//! - [`env`], [`calls`], [`doubles`]: what an observer gets from outside;
//! - [`node`]: the life of the observer beside a store, from start to crash;
//! - [`coordinator`]: a candidate of the election in the same process; it dies with it;
//! - [`oracle`]: what must hold at every meta and every publication, from the format's rules and
//!   not from our code;
//! - [`restored`]: the real restore, compared with the store;
//! - [`world`], [`steps`], `effects`: all together, step by step;
//! - [`bug`]: mistakes that can be planted to see that the oracle is awake.

pub mod bug;
pub mod calls;
pub mod coordinator;
pub mod doubles;
mod effects;
pub mod env;
pub mod node;
pub mod oracle;
pub mod planted;
mod process;
pub mod restored;
pub mod source;
pub mod steps;
pub mod store;
pub mod trace;
pub mod world;

pub use bug::Bug;
pub use world::{Outcome, play};

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// An invariant does not hold.
    #[error("broken invariant: {0}")]
    Violation(String),
    /// Faults have ceased, and the checkpoint does not come.
    #[error("no progress: {0}")]
    Stuck(String),
    /// The observer gave up, or the simulation itself could not go on.
    #[error("the observer gave up: {0}")]
    Observer(String),
}
