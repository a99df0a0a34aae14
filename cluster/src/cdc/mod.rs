//! The change stream of one store: `cdcpb.ChangeData/EventFeedV2`, multiplexed.
//!
//! ```text
//! store ──► driver (one task: reads, never waits) ──► Feed + Matcher (pure) ──► EventQueue ──► user
//! ```
//!
//! A slow reader breaks every change consumer of the store, so the driver appends to a queue that
//! spills to disk, and when memory and disk are full it gives whole subscriptions back; they are
//! scanned again later. Everything that is held is reserved from the daemon's memory budget.
//! Used by [`crate::regions`].

mod client;
mod driver;
mod event;
mod feed;
mod matcher;
mod parking;
mod pool;
mod prewrites;
mod queue;
mod records;
mod wire;

pub use client::{Address, CdcClient, CdcError, CdcEvents, CdcOptions, CdcStats};
pub use event::{CdcEvent, EndKind, EndReason, SubId};
pub(crate) use feed::registered_range;
pub use feed::{Feed, Subscription};
pub use matcher::MatchError;
pub use pool::NoRoom;
pub use wire::WireError;
