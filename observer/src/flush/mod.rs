//! From open slices to durable, referenced objects.
//!
//! [`generation`] binds payload and proof; [`merge`] lays slices into objects; [`meta`] describes
//! the object that makes them visible; `upload` sends what is missing; [`flusher`] keeps the order
//! of generations. Order: `.log` objects, then
//! `.meta`, then (in [`crate::publish`]) the checkpoint.

pub mod flusher;
pub mod generation;
pub mod merge;
pub mod meta;
mod upload;
