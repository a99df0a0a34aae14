//! Reads a restored engine as a client would: the value of each key at one ts.
//!
//! For proofs and tests, on an engine that nobody writes to: values of the default column family
//! are read one by one, not from the scan's snapshot. Locks are not looked at.

use bytes::Bytes;
use pitr_format::key::{DATA_PREFIX, decode_prefix, split_versioned};
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Class, EncodedKey, Ts};

use crate::engine::{Engine, EngineCf, EngineError, Pair};

/// Why the engine's content cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BrowseError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A key or write record is malformed.
    #[error("key {key} of column family {cf}: {what}")]
    Malformed {
        /// Column family.
        cf: &'static str,
        /// Data key, hex.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// A write record refers to a value that is not there.
    #[error("the value of user key {user_key} written at {start_ts} is missing")]
    MissingValue {
        /// User key, hex.
        user_key: String,
        /// Start ts of the transaction.
        start_ts: Ts,
    },
}

impl BrowseError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// A user key and its value.
pub type Visible = (Vec<u8>, Vec<u8>);

/// All user keys with the value visible at `ts`, in key order.
pub fn visible_at<E: Engine + ?Sized>(engine: &E, ts: Ts) -> VisibleAt<'_, E> {
    let pairs = engine.scan(EngineCf::Write, &[DATA_PREFIX], &[DATA_PREFIX + 1]);
    VisibleAt {
        engine,
        pairs,
        ts,
        decided: None,
    }
}

/// Iterator of [`visible_at`].
pub struct VisibleAt<'a, E: ?Sized> {
    engine: &'a E,
    pairs: Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a>,
    ts: Ts,
    /// Encoded key (with `z`) whose newest visible version was found; older ones are skipped.
    decided: Option<Vec<u8>>,
}

impl<E: Engine + ?Sized> Iterator for VisibleAt<'_, E> {
    type Item = Result<Visible, BrowseError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let pair = match self.pairs.next()? {
                Ok(pair) => pair,
                Err(e) => return Some(Err(e.into())),
            };
            match self.judge(&pair.0, &pair.1) {
                Ok(None) => {}
                Ok(Some(found)) => return Some(Ok(found)),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl<E: Engine + ?Sized> VisibleAt<'_, E> {
    fn judge(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Visible>, BrowseError> {
        let malformed = |what: &dyn std::fmt::Display| BrowseError::Malformed {
            cf: "write",
            key: hex::encode_upper(key),
            what: what.to_string(),
        };
        let (data_key, commit_ts) = split_versioned(key).map_err(|e| malformed(&e))?;
        if commit_ts > self.ts || self.decided.as_deref() == Some(data_key) {
            return Ok(None);
        }
        let record =
            WriteRecord::parse(&Bytes::copy_from_slice(value)).map_err(|e| malformed(&e))?;
        if matches!(record.kind, WriteType::Lock | WriteType::Rollback) {
            return Ok(None);
        }
        self.decided = Some(data_key.to_vec());
        if record.kind == WriteType::Delete {
            return Ok(None);
        }
        let encoded = data_key.get(1..).unwrap_or_default();
        let (user_key, _) = decode_prefix(encoded).map_err(|e| malformed(&e))?;
        let value = match record.short_value {
            Some(value) => value.to_vec(),
            None => self.long_value(&user_key, encoded, record.start_ts)?,
        };
        Ok(Some((user_key, value)))
    }

    fn long_value(
        &self,
        user_key: &[u8],
        encoded: &[u8],
        start_ts: Ts,
    ) -> Result<Vec<u8>, BrowseError> {
        let key = EncodedKey::from_encoded(Bytes::copy_from_slice(encoded)).at(start_ts);
        let key = pitr_format::key::data_key(key.as_bytes());
        self.engine
            .get(EngineCf::Default, &key)?
            .ok_or_else(|| BrowseError::MissingValue {
                user_key: hex::encode_upper(user_key),
                start_ts,
            })
    }
}
