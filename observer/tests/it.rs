//! The contract of the observer: what it may claim, what it writes, what survives failures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/embedded.rs"]
mod embedded;
#[path = "it/flush.rs"]
mod flush;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/publish.rs"]
mod publish;
#[path = "it/support.rs"]
mod support;
#[path = "it/threads.rs"]
mod threads;
