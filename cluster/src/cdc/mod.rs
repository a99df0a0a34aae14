//! The change stream of one store: `cdcpb.ChangeData/EventFeedV2`, multiplexed.
//!
//! ```text
//! store ──► driver (one task: reads, never waits) ──► Feed + Matcher (pure) ──► EventQueue ──► user
//! ```
//!
//! A slow reader breaks every change consumer of the store, so the driver appends to a queue that
//! is bounded in bytes and, when it is full, gives whole subscriptions back, newest first; they
//! are scanned again later. Used by [`crate::regions`].

mod client;
mod driver;
mod event;
mod feed;
mod matcher;
mod queue;
mod records;

pub use client::{CdcClient, CdcError, CdcEvents, CdcOptions, CdcStats};
pub use event::{CdcEvent, EndKind, EndReason, SubId};
pub use feed::{Feed, Subscription};
pub use matcher::{MatchError, Matcher};
