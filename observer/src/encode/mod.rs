//! From closed slices to stored bytes, on a bounded pool of workers.
//!
//! Small slices wait as plaintext and are compressed after the seal; large ones are compressed by
//! their shard while they grow ([`pitr_format::slice::SliceStream`]). Either way a slice ends here:
//! [`Encoders`] hands it to a worker, which owns a zstd context only while there is work, and the
//! result comes back to whoever assembles the generation. Memory does not grow on the way: the
//! reservation of the plaintext covers the compression and shrinks to what is left.

mod contexts;
mod stored;
mod worker;

pub(crate) use contexts::{Contexts, Lease};
pub use stored::StoredSlice;
pub(crate) use stored::{Body, Closed, Draft, Pieces, Place};
pub(crate) use worker::{EncodeResult, Encoders};

#[cfg(test)]
mod property_tests;
