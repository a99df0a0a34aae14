//! Makes one store's data equal to another's, by walking both. Called when a store comes back and at
//! the start of the process, for the data of a demo or a test: time grows with all data, memory not.

use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError};
use rocksdb::WriteBatch;

/// Bytes of a batch.
const BATCH: usize = 4 << 20;

/// Copies what differs and removes what is too much; the key `except` (lock column family) is left
/// alone. Gives the number of changed pairs. Nothing may be written to `from` meanwhile.
pub(super) fn copy(
    from: &RocksEngine,
    to: &RocksEngine,
    except: &[u8],
) -> Result<u64, EngineError> {
    let mut changed = 0;
    for cf in EngineCf::ALL {
        let handle = to.cf(cf)?;
        let mut batch = WriteBatch::default();
        let mut theirs = from.scan(cf, &[], &[]).peekable();
        let mut mine = to.scan(cf, &[], &[]).peekable();
        loop {
            // A side that cannot be read is asked before any comparison.
            if let Some(broken) = theirs
                .next_if(|p| p.is_err())
                .or_else(|| mine.next_if(|p| p.is_err()))
            {
                broken?;
            }
            let (wanted, present) = match (theirs.peek(), mine.peek()) {
                (None, None) => break,
                (Some(Ok((theirs, _))), Some(Ok((mine, _)))) => (theirs <= mine, mine <= theirs),
                (theirs, mine) => (theirs.is_some(), mine.is_some()),
            };
            let new = if wanted {
                theirs.next().transpose()?
            } else {
                None
            };
            let old = if present {
                mine.next().transpose()?
            } else {
                None
            };
            match (&new, &old) {
                (Some((key, _)), _) | (None, Some((key, _))) if **key == *except => continue,
                (Some(new), Some(old)) if new == old => continue,
                (Some((key, value)), _) => batch.put_cf(handle, key, value),
                (None, Some((key, _))) => batch.delete_cf(handle, key),
                (None, None) => continue,
            }
            changed += 1;
            if batch.size_in_bytes() > BATCH {
                let full = std::mem::take(&mut batch);
                to.db().write(full).map_err(|e| to.error("catch up", e))?;
            }
        }
        to.db().write(batch).map_err(|e| to.error("catch up", e))?;
    }
    Ok(changed)
}
