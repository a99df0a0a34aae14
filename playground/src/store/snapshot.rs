//! A point in time of the three column families, with keys as everyone else sees them (no `z`).
//! Taken under the store's write lock, read after it is released. Used by transactional reads,
//! by the checks of every write command and by the initial scan of change data.

use bytes::Bytes;
use pitr_format::EncodedRange;
use pitr_format::key::{DATA_PREFIX, data_key};
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{EngineCf, EngineError};
use rocksdb::{DBRawIteratorWithThreadMode, ReadOptions};

/// See the module.
pub struct Snapshot<'a> {
    engine: &'a RocksEngine,
    inner: rocksdb::Snapshot<'a>,
}

impl<'a> Snapshot<'a> {
    pub(crate) fn of(engine: &'a RocksEngine) -> Self {
        Snapshot {
            engine,
            inner: engine.db().snapshot(),
        }
    }

    /// Value of one key: an encoded key for `lock`, a versioned key for `default` and `write`.
    pub fn get(&self, cf: EngineCf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self
            .inner
            .get_cf(self.engine.cf(cf)?, data_key(key))
            .map_err(|e| self.engine.error("get", e))?;
        Ok(value.map(Bytes::from))
    }

    /// A cursor over the keys of a range. It stands nowhere until the first seek.
    pub fn cursor(&self, cf: EngineCf, range: &EncodedRange) -> Result<Cursor<'_>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(data_key(&range.start));
        options.set_iterate_upper_bound(if range.end.is_empty() {
            vec![DATA_PREFIX + 1]
        } else {
            data_key(&range.end)
        });
        Ok(Cursor {
            engine: self.engine,
            inner: self.inner.raw_iterator_cf_opt(self.engine.cf(cf)?, options),
        })
    }
}

/// Moves over the pairs of one column family. Every move reports what it stands on.
pub struct Cursor<'a> {
    engine: &'a RocksEngine,
    inner: DBRawIteratorWithThreadMode<'a, rocksdb::DB>,
}

impl Cursor<'_> {
    /// Moves to the first key at or above `key`; false = there is none.
    pub fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.inner.seek(data_key(key));
        self.settled()
    }

    /// Moves to the last key below `key`; an empty key is above all.
    pub fn seek_below(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        if key.is_empty() {
            self.inner.seek_to_last();
            return self.settled();
        }
        let bound = data_key(key);
        self.inner.seek_for_prev(&bound);
        if self.inner.key() == Some(&bound[..]) {
            self.inner.prev();
        }
        self.settled()
    }

    /// Moves one key up. Only after a move that found something.
    pub fn advance(&mut self) -> Result<bool, EngineError> {
        self.inner.next();
        self.settled()
    }

    /// The key under the cursor, without `z`.
    pub fn key(&self) -> Option<&[u8]> {
        self.inner.key().and_then(|key| key.get(1..))
    }

    /// The value under the cursor.
    pub fn value(&self) -> Option<&[u8]> {
        self.inner.value()
    }

    fn settled(&self) -> Result<bool, EngineError> {
        self.inner
            .status()
            .map_err(|e| self.engine.error("iterate", e))?;
        Ok(self.inner.valid())
    }
}
