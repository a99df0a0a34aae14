//! The contract of the storage crate, seen from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "it/cloud_suite.rs"]
mod cloud_suite;
#[path = "it/cloud_urls.rs"]
mod cloud_urls;
#[path = "it/clouds/mod.rs"]
mod clouds;
#[path = "it/conformance.rs"]
mod conformance;
#[path = "it/crash.rs"]
mod crash;
#[path = "it/fault.rs"]
mod fault;
#[path = "it/local.rs"]
mod local;
#[path = "it/minio.rs"]
mod minio;
#[path = "../../interop/minio_server.rs"]
mod minio_server;
#[path = "it/s3.rs"]
mod s3;
