//! Records on their way from a source to the slices: many in one buffer, framed as the log keeps
//! them.
//!
//! A batch costs two allocations however many records it has, and is read from front to back: with
//! millions of records a second, that is what their cost depends on. Sources write keys and values in place
//! ([`RecordBatch::push_with`]); the observer's shards read views ([`RecordRef`]). A batch may go
//! to disk and come back as its two parts.

use crate::record::{MAX_STREAM_LEN, RecordError, append_record};
use crate::{Cf, KvRecord, OpKind};

/// Bytes of a length field.
const LEN: usize = size_of::<u32>();

/// Column family and operation of a record in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    const DEFAULT: u8 = 1;
    const DELETE: u8 = 2;

    fn new(cf: Cf, op: OpKind) -> Self {
        let family = if cf == Cf::Default { Self::DEFAULT } else { 0 };
        let delete = if op == OpKind::Delete {
            Self::DELETE
        } else {
            0
        };
        Kind(family | delete)
    }

    fn cf(self) -> Cf {
        match self.0 & Self::DEFAULT {
            0 => Cf::Write,
            _ => Cf::Default,
        }
    }

    fn op(self) -> OpKind {
        match self.0 & Self::DELETE {
            0 => OpKind::Put,
            _ => OpKind::Delete,
        }
    }
}

/// One record in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Column family.
    pub cf: Cf,
    /// Put or delete.
    pub op: OpKind,
    /// Versioned key: encoded user key + `!ts`, no `z`.
    pub key: &'a [u8],
    /// Value of the column family; empty for a delete.
    pub value: &'a [u8],
    /// Both with their length fields, as in a slice.
    pub framed: &'a [u8],
}

/// Records of one region, in the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordBatch {
    kinds: Vec<u8>,
    plain: Vec<u8>,
}

impl RecordBatch {
    /// A batch of copies.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a KvRecord>) -> Result<Self, RecordError> {
        let mut batch = RecordBatch::default();
        for record in records {
            batch.push(record.cf, record.op, &record.key, &record.value)?;
        }
        Ok(batch)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Bytes of all records with their length fields.
    pub fn plain_len(&self) -> usize {
        self.plain.len()
    }

    /// Bytes allocated.
    pub fn held_bytes(&self) -> usize {
        self.kinds.capacity() + self.plain.capacity()
    }

    /// Makes room for `records` more records that take `plain` bytes framed.
    pub fn reserve(&mut self, records: usize, plain: usize) {
        self.kinds.reserve(records);
        self.plain.reserve(plain);
    }

    /// Gives back what was allocated and not used.
    pub fn shrink_to_fit(&mut self) {
        self.kinds.shrink_to_fit();
        self.plain.shrink_to_fit();
    }

    /// Adds a copy of a record; after an error the batch is as before.
    pub fn push(
        &mut self,
        cf: Cf,
        op: OpKind,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), RecordError> {
        append_record(&mut self.plain, key, value)?;
        self.kinds.push(Kind::new(cf, op).0);
        Ok(())
    }

    /// Adds a record whose key and value are appended to the buffer by `key` and `value`, which
    /// leave alone what is there already. After an error the batch is as before.
    pub fn push_with<E: From<RecordError>>(
        &mut self,
        cf: Cf,
        op: OpKind,
        key: impl FnOnce(&mut Vec<u8>),
        value: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.plain.len();
        let done = self.frame(key, value);
        match done {
            Ok(()) => self.kinds.push(Kind::new(cf, op).0),
            Err(_) => self.plain.truncate(start),
        }
        done
    }

    fn frame<E: From<RecordError>>(
        &mut self,
        key: impl FnOnce(&mut Vec<u8>),
        value: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.plain.len();
        self.plain.extend_from_slice(&[0; LEN]);
        key(&mut self.plain);
        let end_of_key = self.plain.len();
        self.plain.extend_from_slice(&[0; LEN]);
        value(&mut self.plain)?;
        let end = self.plain.len();
        if end > MAX_STREAM_LEN {
            return Err(E::from(RecordError::StreamFull {
                stream: start,
                record: end - start,
            }));
        }
        // Both casts are exact: the whole buffer is shorter than 4 GiB.
        let key_len = (end_of_key - start - LEN) as u32;
        let value_len = (end - end_of_key - LEN) as u32;
        self.plain[start..start + LEN].copy_from_slice(&key_len.to_le_bytes());
        self.plain[end_of_key..end_of_key + LEN].copy_from_slice(&value_len.to_le_bytes());
        Ok(())
    }

    /// Views of the records, in order.
    pub fn iter(&self) -> Records<'_> {
        Records {
            kinds: self.kinds.iter(),
            rest: &self.plain,
        }
    }

    /// What has to be kept of the batch, in two parts: one byte a record, and the framed records.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        (&self.kinds, &self.plain)
    }

    /// A batch of [`RecordBatch::parts`] that were kept elsewhere; `None` if they do not fit
    /// together.
    pub fn from_parts(kinds: Vec<u8>, plain: Vec<u8>) -> Option<Self> {
        let known = Kind::DEFAULT | Kind::DELETE;
        let batch = RecordBatch { kinds, plain };
        let mut records = batch.iter();
        let whole = records.by_ref().count() == batch.kinds.len() && records.rest.is_empty();
        (whole && batch.kinds.iter().all(|kind| kind & !known == 0)).then_some(batch)
    }
}

impl<'a> IntoIterator for &'a RecordBatch {
    type Item = RecordRef<'a>;
    type IntoIter = Records<'a>;

    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

/// The records of a batch, see [`RecordBatch::iter`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    kinds: std::slice::Iter<'a, u8>,
    rest: &'a [u8],
}

/// The part that begins at `at` with its length field, and where it ends.
#[inline]
fn part(rest: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (len, tail) = rest.get(at..)?.split_first_chunk::<LEN>()?;
    let len = u32::from_le_bytes(*len) as usize;
    Some((tail.get(..len)?, at + LEN + len))
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecordRef<'a>> {
        let kind = Kind(*self.kinds.next()?);
        let (key, end_of_key) = part(self.rest, 0)?;
        let (value, end) = part(self.rest, end_of_key)?;
        let (framed, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(RecordRef {
            cf: kind.cf(),
            op: kind.op(),
            key,
            value,
            framed,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::record::RecordIter;

    fn records() -> impl Strategy<Value = Vec<KvRecord>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let record = (any::<bool>(), any::<bool>(), bytes(), bytes());
        let record = record.prop_map(|(default, delete, key, value)| KvRecord {
            cf: if default { Cf::Default } else { Cf::Write },
            op: if delete { OpKind::Delete } else { OpKind::Put },
            key,
            value,
        });
        proptest::collection::vec(record, 0..20)
    }

    #[derive(Debug, PartialEq)]
    struct Failed;

    impl From<RecordError> for Failed {
        fn from(_: RecordError) -> Self {
            Failed
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_was_pushed_comes_back_in_order_and_lies_framed_as_in_a_slice(records in records()) {
            let batch = RecordBatch::of(&records).unwrap();
            let owned = |r: RecordRef<'_>| KvRecord {
                cf: r.cf,
                op: r.op,
                key: Bytes::copy_from_slice(r.key),
                value: Bytes::copy_from_slice(r.value),
            };
            prop_assert_eq!(&batch.iter().map(owned).collect::<Vec<_>>(), &records);
            prop_assert_eq!((batch.len(), batch.is_empty()), (records.len(), records.is_empty()));
            let framed: Vec<_> = batch.iter().map(|record| record.framed).collect();
            prop_assert_eq!(framed.concat(), batch.parts().1);
            let read: Vec<_> = RecordIter::new(batch.parts().1).map(Result::unwrap).collect();
            let pairs: Vec<_> = records.iter().map(|r| (&r.key[..], &r.value[..])).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn a_record_written_in_place_is_the_same_as_a_copy_and_a_failed_one_leaves_nothing(
            records in records(), fail_at in 0usize..20,
        ) {
            let mut written = RecordBatch::default();
            for (n, record) in records.iter().enumerate() {
                if n == fail_at {
                    let failed = written.push_with(
                        record.cf,
                        record.op,
                        |out| out.extend_from_slice(b"half a key"),
                        |out| { out.push(1); Err(Failed) },
                    );
                    prop_assert_eq!(failed, Err(Failed));
                }
                written.push_with::<RecordError>(
                    record.cf,
                    record.op,
                    |out| out.extend_from_slice(&record.key),
                    |out| { out.extend_from_slice(&record.value); Ok(()) },
                ).unwrap();
            }
            prop_assert_eq!(written, RecordBatch::of(&records).unwrap());
        }

        #[test]
        fn parts_that_were_cut_or_changed_make_no_batch(
            records in records(), cut in any::<prop::sample::Index>(), kind in 4u8..,
        ) {
            let batch = RecordBatch::of(&records).unwrap();
            let (kinds, plain) = batch.parts();
            let again = RecordBatch::from_parts(kinds.to_vec(), plain.to_vec());
            prop_assert_eq!(again.as_ref(), Some(&batch));
            if !records.is_empty() {
                let short = &plain[..cut.index(plain.len())];
                prop_assert_eq!(RecordBatch::from_parts(kinds.to_vec(), short.to_vec()), None);
                let fewer = kinds[1..].to_vec();
                prop_assert_eq!(RecordBatch::from_parts(fewer, plain.to_vec()), None);
                let mut unknown = kinds.to_vec();
                unknown[0] = kind;
                prop_assert_eq!(RecordBatch::from_parts(unknown, plain.to_vec()), None);
            }
            let longer = [plain, &[0]].concat();
            prop_assert_eq!(RecordBatch::from_parts(kinds.to_vec(), longer), None);
        }
    }
}
