//! The crate's contract, on archives that a real TiKV wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/damage.rs"]
mod damage;
#[path = "it/download.rs"]
mod download;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/restore.rs"]
mod restore;
#[path = "it/selection.rs"]
mod selection;
#[path = "it/service.rs"]
mod service;
#[path = "it/synthetic.rs"]
mod synthetic;
#[path = "it/targets.rs"]
mod targets;
#[path = "it/verify.rs"]
mod verify;
