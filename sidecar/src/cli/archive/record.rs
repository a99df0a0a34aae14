//! One record of the log as `cat` and `find` show it.

use std::fmt;

use pitr_format::key::{decode_prefix, split_versioned};
use pitr_format::write_cf::{WriteType, WriteView};
use pitr_format::{Cf, Ts};
use pitr_restore_worker::plan::Slice;
use schemars::JsonSchema;
use serde::Serialize;

use super::slices;
use crate::time;

/// Bytes of a value that the text form shows.
const SHOWN_BYTES: usize = 32;

/// One record of the log.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Record {
    /// The log file.
    object: String,
    /// Where the record's slice begins in it.
    slice_offset: u64,
    /// Where the record begins in the plaintext of the slice.
    offset: u64,
    /// Column family: `write` or `default`.
    cf: &'static str,
    /// What is done to the key of the column family.
    op: Op,
    /// The user key, hex.
    key: String,
    /// Commit ts in `write`, start ts in `default`.
    ts: time::Shown,
    /// The write record; null for deletes and in `default`.
    write: Option<Write>,
    /// The value in `default`, hex; null in `write`.
    value: Option<String>,
}

/// What is done to the key of a column family. A *user* key is deleted by the put of a write record
/// of the kind `delete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Op {
    /// Set.
    Put,
    /// Removed.
    Delete,
}

/// What a transaction did to a key.
#[derive(Debug, Serialize, JsonSchema)]
struct Write {
    /// Kind.
    kind: WriteKind,
    /// Start ts of the transaction.
    start_ts: u64,
    /// Where the value is.
    value_in: ValueIn,
    /// The value if it is short, hex.
    short_value: Option<String>,
    /// The commit ts is also the start ts of a transaction that was rolled back.
    overlapped_rollback: bool,
    /// GC fence of such a rollback.
    gc_fence: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum WriteKind {
    Put,
    Delete,
    Lock,
    Rollback,
}

/// Where the value of a write record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ValueIn {
    /// In the write record.
    Short,
    /// In `default`, under the start ts.
    Long,
    /// There is none.
    None,
}

impl Record {
    /// Decodes a record of a slice; the error says what is wrong with it.
    pub(super) fn new(
        slice: &Slice,
        offset: usize,
        key: &[u8],
        value: &[u8],
    ) -> Result<Record, String> {
        let at = |what: &dyn fmt::Display| format!("record at {offset} of the plaintext: {what}");
        let (encoded, ts) = split_versioned(key).map_err(|e| at(&e))?;
        let (user_key, _) = decode_prefix(encoded).map_err(|e| at(&e))?;
        let op = slices::op(slice);
        let write = match (slice.cf, op) {
            (Cf::Write, Op::Put) => Some(Write::new(value).map_err(|e| at(&e))?),
            _ => None,
        };
        let is_value = slice.cf == Cf::Default && op == Op::Put;
        Ok(Record {
            object: slice.object.clone(),
            slice_offset: slice.info.range_offset,
            offset: offset as u64,
            cf: slice.cf.as_str(),
            op,
            key: hex::encode(user_key),
            ts: time::show(ts),
            write,
            value: is_value.then(|| hex::encode(value)),
        })
    }
}

impl Write {
    fn new(value: &[u8]) -> Result<Write, pitr_format::write_cf::WriteError> {
        let view = WriteView::parse(value)?;
        let value_in = match (view.short_value, view.kind) {
            (Some(_), _) => ValueIn::Short,
            (None, WriteType::Put) => ValueIn::Long,
            (None, _) => ValueIn::None,
        };
        Ok(Write {
            kind: match view.kind {
                WriteType::Put => WriteKind::Put,
                WriteType::Delete => WriteKind::Delete,
                WriteType::Lock => WriteKind::Lock,
                WriteType::Rollback => WriteKind::Rollback,
            },
            start_ts: view.start_ts.get(),
            value_in,
            short_value: view.short_value.map(hex::encode),
            overlapped_rollback: view.overlapped_rollback,
            gc_fence: view.gc_fence.map(Ts::get),
        })
    }
}

impl Op {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Delete => "delete",
        }
    }
}

impl WriteKind {
    fn as_str(self) -> &'static str {
        match self {
            WriteKind::Put => "put",
            WriteKind::Delete => "delete",
            WriteKind::Lock => "lock",
            WriteKind::Rollback => "rollback",
        }
    }
}

/// Hex of a value, cut if it is long.
fn cut(hex: &str) -> String {
    match hex.get(..SHOWN_BYTES * 2) {
        Some(head) if hex.len() > head.len() => format!("{head}… ({} bytes)", hex.len() / 2),
        _ => hex.to_owned(),
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op, key, ts) = (self.op.as_str(), &self.key, &self.ts);
        write!(f, "{:<7} {op:<6} {key}  {} {}", self.cf, ts.tso, ts.local)?;
        if let Some(write) = &self.write {
            write!(f, "  {} start {}", write.kind.as_str(), write.start_ts)?;
            match (&write.short_value, write.value_in) {
                (Some(short), _) => write!(f, " short {}", cut(short))?,
                (None, ValueIn::Long) => f.write_str(" long")?,
                (None, _) => {}
            }
            if write.overlapped_rollback {
                f.write_str(" overlapped-rollback")?;
            }
        }
        if let Some(value) = &self.value {
            write!(f, "  {}", cut(value))?;
        }
        write!(
            f,
            "  @ {}+{}:{}",
            self.object, self.slice_offset, self.offset
        )
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_format::EncodedKey;
    use pitr_format::write_cf::WriteRecord;
    use pitr_proto::backup::{DataFileInfo, FileType};

    use super::*;

    fn slice(cf: Cf, op: FileType) -> Slice {
        Slice {
            object: "v1/a.log".to_owned(),
            cf,
            info: DataFileInfo {
                range_offset: 100,
                r#type: op as i32,
                ..DataFileInfo::default()
            },
        }
    }

    fn record(cf: Cf, op: FileType, value: &[u8]) -> Record {
        let key = EncodedKey::encode(b"k1").at(Ts::new(9));
        Record::new(&slice(cf, op), 8, key.as_bytes(), value).unwrap()
    }

    #[test]
    fn a_write_says_where_its_value_is() {
        let write = |record: WriteRecord| {
            let record = self::record(Cf::Write, FileType::Put, &record.to_bytes());
            let write = record.write.unwrap();
            (write.kind, write.value_in, write.short_value)
        };
        let short = WriteRecord::put(Ts::new(5), Some(Bytes::from_static(b"v")));
        let expected = (WriteKind::Put, ValueIn::Short, Some("76".to_owned()));
        assert_eq!(write(short), expected);
        let long = WriteRecord::put(Ts::new(5), None);
        assert_eq!(write(long), (WriteKind::Put, ValueIn::Long, None));
        let delete = WriteRecord::delete(Ts::new(5));
        assert_eq!(write(delete), (WriteKind::Delete, ValueIn::None, None));
    }

    #[test]
    fn the_text_has_key_time_kind_and_place() {
        let write = WriteRecord::put(Ts::new(5), Some(Bytes::from_static(b"v")));
        let text = record(Cf::Write, FileType::Put, &write.to_bytes()).to_string();
        assert!(text.starts_with("write   put    6b31  9 "), "{text}");
        assert!(
            text.ends_with("put start 5 short 76  @ v1/a.log+100:8"),
            "{text}"
        );
    }

    #[test]
    fn a_long_value_is_cut_in_text_and_whole_in_json() {
        let record = record(Cf::Default, FileType::Put, &[0xAB; 1000]);
        assert!(record.to_string().contains("… (1000 bytes)"), "{record}");
        assert_eq!(record.value.as_ref().unwrap().len(), 2000);
        assert!(
            self::record(Cf::Default, FileType::Delete, b"")
                .value
                .is_none()
        );
    }

    #[test]
    fn a_record_that_cannot_be_understood_is_told_with_its_place() {
        let key = EncodedKey::encode(b"k1").at(Ts::new(9));
        let write = slice(Cf::Write, FileType::Put);
        let error = Record::new(&write, 8, key.as_bytes(), b"?").unwrap_err();
        assert!(error.contains("record at 8"), "{error}");
        assert!(Record::new(&write, 8, b"short", b"").is_err());
    }
}
