//! Turns the changes of one applied command into rows.
//!
//! One row per key, as TiKV builds them: a write record or a lock gives the row its kind, a
//! default-CF put of the same command its long value. A write record that is neither data nor a
//! rollback leaves an UNKNOWN row behind, as the real server sends it; a lock without data leaves
//! none. Source: tikv/tikv
//! `components/cdc/src/delegate.rs`.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::key::split_versioned;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{EncodedKey, Ts};
use pitr_proto::cdcpb::event::{LogType, Row, row::OpType};
use pitr_restore_worker::engine::EngineCf;

use crate::store::change::Modify;
use crate::store::lock::{LockKind, LockRecord};

/// Looks up what a key held.
pub trait OldValues {
    /// The value of an encoded key that a read at `ts` sees.
    fn value_at(&self, key: &[u8], ts: Ts) -> Result<Option<Bytes>, RowError>;
}

/// The store holds something that cannot be turned into a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row of key {key}: {reason}")]
pub struct RowError {
    /// The stored key, hex.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

impl RowError {
    /// An error about `key`.
    pub fn new(key: &[u8], reason: impl ToString) -> Self {
        RowError {
            key: hex::encode_upper(key),
            reason: reason.to_string(),
        }
    }
}

#[derive(Default)]
struct Draft {
    row: Row,
    has_value: bool,
}

/// Rows of one command, in key order, with the encoded key of each.
pub fn rows_of(
    mods: &[Modify],
    one_pc: bool,
    old: &dyn OldValues,
) -> Result<Vec<(Bytes, Row)>, RowError> {
    let mut drafts: BTreeMap<Bytes, Draft> = BTreeMap::new();
    for change in mods {
        let Modify::Put { cf, key, value } = change else {
            continue;
        };
        let versioned = |key: &Bytes| {
            split_versioned(key)
                .map(|(encoded, ts)| (key.slice_ref(encoded), ts))
                .map_err(|e| RowError::new(key, e))
        };
        match cf {
            EngineCf::Write => {
                let (encoded, commit_ts) = versioned(key)?;
                let draft = drafts.entry(encoded.clone()).or_default();
                let write = WriteRecord::parse(value).map_err(|e| RowError::new(key, e))?;
                if apply_write(draft, &encoded, commit_ts, write)? && one_pc {
                    draft.row.r#type = LogType::Committed.into();
                    let start = Ts::new(draft.row.start_ts);
                    draft.row.old_value = old.value_at(&encoded, start)?.unwrap_or_default();
                }
            }
            EngineCf::Lock => {
                let lock = LockRecord::parse(value).map_err(|e| RowError::new(key, e))?;
                let Some(row) = lock_row(key, &lock)? else {
                    continue;
                };
                let draft = drafts.entry(key.clone()).or_default();
                draft.has_value |= lock.short_value.is_some();
                let value = std::mem::take(&mut draft.row.value);
                draft.row = row;
                if lock.short_value.is_none() {
                    draft.row.value = value;
                }
                let before = lock.for_update_ts.max(lock.start_ts);
                draft.row.old_value = old.value_at(key, before)?.unwrap_or_default();
            }
            EngineCf::Default => {
                let (encoded, _) = versioned(key)?;
                let draft = drafts.entry(encoded).or_default();
                if !draft.has_value {
                    draft.row.value = value.clone();
                    draft.has_value = true;
                }
            }
        }
    }
    let complete = |draft: &Draft| {
        // A long value that was not written by this command was sent before.
        let missing = draft.row.r#type() == LogType::Prewrite
            && draft.row.op_type() == OpType::Put
            && !draft.has_value;
        !missing
    };
    let finished = drafts.into_iter().filter(|(_, draft)| complete(draft));
    Ok(finished.map(|(key, draft)| (key, draft.row)).collect())
}

/// The encoded key and start ts of the transaction whose end at that key a write record tells;
/// none for records that are neither data nor a rollback.
pub fn ended(key: &Bytes, value: &Bytes) -> Result<Option<(Bytes, Ts)>, RowError> {
    let failed = |e: &dyn std::fmt::Display| RowError::new(key, e);
    let (encoded, commit_ts) = split_versioned(key).map_err(|e| failed(&e))?;
    let write = WriteRecord::parse(value).map_err(|e| failed(&e))?;
    let start_ts = match (write.gc_fence, write.kind) {
        // A commit record rewritten by a protected rollback at its own commit ts.
        (Some(_), _) => commit_ts,
        (None, WriteType::Lock) => return Ok(None),
        (None, _) => write.start_ts,
    };
    Ok(Some((key.slice_ref(encoded), start_ts)))
}

/// Fills a row from a write record; false if the record is none that is reported.
fn apply_write(
    draft: &mut Draft,
    encoded: &Bytes,
    commit_ts: Ts,
    write: WriteRecord,
) -> Result<bool, RowError> {
    if write.gc_fence.is_some() {
        // A commit record rewritten by a protected rollback at its own commit ts.
        draft.row.start_ts = commit_ts.get();
        draft.row.r#type = LogType::Rollback.into();
        draft.row.key = raw_key(encoded)?;
        return Ok(false);
    }
    let (kind, op) = match write.kind {
        WriteType::Put => (LogType::Commit, OpType::Put),
        WriteType::Delete => (LogType::Commit, OpType::Delete),
        WriteType::Rollback => (LogType::Rollback, OpType::Unknown),
        WriteType::Lock => return Ok(false),
    };
    let row = &mut draft.row;
    row.start_ts = write.start_ts.get();
    row.commit_ts = match kind {
        LogType::Rollback => 0,
        _ => commit_ts.get(),
    };
    row.r#type = kind.into();
    row.op_type = op.into();
    row.key = raw_key(encoded)?;
    row.txn_source = write.txn_source;
    if let Some(value) = write.short_value {
        row.value = value;
        draft.has_value = true;
    }
    Ok(kind == LogType::Commit)
}

/// The PREWRITE row of a lock, without a long value; `None` for locks that are not reported.
pub fn lock_row(encoded: &Bytes, lock: &LockRecord) -> Result<Option<Row>, RowError> {
    let op = match lock.kind {
        LockKind::Put => OpType::Put,
        LockKind::Delete => OpType::Delete,
        LockKind::Lock | LockKind::Pessimistic => return Ok(None),
    };
    Ok(Some(Row {
        start_ts: lock.start_ts.get(),
        r#type: LogType::Prewrite.into(),
        op_type: op.into(),
        key: raw_key(encoded)?,
        value: lock.short_value.clone().unwrap_or_default(),
        txn_source: lock.txn_source,
        ..Default::default()
    }))
}

/// The user key of an encoded key.
pub fn raw_key(encoded: &Bytes) -> Result<Bytes, RowError> {
    EncodedKey::from_encoded(encoded.clone())
        .decode()
        .map(Bytes::from)
        .map_err(|e| RowError::new(encoded, e))
}

/// Whether a row reaches a client: rows of lossy DDL and of physical import never do, rows with
/// another origin not when the client filters them. Source: tikv/tikv
/// `components/cdc/src/txn_source.rs`.
pub fn is_reported(txn_source: u64, filter_loop: bool) -> bool {
    txn_source >> 8 == 0 && !(filter_loop && txn_source != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Before(&'static str);

    impl OldValues for Before {
        fn value_at(&self, _: &[u8], _: Ts) -> Result<Option<Bytes>, RowError> {
            Ok(Some(Bytes::from(self.0)))
        }
    }

    fn encoded(raw: &str) -> EncodedKey {
        EncodedKey::encode(raw.as_bytes())
    }

    fn lock(raw: &str, lock: &LockRecord) -> Modify {
        Modify::Put {
            cf: EngineCf::Lock,
            key: encoded(raw).into_bytes(),
            value: lock.to_bytes(),
        }
    }

    fn versioned(cf: EngineCf, raw: &str, ts: u64, value: Bytes) -> Modify {
        Modify::Put {
            cf,
            key: encoded(raw).at(Ts::new(ts)).into_bytes(),
            value,
        }
    }

    fn put_lock(short: Option<&'static str>) -> LockRecord {
        let mut lock = LockRecord::new(LockKind::Put, "k".into(), Ts::new(5), 0);
        lock.short_value = short.map(Bytes::from);
        lock
    }

    fn rows(mods: &[Modify], one_pc: bool) -> Vec<Row> {
        let rows = rows_of(mods, one_pc, &Before("old")).unwrap();
        rows.into_iter().map(|(_, row)| row).collect()
    }

    #[test]
    fn a_prewrite_carries_its_value_wherever_it_is_stored() {
        let long = Bytes::from(vec![b'L'; 300]);
        for mods in [
            [
                lock("k", &put_lock(None)),
                versioned(EngineCf::Default, "k", 5, long.clone()),
            ],
            [
                versioned(EngineCf::Default, "k", 5, long.clone()),
                lock("k", &put_lock(None)),
            ],
        ] {
            let rows = rows(&mods, false);
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].value, long);
            assert_eq!(rows[0].old_value, "old");
            assert_eq!(rows[0].r#type(), LogType::Prewrite);
        }
        assert_eq!(
            rows(&[lock("k", &put_lock(Some("s")))], false)[0].value,
            "s"
        );
    }

    #[test]
    fn a_rewritten_lock_with_a_long_value_gives_no_row() {
        assert!(rows(&[lock("k", &put_lock(None))], false).is_empty());
    }

    #[test]
    fn of_what_is_not_reported_only_a_write_record_leaves_an_unknown_row() {
        let pessimistic = LockRecord::new(LockKind::Pessimistic, "k".into(), Ts::new(5), 0);
        assert!(rows(&[lock("k", &pessimistic)], false).is_empty());
        let only = WriteRecord {
            kind: WriteType::Lock,
            ..WriteRecord::put(Ts::new(5), None)
        };
        let mods = [versioned(EngineCf::Write, "k", 9, only.to_bytes())];
        assert_eq!(rows(&mods, false), [Row::default()]);
    }

    #[test]
    fn a_commit_has_both_timestamps_and_a_one_phase_commit_is_complete() {
        let write = WriteRecord::put(Ts::new(5), Some("v".into())).to_bytes();
        let mods = [versioned(EngineCf::Write, "k", 9, write)];
        let row = &rows(&mods, false)[0];
        assert_eq!((row.start_ts, row.commit_ts), (5, 9));
        assert_eq!(row.r#type(), LogType::Commit);
        assert!(row.old_value.is_empty());
        let row = &rows(&mods, true)[0];
        assert_eq!(row.r#type(), LogType::Committed);
        assert_eq!(row.old_value, "old");
        assert_eq!(row.key, "k");
    }

    #[test]
    fn a_fenced_commit_record_is_reported_as_the_rollback_that_rewrote_it() {
        let mut write = WriteRecord::put(Ts::new(5), Some("v".into()));
        write.overlapped_rollback = true;
        write.gc_fence = Some(Ts::ZERO);
        let mods = [versioned(EngineCf::Write, "k", 9, write.to_bytes())];
        let row = &rows(&mods, false)[0];
        assert_eq!((row.start_ts, row.commit_ts), (9, 0));
        assert_eq!(row.r#type(), LogType::Rollback);
        assert!(row.value.is_empty());
    }

    #[test]
    fn rows_of_another_origin_are_filtered() {
        assert!(is_reported(0, true));
        assert!(is_reported(1, false));
        assert!(!is_reported(1, true));
        assert!(!is_reported(1 << 8, false));
        assert!(!is_reported(1 << 16, false));
    }
}
