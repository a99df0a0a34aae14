//! Reading a cluster's transactional data at a timestamp, as any client does: region routing and
//! lock resolving included. Used by probes (is a range empty?) and by scan digests.

mod error;
mod locks;
mod region_call;
mod scan;

pub use error::{KvError, region_error_text};
pub use scan::{KvClient, Scan};
