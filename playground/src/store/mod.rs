//! The store: transactional data on RocksDB, its regions, and the services on top.

pub mod change;
