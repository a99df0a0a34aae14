//! Reading a cluster's transactional data at a timestamp, as any client does: region routing and
//! lock resolving included. Used by probes (is a range empty?), by scan digests, and to clear away
//! locks that hold back a checkpoint.

mod error;
mod locks;
mod region_call;
mod resolve;
mod scan;

pub use error::{KvError, region_error_text};
pub use resolve::{HeldLock, LockMode, LockReport, resolve_locks};
pub use scan::{KvClient, Scan};
