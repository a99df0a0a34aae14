//! From closed slices to stored bytes, on a bounded pool of workers.
//!
//! Small slices wait as plaintext and are compressed after the seal, large ones as soon as they are
//! closed. [`Encoders`] hands a slice to a worker, and the result comes back to whoever assembles
//! the generation. Memory does not grow on the way: the reservation of the plaintext covers the
//! compression and shrinks to what is left.

mod stored;
mod tools;
mod worker;

pub use stored::StoredSlice;
pub(crate) use stored::{Body, Closed, Pieces, Place};
pub(crate) use tools::Tools;
pub(crate) use worker::{EncodeResult, Encoders};

#[cfg(test)]
mod property_tests;
