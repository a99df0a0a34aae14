//! Scans in both directions. A locked key is a pair of its own that carries the error, so that
//! the client can resolve the lock and ask again for that key only.

use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{KvPair, ScanRequest, ScanResponse};
use pitr_restore_worker::engine::EngineCf;

use super::answer::{answer, error_pair};
use crate::store::error::TxnError;
use crate::store::kernel::Store;
use crate::store::snapshot::Cursor;
use crate::store::view::{Found, ReadRules, View, raw_key};

impl Store {
    /// `KvScan`. Backwards, `start_key` is the upper bound (not included) and `end_key` the lower.
    pub(crate) fn scan(&self, req: ScanRequest) -> ScanResponse {
        let rules = ReadRules::new(Ts::new(req.version), req.context.as_ref());
        let result = self
            .read_view(req.context.as_ref(), rules.ts)
            .and_then(|view| Ok(scan(&view, &req, &rules)?));
        answer(result, |pairs| ScanResponse {
            pairs,
            ..Default::default()
        })
    }
}

fn scan(
    view: &View<'_>,
    req: &ScanRequest,
    rules: &ReadRules<'_>,
) -> Result<Vec<KvPair>, TxnError> {
    let range = if req.reverse {
        view.range(&req.end_key, &req.start_key)?
    } else {
        view.range(&req.start_key, &req.end_key)?
    };
    let mut walk = Walk {
        locks: view.snapshot.cursor(EngineCf::Lock, &range)?,
        lock: Ahead::Unknown,
        writes: view.snapshot.cursor(EngineCf::Write, &range)?,
        reverse: req.reverse,
    };
    let mut pairs = Vec::new();
    let mut next = if req.reverse {
        walk.below(&range.end)?
    } else {
        walk.at_or_above(&range.start)?
    };
    while let Some(key) = next {
        if pairs.len() >= req.limit as usize {
            break;
        }
        match view.get(&key, rules) {
            Ok(Some(Found { value, .. })) => pairs.push(KvPair {
                key: raw_key(&key)?,
                value: if req.key_only {
                    Default::default()
                } else {
                    value
                },
                ..Default::default()
            }),
            Ok(None) => {}
            Err(locked @ TxnError::KeyIsLocked(_)) => pairs.push(error_pair(&locked)),
            Err(other) => return Err(other),
        }
        next = walk.step(&key)?;
    }
    Ok(pairs)
}

/// Finds the keys that have a lock or a write record, in order.
struct Walk<'v> {
    locks: Cursor<'v>,
    lock: Ahead,
    writes: Cursor<'v>,
    reverse: bool,
}

/// The nearest lock in the direction of the walk. Locks are few, but the column family is full of
/// the tombstones of those that went: looking for the same lock again at every key would walk over
/// all of them each time.
enum Ahead {
    Unknown,
    Lock(EncodedKey),
    NoMore,
}

impl Walk<'_> {
    fn step(&mut self, from: &EncodedKey) -> Result<Option<EncodedKey>, TxnError> {
        if self.reverse {
            return self.below(from.as_bytes());
        }
        // Above every version of the key, below every other key.
        let mut after = from.as_bytes().to_vec();
        after.extend_from_slice(&[u8::MAX; 9]);
        self.at_or_above(&after)
    }

    fn at_or_above(&mut self, from: &[u8]) -> Result<Option<EncodedKey>, TxnError> {
        if self.lock_is_stale(|key| key < from) {
            self.locks.seek(from)?;
            self.lock = self.lock_under_cursor();
        }
        self.writes.seek(from)?;
        let (lock, write) = (self.lock_key(), self.write_key()?);
        Ok(lock.into_iter().chain(write).min())
    }

    fn below(&mut self, to: &[u8]) -> Result<Option<EncodedKey>, TxnError> {
        if self.lock_is_stale(|key| !to.is_empty() && key >= to) {
            self.locks.seek_below(to)?;
            self.lock = self.lock_under_cursor();
        }
        self.writes.seek_below(to)?;
        let (lock, write) = (self.lock_key(), self.write_key()?);
        Ok(lock.into_iter().chain(write).max())
    }

    fn lock_is_stale(&self, passed: impl FnOnce(&[u8]) -> bool) -> bool {
        match &self.lock {
            Ahead::Unknown => true,
            Ahead::Lock(key) => passed(key.as_bytes()),
            Ahead::NoMore => false,
        }
    }

    fn lock_under_cursor(&self) -> Ahead {
        self.locks.key().map_or(Ahead::NoMore, |key| {
            Ahead::Lock(EncodedKey::from_encoded(key.to_vec()))
        })
    }

    fn lock_key(&self) -> Option<EncodedKey> {
        match &self.lock {
            Ahead::Lock(key) => Some(key.clone()),
            Ahead::Unknown | Ahead::NoMore => None,
        }
    }

    fn write_key(&self) -> Result<Option<EncodedKey>, TxnError> {
        let Some(key) = self.writes.key() else {
            return Ok(None);
        };
        let (encoded, _) =
            pitr_format::key::split_versioned(key).map_err(|e| TxnError::Damaged(e.to_string()))?;
        Ok(Some(EncodedKey::from_encoded(encoded.to_vec())))
    }
}
