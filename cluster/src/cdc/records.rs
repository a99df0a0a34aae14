//! From one committed row to the records that log backup stores, byte exact.
//!
//! Values of at most 255 bytes stand inside the write record; a longer one is a `default` record
//! at start_ts, emitted together with its write record at commit time: it is then never in a
//! later flush than the write record, and the values of rolled-back transactions are never
//! stored. All records of a batch lie in one buffer: one allocation for many, and the only copy of the
//! bytes between the message and the log. Source of the layout: tikv/tikv `components/txn_types/src/write.rs`.

use std::ops::Range;

use bytes::Bytes;
use pitr_format::key::append_encoded;
use pitr_format::write_cf::{SHORT_VALUE_MAX_LEN, append_delete, append_put};
use pitr_format::{Cf, KvRecord, OpKind, Ts};

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
    buffer: Vec<u8>,
    records: Vec<Draft>,
    /// Bytes of values that lie elsewhere.
    shared: usize,
    /// Length of the last buffer: the next one is probably as long.
    last: usize,
}

#[derive(Debug)]
struct Draft {
    cf: Cf,
    key: Range<usize>,
    value: Value,
}

#[derive(Debug)]
enum Value {
    /// In the batch's buffer.
    Here(Range<usize>),
    /// In a block of the pool, which counts it.
    Shared(Bytes),
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.buffer.len() + self.shared
    }

    /// The records; the batch is empty again.
    pub fn finish(&mut self) -> Vec<KvRecord> {
        self.last = self.buffer.len();
        let buffer = Bytes::from(std::mem::take(&mut self.buffer).into_boxed_slice());
        self.shared = 0;
        let record = |draft: Draft| KvRecord {
            cf: draft.cf,
            op: OpKind::Put,
            key: buffer.slice(draft.key),
            value: match draft.value {
                Value::Here(range) => buffer.slice(range),
                Value::Shared(bytes) => bytes,
            },
        };
        self.records.drain(..).map(record).collect()
    }

    /// The user key was deleted: one `D` record.
    pub fn delete(&mut self, commit: &Commit<'_>) {
        let key = self.key(commit, commit.commit_ts);
        let at = self.buffer.len();
        append_delete(commit.start_ts, commit.txn_source, &mut self.buffer);
        self.push(Cf::Write, key, Value::Here(at..self.buffer.len()));
    }

    /// The user key was set to `value`.
    pub fn put(&mut self, commit: &Commit<'_>, value: &[u8]) {
        if value.len() > SHORT_VALUE_MAX_LEN {
            let fill = |buffer: &mut Vec<u8>| {
                buffer.extend_from_slice(value);
                Ok::<_, std::convert::Infallible>(None)
            };
            let Ok(()) = self.put_long(commit, fill);
        } else {
            self.put_write(commit, Some(value));
        }
    }

    /// The user key was set to a value that lies in `default`. `fill` returns the value, or
    /// appends it to the buffer; after its error the batch is as before.
    pub fn put_long<E>(
        &mut self,
        commit: &Commit<'_>,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<Option<Bytes>, E>,
    ) -> Result<(), E> {
        let before = self.buffer.len();
        let key = self.key(commit, commit.start_ts);
        let at = self.buffer.len();
        let value = match fill(&mut self.buffer) {
            Ok(Some(bytes)) => {
                self.shared += bytes.len();
                Value::Shared(bytes)
            }
            Ok(None) => Value::Here(at..self.buffer.len()),
            Err(error) => {
                self.buffer.truncate(before);
                return Err(error);
            }
        };
        self.push(Cf::Default, key, value);
        self.put_write(commit, None);
        Ok(())
    }

    fn put_write(&mut self, commit: &Commit<'_>, short_value: Option<&[u8]>) {
        let key = self.key(commit, commit.commit_ts);
        let at = self.buffer.len();
        append_put(
            commit.start_ts,
            short_value,
            commit.txn_source,
            &mut self.buffer,
        );
        self.push(Cf::Write, key, Value::Here(at..self.buffer.len()));
    }

    fn key(&mut self, commit: &Commit<'_>, ts: Ts) -> Range<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(self.last);
        }
        let at = self.buffer.len();
        append_encoded(commit.key, &mut self.buffer);
        self.buffer.extend_from_slice(&(!ts.get()).to_be_bytes());
        at..self.buffer.len()
    }

    fn push(&mut self, cf: Cf, key: Range<usize>, value: Value) {
        self.records.push(Draft { cf, key, value });
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
        batch.put(&commit(0), b"hello");
        batch.put(&commit(1), b"hello");
        batch.put(&commit(0), b"");
        batch.delete(&commit(0));
        let out = batch.finish();
        let values: Vec<_> = out.iter().map(|r| hex(&r.value)).collect();
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
            assert_eq!(hex(&record.key), format!("{ENCODED}f9cc784ae21ddffa"));
        }
        assert!(batch.is_empty() && batch.bytes() == 0);
    }

    #[test]
    fn the_limit_between_inside_and_beside_the_write_record_is_255_bytes() {
        let mut batch = Batch::default();
        batch.put(&commit(0), &[7; 255]);
        assert_eq!(batch.finish().len(), 1);
        batch.put(&commit(0), &[7; 256]);
        let out = batch.finish();
        assert_eq!((out[0].cf, out[1].cf), (Cf::Default, Cf::Write));
        assert_eq!(hex(&out[0].key), format!("{ENCODED}f9cc784ae21ddffe"));
        assert_eq!(out[0].value, [7; 256][..]);
        assert_eq!(hex(&out[1].value), "5081c088efd1f6e19906");
    }

    #[test]
    fn a_long_value_is_shared_or_copied_and_one_that_cannot_be_read_leaves_nothing() {
        let mut batch = Batch::default();
        let shared = Bytes::from(vec![9; 300]);
        let done = batch.put_long(&commit(0), |_| Ok::<_, ()>(Some(shared.clone())));
        assert!(done.is_ok());
        let failed = batch.put_long(&commit(0), |buffer| {
            buffer.extend_from_slice(b"half");
            Err("disk")
        });
        assert_eq!(failed, Err("disk"));
        let bytes = batch.bytes();
        let out = batch.finish();
        assert_eq!(out.len(), 2);
        assert_eq!(out[0].value.as_ptr(), shared.as_ptr());
        assert_eq!(out.iter().map(KvRecord::size).sum::<usize>(), bytes);
    }
}
