//! The value of the `write` column family: what a commit or rollback left under `key @ commit_ts`.
//!
//! Layout: type byte, varint start_ts, then optional fields in this order: `v` short value,
//! `R` overlapped rollback, `F` GC fence, `l` last change, `S` transaction source. A reader stops
//! at the first tag it does not know, as TiKV does, so that newer fields do not break it.
//! Source: tikv/tikv `components/txn_types/src/write.rs`. Used by the slice statistics, the row
//! matcher, the playground's MVCC and every reader of restored data.

use bytes::Bytes;

use crate::Ts;
use crate::varint::{self, VarintError};

/// Longest value that is stored inside the write record; longer ones go to the `default` CF.
pub const SHORT_VALUE_MAX_LEN: usize = 255;

const TAG_SHORT_VALUE: u8 = b'v';
const TAG_OVERLAPPED_ROLLBACK: u8 = b'R';
const TAG_GC_FENCE: u8 = b'F';
const TAG_LAST_CHANGE: u8 = b'l';
const TAG_TXN_SOURCE: u8 = b'S';

/// Why bytes are not a write record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Not a single byte.
    #[error("write record is empty")]
    Empty,
    /// The first byte names no kind of write.
    #[error("write record has unknown type byte {0:#04x}")]
    UnknownType(u8),
    /// The bytes end inside a field.
    #[error("write record ends inside its {field}")]
    Truncated {
        /// Name of the field.
        field: &'static str,
    },
    /// A varint takes more than 64 bits.
    #[error("write record: {field} is not a 64-bit varint")]
    Overflow {
        /// Name of the field.
        field: &'static str,
    },
}

impl WriteError {
    /// Damaged bytes stay damaged.
    pub fn class(&self) -> crate::Class {
        crate::Class::Permanent
    }
}

/// What the write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WriteType {
    /// `P`: set the value.
    Put,
    /// `D`: deleted the user key.
    Delete,
    /// `L`: locked only; the value did not change.
    Lock,
    /// `R`: protected or collapsed rollback.
    Rollback,
}

impl WriteType {
    /// The first byte of the record.
    pub const fn as_byte(self) -> u8 {
        match self {
            WriteType::Put => b'P',
            WriteType::Delete => b'D',
            WriteType::Lock => b'L',
            WriteType::Rollback => b'R',
        }
    }

    /// The reverse of [`WriteType::as_byte`].
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'P' => Some(WriteType::Put),
            b'D' => Some(WriteType::Delete),
            b'L' => Some(WriteType::Lock),
            b'R' => Some(WriteType::Rollback),
            _ => None,
        }
    }
}

/// A write record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRecord {
    /// What the transaction did to the key.
    pub kind: WriteType,
    /// Its start ts; the long value of a put is in `default` under this ts.
    pub start_ts: Ts,
    /// Value of at most [`SHORT_VALUE_MAX_LEN`] bytes; `Some("")` is an empty value, `None` on a
    /// put means that the value is in `default`.
    pub short_value: Option<Bytes>,
    /// The rollback of another transaction whose start ts equals this commit ts.
    pub overlapped_rollback: bool,
    /// GC fence ts of an overlapped rollback.
    pub gc_fence: Option<Ts>,
    /// Commit ts of the last version that changed the value (0 = none exists) and the number of
    /// versions up to it.
    pub last_change: Option<(Ts, u64)>,
    /// Origin of the transaction (replication loop guard); 0 = not recorded.
    pub txn_source: u64,
}

impl WriteRecord {
    /// A put; `short_value` is `None` when the value is in `default`.
    pub fn put(start_ts: Ts, short_value: Option<Bytes>) -> Self {
        WriteRecord {
            kind: WriteType::Put,
            start_ts,
            short_value,
            overlapped_rollback: false,
            gc_fence: None,
            last_change: None,
            txn_source: 0,
        }
    }

    /// A delete of the user key.
    pub fn delete(start_ts: Ts) -> Self {
        WriteRecord {
            kind: WriteType::Delete,
            ..WriteRecord::put(start_ts, None)
        }
    }

    /// Decodes a record; the short value shares `value`'s memory. Bytes behind an unknown tag are
    /// ignored.
    pub fn parse(value: &Bytes) -> Result<Self, WriteError> {
        let view = WriteView::parse(value)?;
        Ok(view.with_short_value(view.short_value.map(|short| value.slice_ref(short))))
    }

    /// Encodes the record.
    ///
    /// # Panics
    ///
    /// If the short value has more than [`SHORT_VALUE_MAX_LEN`] bytes: the format cannot hold it,
    /// and a value cut in silence would be worse. Callers put such a value in `default`.
    pub fn to_bytes(&self) -> Bytes {
        let value_len = self.short_value.as_ref().map_or(0, |v| v.len() + 2);
        let mut out = Vec::with_capacity(1 + varint::MAX_LEN + value_len);
        out.push(self.kind.as_byte());
        varint::append(self.start_ts.get(), &mut out);
        if let Some(value) = &self.short_value {
            assert!(value.len() <= SHORT_VALUE_MAX_LEN, "value is not short");
            out.push(TAG_SHORT_VALUE);
            out.push(value.len() as u8);
            out.extend_from_slice(value);
        }
        if self.overlapped_rollback {
            out.push(TAG_OVERLAPPED_ROLLBACK);
        }
        if let Some(fence) = self.gc_fence {
            out.push(TAG_GC_FENCE);
            out.extend_from_slice(&fence.get().to_be_bytes());
        }
        if let Some((ts, versions)) = self.last_change {
            out.push(TAG_LAST_CHANGE);
            out.extend_from_slice(&ts.get().to_be_bytes());
            varint::append(versions, &mut out);
        }
        append_source(self.txn_source, &mut out);
        out.into()
    }
}

/// A write record read in place: what [`WriteRecord::parse`] gives, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteView<'a> {
    /// What the transaction did to the key.
    pub kind: WriteType,
    /// Its start ts.
    pub start_ts: Ts,
    /// See [`WriteRecord::short_value`].
    pub short_value: Option<&'a [u8]>,
    /// See [`WriteRecord::overlapped_rollback`].
    pub overlapped_rollback: bool,
    /// See [`WriteRecord::gc_fence`].
    pub gc_fence: Option<Ts>,
    /// See [`WriteRecord::last_change`].
    pub last_change: Option<(Ts, u64)>,
    /// See [`WriteRecord::txn_source`].
    pub txn_source: u64,
}

impl<'a> WriteView<'a> {
    /// Reads a record. Bytes behind an unknown tag are ignored.
    pub fn parse(value: &'a [u8]) -> Result<Self, WriteError> {
        let (kind, start_ts, mut at) = parse_head(value)?;
        let mut view = WriteView {
            kind,
            start_ts,
            short_value: None,
            overlapped_rollback: false,
            gc_fence: None,
            last_change: None,
            txn_source: 0,
        };
        while let Some(tag) = value.get(at) {
            at += 1;
            match *tag {
                TAG_SHORT_VALUE => {
                    let truncated = WriteError::Truncated {
                        field: "short value",
                    };
                    let len = usize::from(*value.get(at).ok_or_else(|| truncated.clone())?);
                    let (from, to) = (at + 1, at + 1 + len);
                    view.short_value = Some(value.get(from..to).ok_or(truncated)?);
                    at = to;
                }
                TAG_OVERLAPPED_ROLLBACK => view.overlapped_rollback = true,
                TAG_GC_FENCE => {
                    view.gc_fence = Some(fixed_ts(value, &mut at, "gc fence")?);
                }
                TAG_LAST_CHANGE => {
                    let ts = fixed_ts(value, &mut at, "last change ts")?;
                    let versions = varint_at(value, &mut at, "versions to last change")?;
                    view.last_change = Some((ts, versions));
                }
                TAG_TXN_SOURCE => {
                    view.txn_source = varint_at(value, &mut at, "txn source")?;
                }
                _ => break,
            }
        }
        Ok(view)
    }

    /// The record, with a copy of its short value.
    pub fn to_record(self) -> WriteRecord {
        self.with_short_value(self.short_value.map(Bytes::copy_from_slice))
    }

    fn with_short_value(self, short_value: Option<Bytes>) -> WriteRecord {
        WriteRecord {
            kind: self.kind,
            start_ts: self.start_ts,
            short_value,
            overlapped_rollback: self.overlapped_rollback,
            gc_fence: self.gc_fence,
            last_change: self.last_change,
            txn_source: self.txn_source,
        }
    }
}

/// Appends the record of a put as [`WriteRecord::to_bytes`] makes it, without an allocation of its
/// own; `short_value` is `None` when the value is in `default`, `txn_source` 0 when not recorded.
///
/// # Panics
///
/// As [`WriteRecord::to_bytes`].
pub fn append_put(start_ts: Ts, short_value: Option<&[u8]>, txn_source: u64, out: &mut Vec<u8>) {
    out.push(WriteType::Put.as_byte());
    varint::append(start_ts.get(), out);
    if let Some(value) = short_value {
        assert!(value.len() <= SHORT_VALUE_MAX_LEN, "value is not short");
        out.push(TAG_SHORT_VALUE);
        out.push(value.len() as u8);
        out.extend_from_slice(value);
    }
    append_source(txn_source, out);
}

/// Appends the record of a delete of the user key, as [`append_put`].
pub fn append_delete(start_ts: Ts, txn_source: u64, out: &mut Vec<u8>) {
    out.push(WriteType::Delete.as_byte());
    varint::append(start_ts.get(), out);
    append_source(txn_source, out);
}

fn append_source(txn_source: u64, out: &mut Vec<u8>) {
    if txn_source != 0 {
        out.push(TAG_TXN_SOURCE);
        varint::append(txn_source, out);
    }
}

/// Only the start ts of a record: what the slice statistics need, without an allocation.
#[inline]
pub fn start_ts_of(value: &[u8]) -> Result<Ts, WriteError> {
    parse_head(value).map(|(_, start_ts, _)| start_ts)
}

/// Type, start ts and the offset behind them.
fn parse_head(value: &[u8]) -> Result<(WriteType, Ts, usize), WriteError> {
    let first = *value.first().ok_or(WriteError::Empty)?;
    let kind = WriteType::from_byte(first).ok_or(WriteError::UnknownType(first))?;
    let mut at = 1;
    let start_ts = varint_at(value, &mut at, "start ts")?;
    Ok((kind, Ts::new(start_ts), at))
}

fn varint_at(value: &[u8], at: &mut usize, field: &'static str) -> Result<u64, WriteError> {
    let (number, used) = varint::decode(&value[*at..]).map_err(|e| match e {
        VarintError::Truncated => WriteError::Truncated { field },
        VarintError::Overflow => WriteError::Overflow { field },
    })?;
    *at += used;
    Ok(number)
}

fn fixed_ts(value: &[u8], at: &mut usize, field: &'static str) -> Result<Ts, WriteError> {
    let bytes = value[*at..]
        .first_chunk::<8>()
        .ok_or(WriteError::Truncated { field })?;
    *at += 8;
    Ok(Ts::new(u64::from_be_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Ts = Ts::new(446_850_000_000_000_001);

    fn bytes(text: &str) -> Bytes {
        hex::decode(text).unwrap().into()
    }

    /// The vectors of the row-to-record specification, each in both directions.
    #[test]
    fn every_specified_record_encodes_and_decodes_to_the_specified_bytes() {
        let hello = || Some(Bytes::from_static(b"hello"));
        let put = |value| WriteRecord::put(START, value);
        let cases = [
            ("5081c088efd1f6e19906760568656c6c6f", put(hello())),
            ("5081c088efd1f6e19906", put(None)),
            ("5081c088efd1f6e199067600", put(Some(Bytes::new()))),
            ("4481c088efd1f6e19906", WriteRecord::delete(START)),
            (
                "5081c088efd1f6e19906760568656c6c6f5301",
                WriteRecord {
                    txn_source: 1,
                    ..put(hello())
                },
            ),
            (
                "5081c088efd1f6e19906760568656c6c6f52460000000000000000",
                WriteRecord {
                    overlapped_rollback: true,
                    gc_fence: Some(Ts::ZERO),
                    ..put(hello())
                },
            ),
            (
                "4481c088efd1f6e199066c000000000000000001",
                WriteRecord {
                    last_change: Some((Ts::ZERO, 1)),
                    ..WriteRecord::delete(START)
                },
            ),
        ];
        for (text, record) in cases {
            assert_eq!(hex::encode(record.to_bytes()), text);
            assert_eq!(WriteRecord::parse(&bytes(text)).unwrap(), record);
            let value = bytes(text);
            assert_eq!(WriteView::parse(&value).unwrap().to_record(), record);
            assert_eq!(start_ts_of(&bytes(text)).unwrap(), START);
        }
    }

    #[test]
    fn a_field_of_a_newer_version_ends_the_parse_without_an_error() {
        let parsed = WriteRecord::parse(&bytes("5081c088efd1f6e199067600ff0102")).unwrap();
        assert_eq!(parsed, WriteRecord::put(START, Some(Bytes::new())));
    }

    #[test]
    fn damaged_records_are_refused_with_the_field_that_is_cut() {
        let refused = |text| WriteRecord::parse(&bytes(text)).unwrap_err();
        let cut = |field| WriteError::Truncated { field };
        assert_eq!(refused(""), WriteError::Empty);
        assert_eq!(refused("58"), WriteError::UnknownType(0x58));
        assert_eq!(refused("50"), cut("start ts"));
        assert_eq!(refused("508180"), cut("start ts"));
        assert_eq!(refused("500176"), cut("short value"));
        assert_eq!(refused("5001760261"), cut("short value"));
        assert_eq!(refused("50014600000000000000"), cut("gc fence"));
        assert_eq!(refused("50016c00"), cut("last change ts"));
        assert_eq!(
            refused("50016c0000000000000000"),
            cut("versions to last change")
        );
        assert_eq!(refused("500153"), cut("txn source"));
        assert_eq!(
            refused("50ffffffffffffffffff7f"),
            WriteError::Overflow { field: "start ts" }
        );
    }

    #[test]
    fn appending_gives_the_bytes_of_the_record() {
        for (value, txn_source) in [(None, 0), (Some(&b""[..]), 0), (Some(&[7; 255][..]), 300)] {
            let mut out = b"before".to_vec();
            append_put(START, value, txn_source, &mut out);
            let record = WriteRecord {
                txn_source,
                ..WriteRecord::put(START, value.map(Bytes::copy_from_slice))
            };
            assert_eq!(out[6..], record.to_bytes());
            out.clear();
            append_delete(START, txn_source, &mut out);
            let record = WriteRecord {
                txn_source,
                ..WriteRecord::delete(START)
            };
            assert_eq!(out, record.to_bytes());
        }
    }

    fn any_record() -> impl Strategy<Value = WriteRecord> {
        (
            (0..4usize, any::<u64>(), any::<bool>(), any::<u64>()),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=255)),
            proptest::option::of(any::<u64>()),
            proptest::option::of((any::<u64>(), any::<u64>())),
        )
            .prop_map(|((kind, start, overlapped, source), value, fence, last)| {
                let kinds = [
                    WriteType::Put,
                    WriteType::Delete,
                    WriteType::Lock,
                    WriteType::Rollback,
                ];
                WriteRecord {
                    kind: kinds[kind],
                    start_ts: Ts::new(start),
                    short_value: value.map(Bytes::from),
                    overlapped_rollback: overlapped,
                    gc_fence: fence.map(Ts::new),
                    last_change: last.map(|(ts, versions)| (Ts::new(ts), versions)),
                    txn_source: source,
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_record_survives_a_round_trip(record in any_record()) {
            let encoded = record.to_bytes();
            prop_assert_eq!(start_ts_of(&encoded), Ok(record.start_ts));
            prop_assert_eq!(WriteRecord::parse(&encoded), Ok(record));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(kind in 0..5usize, rest in any::<Vec<u8>>()) {
            let mut value = b"PDLRx"[kind..=kind].to_vec();
            value.extend(rest);
            let _ = WriteRecord::parse(&value.into());
        }
    }
}
