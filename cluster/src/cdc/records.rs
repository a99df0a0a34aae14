//! From one committed row to the records that log backup stores, byte exact.
//!
//! Values of at most 255 bytes stand inside the write record; a longer one is a `default` record
//! at start_ts, emitted together with its write record at commit time: it is then never in a
//! later flush than the write record, and the values of rolled-back transactions are never
//! stored. All records of a batch lie in one buffer: one allocation for many, and the only copy of the
//! bytes between the message and the log. Source of the layout: tikv/tikv `components/txn_types/src/write.rs`.

use pitr_format::key::append_encoded;
use pitr_format::record::RecordError;
use pitr_format::write_cf::{SHORT_VALUE_MAX_LEN, append_delete, append_put};
use pitr_format::{Cf, OpKind, RecordBatch, Ts};

/// A version that is committed for sure.
pub(super) struct Commit<'a> {
    /// User key.
    pub key: &'a [u8],
    pub start_ts: Ts,
    pub commit_ts: Ts,
    /// 0 = not recorded.
    pub txn_source: u64,
}

/// Records in the making.
#[derive(Debug, Default)]
pub(super) struct Batch {
    records: RecordBatch,
    /// Number and bytes of the last records: the next ones are probably as many.
    last: (usize, usize),
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of keys and values with their length fields.
    pub fn bytes(&self) -> usize {
        self.records.plain_len()
    }

    /// The records; the batch is empty again.
    pub fn finish(&mut self) -> RecordBatch {
        self.last = (self.records.len(), self.records.plain_len());
        let mut records = std::mem::take(&mut self.records);
        records.shrink_to_fit();
        records
    }

    /// The user key was deleted: one `D` record.
    pub fn delete(&mut self, commit: &Commit<'_>) -> Result<(), RecordError> {
        self.push(Cf::Write, commit, commit.commit_ts, |out| {
            append_delete(commit.start_ts, commit.txn_source, out);
            Ok(())
        })
    }

    /// The user key was set to `value`.
    pub fn put(&mut self, commit: &Commit<'_>, value: &[u8]) -> Result<(), RecordError> {
        if value.len() <= SHORT_VALUE_MAX_LEN {
            return self.put_write(commit, Some(value));
        }
        self.put_long(commit, |out| {
            out.extend_from_slice(value);
            Ok(())
        })
    }

    /// The user key was set to a value that lies in `default`, and that `fill` appends to what it
    /// is given. After an error of `fill` the batch is as before.
    pub fn put_long<E: From<RecordError>>(
        &mut self,
        commit: &Commit<'_>,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.push(Cf::Default, commit, commit.start_ts, fill)?;
        Ok(self.put_write(commit, None)?)
    }

    fn put_write(
        &mut self,
        commit: &Commit<'_>,
        short_value: Option<&[u8]>,
    ) -> Result<(), RecordError> {
        self.push(Cf::Write, commit, commit.commit_ts, |out| {
            append_put(commit.start_ts, short_value, commit.txn_source, out);
            Ok(())
        })
    }

    fn push<E: From<RecordError>>(
        &mut self,
        cf: Cf,
        commit: &Commit<'_>,
        ts: Ts,
        value: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.records.is_empty() {
            let (records, bytes) = self.last;
            self.records.reserve(records, bytes);
        }
        let key = |out: &mut Vec<u8>| {
            append_encoded(commit.key, out);
            out.extend_from_slice(&(!ts.get()).to_be_bytes());
        };
        self.records.push_with(cf, OpKind::Put, key, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Ts = Ts::new(446_850_000_000_000_001);

    fn commit(txn_source: u64) -> Commit<'static> {
        Commit {
            key: b"vol\xFDA\x01\0\0\0\0\0\0\0I",
            start_ts: START,
            commit_ts: Ts::new(446_850_000_000_000_005),
            txn_source,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    const ENCODED: &str = "766f6cfd41010000ff0000000000490000fd";

    #[test]
    fn a_short_put_is_one_write_record_at_the_commit_ts() {
        let mut batch = Batch::default();
        batch.put(&commit(0), b"hello").unwrap();
        batch.put(&commit(1), b"hello").unwrap();
        batch.put(&commit(0), b"").unwrap();
        batch.delete(&commit(0)).unwrap();
        let out = batch.finish();
        let values: Vec<_> = out.iter().map(|r| hex(r.value)).collect();
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        assert_eq!(
            values,
            [
                "5081c088efd1f6e19906760568656c6c6f",
                "5081c088efd1f6e19906760568656c6c6f5301",
                "5081c088efd1f6e199067600",
                "4481c088efd1f6e19906",
            ]
        );
        for record in &out {
            assert_eq!(record.cf, Cf::Write);
            assert_eq!(hex(record.key), format!("{ENCODED}f9cc784ae21ddffa"));
        }
        assert!(batch.is_empty() && batch.bytes() == 0);
    }

    #[test]
    fn the_limit_between_inside_and_beside_the_write_record_is_255_bytes() {
        let mut batch = Batch::default();
        batch.put(&commit(0), &[7; 255]).unwrap();
        assert_eq!(batch.finish().len(), 1);
        batch.put(&commit(0), &[7; 256]).unwrap();
        let batch = batch.finish();
        let out: Vec<_> = batch.iter().collect();
        assert_eq!((out[0].cf, out[1].cf), (Cf::Default, Cf::Write));
        assert_eq!(hex(out[0].key), format!("{ENCODED}f9cc784ae21ddffe"));
        assert_eq!(out[0].value, [7; 256]);
        assert_eq!(hex(out[1].value), "5081c088efd1f6e19906");
    }

    #[test]
    fn a_long_value_that_cannot_be_read_leaves_nothing() {
        let mut batch = Batch::default();
        let error = RecordError::StreamFull {
            stream: 1,
            record: 2,
        };
        let failed = batch.put_long(&commit(0), |buffer| {
            buffer.extend_from_slice(b"half");
            Err(error.clone())
        });
        assert_eq!(failed, Err(error));
        assert!(batch.is_empty() && batch.bytes() == 0);
        let done = batch.put_long(&commit(0), |buffer| {
            buffer.extend_from_slice(&[9; 300]);
            Ok::<_, RecordError>(())
        });
        assert!(done.is_ok());
        let bytes = batch.bytes();
        let out = batch.finish();
        assert_eq!((out.len(), out.plain_len()), (2, bytes));
        assert_eq!(out.iter().next().unwrap().value, [9; 300]);
    }
}
