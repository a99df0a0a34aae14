//! Contract of the crate: golden change streams of a real store, and error handling against small
//! servers of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/golden.rs"]
mod golden;
