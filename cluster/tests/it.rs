//! Contract of the crate: golden change streams of a real store, and error handling against small
//! servers of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "it/cdc.rs"]
mod cdc;
#[path = "it/etcd.rs"]
mod etcd;
#[path = "it/fake.rs"]
mod fake;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/pd.rs"]
mod pd;
#[path = "it/publisher.rs"]
mod publisher;
#[path = "it/store.rs"]
mod store;
#[path = "it/stream.rs"]
mod stream;
#[path = "it/tls.rs"]
mod tls;
#[path = "it/tracker.rs"]
mod tracker;
