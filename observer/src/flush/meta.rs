//! The `.meta` object of a generation: the list of its slices under a name that readers can skip
//! by. An empty generation has one too: readers that follow every store wait for one per flush.
//! Content and name are [`pitr_format::meta`] and [`pitr_format::object_name`].

use bytes::Bytes;
use pitr_format::Ts;
use pitr_format::meta::{build_metadata, encode_metadata};
use pitr_format::object_name::MetaName;
use pitr_proto::backup::DataFileGroup;

/// What goes into one meta besides its groups.
#[derive(Clone, Copy, Debug)]
pub struct MetaFacts {
    /// Ts of the flush.
    pub flush_ts: Ts,
    /// The store whose log this is.
    pub store_id: u64,
    /// Resolved ts of the store's regions at the seal, limited by the global checkpoint.
    pub resolved_ts: Ts,
}

/// One `.meta` object, ready to be written.
#[derive(Clone, Debug)]
pub struct MetaObject {
    /// Full name.
    pub path: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// The meta over `groups` (data groups first).
pub fn build(facts: MetaFacts, groups: Vec<DataFileGroup>) -> MetaObject {
    let metadata = build_metadata(facts.store_id, facts.resolved_ts, groups);
    MetaObject {
        path: MetaName::of_flush(facts.flush_ts, &metadata).write(),
        bytes: encode_metadata(&metadata),
    }
}
