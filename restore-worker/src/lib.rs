//! Durable log to engine: select, plan, fetch, verify, filter, rewrite, merge, SST, ingest.

pub mod engine;
