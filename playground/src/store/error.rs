//! Why a transactional command did not do its work, and how clients are told.
//!
//! Clients choose what to do by the *field* of `kvrpcpb.KeyError` that is set; people and log
//! searches look at the text. Both follow TiKV (tikv/tikv `src/storage/errors.rs`,
//! `extract_key_error`): `retryable` and `abort` hold the debug form of its nested errors.

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::deadlock::WaitForEntry;
use pitr_proto::kvrpcpb::write_conflict::Reason;
use pitr_proto::kvrpcpb::{self, KeyError, LockInfo};
use pitr_proto::metapb::Region;
use pitr_restore_worker::engine::EngineError;

use super::context::{RegionError, hex_upper};
use super::wait::Wait;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum KvError {
    /// The request is for another region, store or shape.
    #[error("{}", .0.message)]
    Region(RegionError),
    /// The keys do not allow it.
    #[error(transparent)]
    Txn(#[from] TxnError),
}

impl From<RegionError> for KvError {
    fn from(error: RegionError) -> Self {
        KvError::Region(error)
    }
}

impl From<EngineError> for KvError {
    fn from(error: EngineError) -> Self {
        KvError::Txn(error.into())
    }
}

/// Two transactions wrote the same key.
#[derive(Clone, Debug)]
pub(super) struct Conflict {
    pub start_ts: Ts,
    pub conflict_start_ts: Ts,
    pub conflict_commit_ts: Ts,
    pub key: Bytes,
    pub primary: Bytes,
    pub reason: Reason,
}

/// The keys do not allow a command. Keys are user keys; the message is TiKV's text.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub(super) enum TxnError {
    /// Another transaction holds the key.
    KeyIsLocked(Box<LockInfo>),
    /// Another transaction has changed the key meanwhile, or rolled this one back.
    WriteConflict(Box<Conflict>),
    /// An insert met an existing key.
    AlreadyExist { key: Bytes },
    /// A commit found neither its lock nor its commit record.
    TxnLockNotFound {
        start_ts: Ts,
        commit_ts: Ts,
        key: Bytes,
    },
    /// Nothing is known about a transaction.
    TxnNotFound { start_ts: Ts, key: Bytes },
    /// A rollback came after the commit.
    Committed {
        start_ts: Ts,
        commit_ts: Ts,
        key: Bytes,
    },
    /// A reader has pushed the transaction beyond its commit ts.
    CommitTsExpired {
        start_ts: Ts,
        commit_ts: Ts,
        key: Bytes,
        min_commit_ts: Ts,
    },
    /// An optimistic request met a pessimistic lock of its own transaction, or the reverse.
    LockTypeNotMatch {
        start_ts: Ts,
        key: Bytes,
        pessimistic: bool,
    },
    /// The pessimistic lock that a prewrite relies on is gone.
    PessimisticLockNotFound {
        start_ts: Ts,
        key: Bytes,
        reason: &'static str,
    },
    /// The transaction that asks for a pessimistic lock was rolled back.
    PessimisticLockRolledBack { start_ts: Ts, key: Bytes },
    /// The asked key is not the primary of its lock.
    PrimaryMismatch(Box<LockInfo>),
    /// Waiting would never end: the waits from the holder of the lock back to the waiter.
    Deadlock {
        start_ts: Ts,
        lock_ts: Ts,
        key: Bytes,
        cycle: Vec<Wait>,
    },
    /// A commit ts at or below the start ts.
    InvalidTxnTso { start_ts: Ts, commit_ts: Ts },
    /// A key (encoded) lies outside of the region that the request addresses.
    KeyOutOfRegion { key: Bytes, region: Box<Region> },
    /// A record says that its value is in the default column family, where it is not.
    DefaultNotFound { key: Bytes },
    /// A record does not decode.
    Damaged(String),
    /// The request contradicts itself.
    InvalidRequest(&'static str),
    /// The engine failed.
    Engine(EngineError),
}

impl From<EngineError> for TxnError {
    fn from(error: EngineError) -> Self {
        TxnError::Engine(error)
    }
}

impl TxnError {
    /// The debug form of TiKV's error.
    fn text(&self) -> String {
        let inner = match self {
            TxnError::InvalidTxnTso {
                start_ts,
                commit_ts,
            } => {
                return format!(
                    "Error(Txn(Error(InvalidTxnTso {{ start_ts: {}, commit_ts: {} }})))",
                    stamp(*start_ts),
                    stamp(*commit_ts)
                );
            }
            TxnError::WriteConflict(c) => format!(
                "WriteConflict {{ start_ts: {}, conflict_start_ts: {}, conflict_commit_ts: {}, \
                 key: {:?}, primary: {:?}, reason: {:?} }}",
                stamp(c.start_ts),
                stamp(c.conflict_start_ts),
                stamp(c.conflict_commit_ts),
                &c.key[..],
                &c.primary[..],
                c.reason
            ),
            TxnError::KeyOutOfRegion { key, region } => format!(
                "Kv(Error(Other(\"Key {} is out of [region {}] [{}, {})\")))",
                hex_upper(key),
                region.id,
                hex_upper(&region.start_key),
                hex_upper(&region.end_key)
            ),
            other => other.simple_text(),
        };
        format!("Error(Txn(Error(Mvcc(Error({inner})))))")
    }

    fn simple_text(&self) -> String {
        let (name, start_ts, key, rest) = match self {
            TxnError::TxnLockNotFound {
                start_ts,
                commit_ts,
                key,
            } => {
                let (start, commit) = (stamp(*start_ts), stamp(*commit_ts));
                return format!(
                    "TxnLockNotFound {{ start_ts: {start}, commit_ts: {commit}, key: {:?}, \
                     mvcc_info: None }}",
                    &key[..]
                );
            }
            TxnError::Committed {
                start_ts,
                commit_ts,
                key,
            } => {
                let (start, commit) = (stamp(*start_ts), stamp(*commit_ts));
                return format!(
                    "Committed {{ start_ts: {start}, commit_ts: {commit}, key: {:?} }}",
                    &key[..]
                );
            }
            TxnError::LockTypeNotMatch {
                start_ts,
                key,
                pessimistic,
            } => {
                let rest = format!(", pessimistic: {pessimistic}");
                ("LockTypeNotMatch", start_ts, key, rest)
            }
            TxnError::PessimisticLockNotFound {
                start_ts,
                key,
                reason,
            } => {
                let rest = format!(", reason: {reason}");
                ("PessimisticLockNotFound", start_ts, key, rest)
            }
            TxnError::PessimisticLockRolledBack { start_ts, key } => {
                ("PessimisticLockRolledBack", start_ts, key, String::new())
            }
            TxnError::TxnNotFound { start_ts, key } => {
                ("TxnNotFound", start_ts, key, String::new())
            }
            TxnError::DefaultNotFound { key } => {
                return format!("DefaultNotFound {{ key: {:?} }}", &key[..]);
            }
            TxnError::Damaged(what) => return format!("Codec({what:?})"),
            TxnError::InvalidRequest(what) => return format!("Other({what:?})"),
            TxnError::Engine(e) => return format!("Kv(Error(Other({:?})))", e.to_string()),
            // These reach a client in fields of their own, without a text.
            other => return format!("{other:?}"),
        };
        let start = stamp(*start_ts);
        format!("{name} {{ start_ts: {start}, key: {:?}{rest} }}", &key[..])
    }

    /// The answer to the client.
    pub fn to_key_error(&self) -> KeyError {
        let mut out = KeyError::default();
        match self {
            TxnError::KeyIsLocked(info) => out.locked = Some(LockInfo::clone(info)),
            TxnError::WriteConflict(c) => {
                out.retryable = self.text();
                out.conflict = Some(kvrpcpb::WriteConflict {
                    start_ts: c.start_ts.get(),
                    conflict_ts: c.conflict_start_ts.get(),
                    key: c.key.clone(),
                    primary: c.primary.clone(),
                    conflict_commit_ts: c.conflict_commit_ts.get(),
                    reason: c.reason.into(),
                });
            }
            TxnError::AlreadyExist { key } => {
                out.already_exist = Some(kvrpcpb::AlreadyExist { key: key.clone() });
            }
            TxnError::TxnLockNotFound { key, .. } => {
                out.retryable = self.text();
                out.txn_lock_not_found = Some(kvrpcpb::TxnLockNotFound { key: key.clone() });
            }
            TxnError::TxnNotFound { start_ts, key } => {
                out.txn_not_found = Some(kvrpcpb::TxnNotFound {
                    start_ts: start_ts.get(),
                    primary_key: key.clone(),
                });
            }
            TxnError::CommitTsExpired {
                start_ts,
                commit_ts,
                key,
                min_commit_ts,
            } => {
                out.commit_ts_expired = Some(kvrpcpb::CommitTsExpired {
                    start_ts: start_ts.get(),
                    attempted_commit_ts: commit_ts.get(),
                    key: key.clone(),
                    min_commit_ts: min_commit_ts.get(),
                });
            }
            TxnError::PrimaryMismatch(info) => {
                out.primary_mismatch = Some(kvrpcpb::PrimaryMismatch {
                    lock_info: Some(LockInfo::clone(info)),
                });
            }
            TxnError::Deadlock {
                start_ts,
                lock_ts,
                key,
                cycle,
            } => out.deadlock = Some(deadlock(*start_ts, *lock_ts, key, cycle)),
            _ => out.abort = self.text(),
        }
        out
    }
}

fn deadlock(start_ts: Ts, lock_ts: Ts, key: &Bytes, cycle: &[Wait]) -> kvrpcpb::Deadlock {
    let entry = |txn: Ts, wait_for_txn: Ts, key: &Bytes| WaitForEntry {
        txn: txn.get(),
        wait_for_txn: wait_for_txn.get(),
        key: key.clone(),
        ..Default::default()
    };
    let mut wait_chain: Vec<_> = cycle
        .iter()
        .map(|w| entry(w.waiter, w.holder, &w.key))
        .collect();
    wait_chain.push(entry(start_ts, lock_ts, key));
    kvrpcpb::Deadlock {
        lock_ts: lock_ts.get(),
        lock_key: key.clone(),
        deadlock_key: cycle.last().map(|w| w.key.clone()).unwrap_or_default(),
        wait_chain,
        ..Default::default()
    }
}

fn stamp(ts: Ts) -> String {
    format!("TimeStamp({ts})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_real_store() {
        let conflict = TxnError::WriteConflict(Box::new(Conflict {
            start_ts: Ts::new(1),
            conflict_start_ts: Ts::new(2),
            conflict_commit_ts: Ts::new(3),
            key: "kv/a".into(),
            primary: "kv/b".into(),
            reason: Reason::Optimistic,
        }));
        assert_eq!(
            conflict.to_key_error().retryable,
            "Error(Txn(Error(Mvcc(Error(WriteConflict { start_ts: TimeStamp(1), \
             conflict_start_ts: TimeStamp(2), conflict_commit_ts: TimeStamp(3), \
             key: [107, 118, 47, 97], primary: [107, 118, 47, 98], reason: Optimistic })))))"
        );
        let lost = TxnError::TxnLockNotFound {
            start_ts: Ts::new(1),
            commit_ts: Ts::new(2),
            key: "a".into(),
        };
        assert_eq!(
            lost.to_key_error().retryable,
            "Error(Txn(Error(Mvcc(Error(TxnLockNotFound { start_ts: TimeStamp(1), \
             commit_ts: TimeStamp(2), key: [97], mvcc_info: None })))))"
        );
        let committed = TxnError::Committed {
            start_ts: Ts::new(1),
            commit_ts: Ts::new(2),
            key: "a".into(),
        };
        assert_eq!(
            committed.to_key_error().abort,
            "Error(Txn(Error(Mvcc(Error(Committed { start_ts: TimeStamp(1), \
             commit_ts: TimeStamp(2), key: [97] })))))"
        );
    }
}
