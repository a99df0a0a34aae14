//! The binary `tikv-pitr`: verbs, configuration, the running sidecar and the adapters between the
//! libraries (`observer`, `restore-worker`) and a cluster. A library only so that tests can call
//! what the verbs call.

pub mod admin;
pub mod allocator;
pub mod archive;
pub mod cli;
pub mod cluster;
pub mod codes;
pub mod config;
pub mod failure;
pub mod fitness;
pub mod front;
pub mod juicefs;
pub mod log_backup;
pub mod members;
mod own_log_backup;
pub mod pause;
pub mod process;
pub mod ranges;
pub mod restore;
pub mod scan;
pub mod serve;
pub mod start;
pub mod storage;
pub mod time;
