//! The contract of the observer: what it may claim, what it writes, what survives failures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Counts what a thread allocates, for the tests of the hot path.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[path = "it/embedded.rs"]
mod embedded;
#[path = "it/flush.rs"]
mod flush;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/hot.rs"]
mod hot;
#[path = "it/memory.rs"]
mod memory;
#[path = "it/publish.rs"]
mod publish;
#[path = "it/support.rs"]
mod support;
#[path = "it/threads.rs"]
mod threads;
