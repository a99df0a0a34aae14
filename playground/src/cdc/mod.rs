//! `cdcpb.ChangeData`: the store's changes as a stream, with the behaviour of a real TiKV.
//!
//! [`hub::Hub`] watches every applied write and knows who subscribed what; [`register`] opens a
//! subscription and runs its initial [`scan`]; [`rows`] turns changes into rows; [`queue`] is the
//! bounded way out to one client; [`ticker`] sends resolved timestamps; [`service`] is the gRPC
//! side.
//!
//! Left out on purpose: RawKV, and two faults of TiKV that a stand-in should not have: keys that
//! begin with `r` are ordinary here, and a lock ends with its removal, not with a write record.

pub mod host;
pub mod hub;
pub mod queue;
pub mod register;
pub mod resolved;
pub mod rows;
pub mod scan;
pub mod service;
#[cfg(test)]
mod tests;
pub mod ticker;
pub mod version;
