//! Bytes to types and back: no I/O, no async, no clock. One file per persisted record.
//!
//! Everything here is a pure function of its input. Decoders are bounds-checked, never panic and
//! cap what they allocate, because their input comes from object storage and from the network.

pub mod backup_meta;
pub mod batch;
pub mod checkpoint_ts;
pub mod class;
pub mod compress;
pub mod digest;
pub mod frame;
pub mod key;
pub mod kv;
pub mod lock;
pub mod meta;
pub mod object_name;
pub mod pd_value;
pub mod range;
pub mod record;
pub mod slice;
pub mod start_probe;
pub mod truncate_safepoint;
pub mod ts;
mod varint;
pub mod write_cf;

pub use batch::{RecordBatch, RecordRef};
pub use class::Class;
pub use key::{EncodedKey, KeyError, VersionedKey};
pub use kv::{Cf, KvRecord, OpKind};
pub use range::EncodedRange;
pub use ts::Ts;
