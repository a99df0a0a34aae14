//! The crate's contract, on archives that a real TiKV wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/apply.rs"]
mod apply;
#[path = "it/apply_errors.rs"]
mod apply_errors;
#[path = "it/cutting.rs"]
mod cutting;
#[path = "it/damage.rs"]
mod damage;
#[path = "it/desk.rs"]
mod desk;
#[path = "it/download.rs"]
mod download;
#[path = "it/embedded.rs"]
mod embedded;
#[path = "it/environment.rs"]
mod environment;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/lies.rs"]
mod lies;
#[path = "it/memory_engine.rs"]
mod memory_engine;
#[path = "it/model.rs"]
mod model;
#[path = "it/planning.rs"]
mod planning;
#[path = "it/reading.rs"]
mod reading;
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
#[path = "it/transfer.rs"]
mod transfer;
#[path = "it/verify.rs"]
mod verify;
