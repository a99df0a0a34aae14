//! The metadata store that PD carries: the part of etcd v3 that log backup tasks use, on PD's
//! port.
//!
//! [`model::Model`] holds keys, revisions and a bounded history; [`request`] executes requests on
//! it; [`store::EtcdStore`] adds locking, leases and the [`journal`]; [`service`] and [`watch`]
//! are the gRPC side.

pub mod error;
pub mod journal;
pub mod model;
pub mod request;
pub mod service;
pub mod store;
pub mod watch;
