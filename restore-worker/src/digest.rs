//! Digests of an engine's content: the far end of the two proofs of a restore.

use pitr_format::digest::{RecordDigest, ScanDigest};
use pitr_format::{Cf, Ts};

use crate::browse::{BrowseError, visible_at};
use crate::engine::{Engine, EngineCf};

/// Digest over (user key, value visible at `ts`). See [`visible_at`] for its limits.
pub fn scan_digest<E: Engine + ?Sized>(engine: &E, ts: Ts) -> Result<ScanDigest, BrowseError> {
    let mut digest = ScanDigest::default();
    for pair in visible_at(engine, ts) {
        let (key, value) = pair?;
        digest.add(&key, &value);
    }
    Ok(digest)
}

/// Digest over every record of `default` and `write`, all versions; equal to a report's digests
/// when the engine was empty before the restore.
pub fn record_digest<E: Engine + ?Sized>(engine: &E) -> Result<RecordDigest, BrowseError> {
    let mut digest = RecordDigest::default();
    for cf in [Cf::Default, Cf::Write] {
        for pair in engine.scan(EngineCf::from(cf), &[], &[]) {
            let (key, value) = pair?;
            digest.add(cf, key.get(1..).unwrap_or_default(), &value);
        }
    }
    Ok(digest)
}
