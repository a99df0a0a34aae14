//! The store: transactional data on RocksDB, its regions, and the services on top.
//!
//! | part | role |
//! |---|---|
//! | [`kernel`] | [`Store`]: engine, write lock, `max_ts`, regions, observers |
//! | `group`, [`leaders`], `catch_up` | several stores: what they share, who leads, who comes back |
//! | [`snapshot`] | a point in time of the column families |
//! | [`region`], [`context`] | the partition of the key space and the check in front of commands |
//! | [`lock`] | the value of the lock column family |
//! | [`split`], [`merge`] | regions that change their shape |
//! | [`change`] | what observers of writes are told |
//! | `view`, `command`, `ops` | multi-version reads, the frame of commands, the commands |
//! | [`service`] | `tikvpb.Tikv` on top |

mod catch_up;
pub mod change;
mod command;
pub mod context;
mod error;
#[cfg(test)]
mod fixture;
mod group;
#[cfg(test)]
mod group_tests;
pub mod kernel;
pub mod leaders;
pub mod lock;
pub mod merge;
#[cfg(test)]
mod merge_tests;
mod ops;
pub mod region;
pub mod service;
pub mod snapshot;
pub mod split;
mod view;
mod wait;

pub use kernel::{IdAllocator, OpenError, Store, StoreOptions, WriteGuard};
pub use leaders::TransferError;
pub use merge::MergeError;
pub use region::{RegionIds, RegionMap, range_of};
pub(crate) use region::{data_range, first_region};
pub use snapshot::{Cursor, Snapshot};
pub use split::SplitError;
