//! The initial scan of a subscription: locks and versions of a range, from one snapshot.
//!
//! Keys ascend; per key the lock (PREWRITE) comes first, then the versions above the checkpoint
//! (COMMITTED), newest first. Rows leave in events of about 32 KiB; INITIALIZED shares the last.

use bytes::Bytes;
use pitr_format::key::{data_key, split_versioned};
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::cdcpb::event::{LogType, Row, row::OpType};
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{EngineCf, EngineError};
use prost::Message;
use rocksdb::{DBIterator, Direction, IteratorMode, ReadOptions, Snapshot};

use super::rows::{OldValues, RowError, is_reported, lock_row, raw_key};
use crate::store::lock::LockRecord;

/// Size at which a scan event is closed. TiKV: 32 KiB.
const EVENT_BYTES: usize = 32 << 10;
/// First byte behind all data keys.
const AFTER_DATA: u8 = b'z' + 1;

/// What ends a scan early.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record is damaged.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Nobody wants the rows any more.
    #[error("the subscription ended during its scan")]
    Ended,
}

/// The store's data at one moment.
pub struct View<'a> {
    engine: &'a RocksEngine,
    snapshot: Snapshot<'a>,
}

impl<'a> View<'a> {
    /// Takes the moment.
    pub fn now(engine: &'a RocksEngine) -> Self {
        View {
            engine,
            snapshot: engine.db().snapshot(),
        }
    }

    fn iterate(
        &self,
        cf: EngineCf,
        start: &[u8],
        end: &[u8],
    ) -> Result<DBIterator<'_>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(match end {
            [] => vec![AFTER_DATA],
            end => data_key(end),
        });
        let start = data_key(start);
        let from = IteratorMode::From(&start, Direction::Forward);
        Ok(self
            .snapshot
            .iterator_cf_opt(self.engine.cf(cf)?, options, from))
    }

    /// The Put and Delete locks of a range: encoded key and lock.
    pub fn locks(
        &self,
        range: &EncodedRange,
    ) -> Result<impl Iterator<Item = Result<(Bytes, LockRecord), ScanError>> + '_, ScanError> {
        let pairs = self.iterate(EngineCf::Lock, &range.start, &range.end)?;
        Ok(pairs.map(|pair| {
            let (key, value) = pair.map_err(|e| self.engine.error("scan locks", e))?;
            let encoded = Bytes::copy_from_slice(key.get(1..).unwrap_or_default());
            let lock = LockRecord::parse(&value).map_err(|e| RowError::new(&encoded, e))?;
            Ok((encoded, lock))
        }))
    }

    fn versions(
        &self,
        start: &[u8],
        end: &[u8],
    ) -> Result<impl Iterator<Item = Result<Version, ScanError>> + '_, ScanError> {
        let pairs = self.iterate(EngineCf::Write, start, end)?;
        Ok(pairs.map(|pair| {
            let (key, value) = pair.map_err(|e| self.engine.error("scan versions", e))?;
            let key = key.get(1..).unwrap_or_default();
            let (encoded, commit_ts) = split_versioned(key).map_err(|e| RowError::new(key, e))?;
            let write =
                WriteRecord::parse(&Bytes::from(value)).map_err(|e| RowError::new(key, e))?;
            Ok(Version {
                encoded: Bytes::copy_from_slice(encoded),
                commit_ts,
                write,
            })
        }))
    }

    /// The value of a Put record.
    fn value_of(&self, encoded: &Bytes, write: &WriteRecord) -> Result<Bytes, ScanError> {
        match &write.short_value {
            Some(value) => Ok(value.clone()),
            None => self.long_value(encoded, write.start_ts),
        }
    }

    fn long_value(&self, encoded: &Bytes, start_ts: Ts) -> Result<Bytes, ScanError> {
        let key = EncodedKey::from_encoded(encoded.clone()).at(start_ts);
        let value = self
            .snapshot
            .get_cf(self.engine.cf(EngineCf::Default)?, data_key(key.as_bytes()))
            .map_err(|e| self.engine.error("read a long value", e))?;
        let missing = || RowError::new(key.as_bytes(), "its long value is missing");
        Ok(value.map(Bytes::from).ok_or_else(missing)?)
    }

    /// The value that a read of `encoded` at `ts` sees.
    fn read(&self, encoded: &Bytes, ts: Ts) -> Result<Option<Bytes>, ScanError> {
        let from = EncodedKey::from_encoded(encoded.clone()).at(ts);
        let mut behind = encoded.to_vec();
        behind.extend_from_slice(&[0xFF; 9]);
        for version in self.versions(from.as_bytes(), &behind)? {
            let version = version?;
            if version.encoded != encoded {
                break;
            }
            match version.write.kind {
                WriteType::Put => return self.value_of(encoded, &version.write).map(Some),
                WriteType::Delete => return Ok(None),
                WriteType::Lock | WriteType::Rollback => {}
            }
        }
        Ok(None)
    }
}

impl OldValues for View<'_> {
    fn value_at(&self, key: &[u8], ts: Ts) -> Result<Option<Bytes>, RowError> {
        self.read(&Bytes::copy_from_slice(key), ts)
            .map_err(|e| RowError::new(key, e))
    }
}

struct Version {
    encoded: Bytes,
    commit_ts: Ts,
    write: WriteRecord,
}

/// One scan.
pub struct Scan<'a> {
    /// The data.
    pub view: &'a View<'a>,
    /// What is scanned; nothing if the client's bounds lie outside of the region.
    pub range: Option<EncodedRange>,
    /// Versions at or below are left out.
    pub checkpoint_ts: Ts,
    /// See [`is_reported`].
    pub filter_loop: bool,
}

impl Scan<'_> {
    /// Runs to the end; `emit` gets the rows of each event and says whether to go on.
    pub fn run(&self, emit: &mut dyn FnMut(Vec<Row>) -> bool) -> Result<(), ScanError> {
        let mut out = Out {
            rows: Vec::new(),
            bytes: 0,
            filter_loop: self.filter_loop,
            emit,
        };
        let Some(range) = &self.range else {
            return out.finish();
        };
        let mut locks = self.view.locks(range)?.peekable();
        let versions = self.view.versions(&range.start, &range.end)?;
        // The row that still waits for its old value: the next older change of the same key.
        let mut waiting: Option<(Bytes, Row)> = None;
        for version in versions {
            let version = version?;
            if let Some((_, row)) = waiting.take_if(|(key, _)| *key != version.encoded) {
                out.push(row)?;
            }
            while let Some(found) = locks.next_if(|lock| match lock {
                Ok((key, _)) => *key <= version.encoded,
                Err(_) => true,
            }) {
                self.push_lock(found?, &mut out)?;
            }
            let change = match version.write.kind {
                WriteType::Put => true,
                WriteType::Delete => false,
                WriteType::Lock | WriteType::Rollback => continue,
            };
            let wanted = version.commit_ts > self.checkpoint_ts;
            if !wanted && waiting.is_none() {
                continue;
            }
            let value = match change {
                true => self.view.value_of(&version.encoded, &version.write)?,
                false => Bytes::new(),
            };
            if let Some((_, mut row)) = waiting.take() {
                row.old_value = value.clone();
                out.push(row)?;
            }
            if wanted {
                waiting = Some((version.encoded.clone(), committed(&version, value)?));
            }
        }
        if let Some((_, row)) = waiting {
            out.push(row)?;
        }
        for found in locks {
            self.push_lock(found?, &mut out)?;
        }
        out.finish()
    }

    fn push_lock(&self, found: (Bytes, LockRecord), out: &mut Out<'_>) -> Result<(), ScanError> {
        let (encoded, lock) = found;
        let Some(mut row) = lock_row(&encoded, &lock)? else {
            return Ok(());
        };
        if row.op_type() == OpType::Put && lock.short_value.is_none() {
            row.value = self.view.long_value(&encoded, lock.start_ts)?;
        }
        let before = lock.for_update_ts.max(lock.start_ts);
        row.old_value = self.view.read(&encoded, before)?.unwrap_or_default();
        out.push(row)
    }
}

fn committed(version: &Version, value: Bytes) -> Result<Row, RowError> {
    let op = match version.write.kind {
        WriteType::Put => OpType::Put,
        _ => OpType::Delete,
    };
    Ok(Row {
        start_ts: version.write.start_ts.get(),
        commit_ts: version.commit_ts.get(),
        r#type: LogType::Committed.into(),
        op_type: op.into(),
        key: raw_key(&version.encoded)?,
        value,
        txn_source: version.write.txn_source,
        ..Default::default()
    })
}

struct Out<'a> {
    rows: Vec<Row>,
    bytes: usize,
    filter_loop: bool,
    emit: &'a mut dyn FnMut(Vec<Row>) -> bool,
}

impl Out<'_> {
    fn push(&mut self, row: Row) -> Result<(), ScanError> {
        if !is_reported(row.txn_source, self.filter_loop) {
            return Ok(());
        }
        self.bytes += row.encoded_len();
        self.rows.push(row);
        match self.bytes >= EVENT_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), ScanError> {
        self.bytes = 0;
        match (self.emit)(std::mem::take(&mut self.rows)) {
            true => Ok(()),
            false => Err(ScanError::Ended),
        }
    }

    fn finish(mut self) -> Result<(), ScanError> {
        self.rows.push(Row {
            r#type: LogType::Initialized.into(),
            ..Default::default()
        });
        self.flush()
    }
}
