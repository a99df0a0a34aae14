//! Archives that a real TiKV wrote, read and rebuilt through the public API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/archive.rs"]
mod archive;
#[path = "it/golden.rs"]
mod golden;
