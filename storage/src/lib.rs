//! Where objects rest: the only way the project reads and writes an archive.
//!
//! An archive is a flat set of named objects, as in an object store: a name is a relative path with
//! `/` between its parts, an object is written whole or not at all, and the writer learns only after
//! the bytes are durable that they are. [`Storage`] is that promise; [`open_url`] and
//! [`open_backend`] choose the backend; [`fault::FaultyStorage`] breaks the promise on purpose.
//!
//! Invariants, proven by one conformance suite over all backends (`tests/it/conformance.rs`):
//!
//! * A reader sees the old object or the new one, never a part of either.
//! * When `put` or `put_new` returned `Ok`, the object survives a crash of process and machine.
//! * When they returned an error or were cancelled, the object may be there or not: the caller
//!   repeats the write or looks.
//! * Names cannot leave the archive: absolute names and `..` are refused before any I/O.
//! * No secret of a URL or of a [`pitr_proto::backup::StorageBackend`] shows up in an error or in
//!   [`Storage::uri`].

pub mod cloud;
mod durable_file;
pub mod error;
pub mod fault;
mod local;
pub mod location;
mod memory;
mod name;
mod object_reader;
mod payload;
pub mod redact;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use cloud::CloudOptions;
pub use error::{StorageError, StorageErrorKind};
pub use location::{Location, backend_of_url, open_backend, open_existing_url, open_url};
pub use payload::{MAX_BUFFERED, MAX_PIECE, Payload, Pieces, Segment};

/// The answer of every storage call.
pub type Result<T> = std::result::Result<T, StorageError>;

/// A storage shared between tasks and threads.
pub type SharedStorage = Arc<dyn Storage>;

/// What a listing tells of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectInfo {
    /// Name relative to the root of the archive, `/` between parts, no leading `/`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// An archive's objects. All names are relative to its root; see the crate documentation for the
/// promises that hold for every backend.
#[async_trait]
pub trait Storage: Send + Sync {
    /// Writes the object, replacing one of the same name. Durable when it returns `Ok`.
    async fn put(&self, path: &str, data: Payload) -> Result<()>;

    /// Writes the object if none of that name exists, else [`StorageErrorKind::AlreadyExists`]
    /// and the old object is untouched.
    async fn put_new(&self, path: &str, data: Payload) -> Result<()>;

    /// The whole object. Callers that do not trust its size ask [`Storage::head`] first.
    async fn get(&self, path: &str) -> Result<Bytes>;

    /// Exactly the bytes of `range`; [`StorageErrorKind::OutOfRange`] if the object ends earlier.
    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes>;

    /// Name and size, or `None` if there is no such object.
    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>>;

    /// Every object whose name begins with `prefix` (any string, not only whole parts; empty =
    /// all), sorted by name. Unfinished writes are never listed. A root that does not exist is
    /// [`StorageErrorKind::NotFound`], so that a mistyped archive is not taken for an empty one.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;

    /// Removes the object; it is no error if it does not exist.
    async fn delete(&self, path: &str) -> Result<()>;

    /// Where this is, without secrets: for messages and logs.
    fn uri(&self) -> String;

    /// Removes what writers left behind that died in the middle of a write, if not touched for
    /// `older_than`; returns how many. Backends that leave nothing behind have nothing to do.
    async fn remove_leftovers(&self, older_than: Duration) -> Result<u64> {
        let _ = older_than;
        Ok(0)
    }
}
