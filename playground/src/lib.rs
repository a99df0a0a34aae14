//! One process that is a PD and a TiKV store, for demos and tests; never for production: one
//! node, no raft, no replication.

mod durable;
pub mod etcd;
pub mod pd;
pub mod store;
