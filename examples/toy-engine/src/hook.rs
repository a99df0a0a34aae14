//! The hook behind apply, and the scan that joins it without a gap.
//!
//! Between two commands of the log the hook is installed and a snapshot is taken: what is applied
//! later comes through the hook, what was applied earlier is in the snapshot, nothing is in
//! neither. The snapshot's locks belong to it too: a transaction that was prewritten before and
//! commits later has its `default` record in the snapshot and its write record in the hook.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::key::split_versioned;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedKey, KvRecord, OpKind, Ts};
use pitr_restore_worker::engine::{EngineCf, EngineOp};
use tokio::sync::mpsc;

use crate::log::ApplyObserver;
use crate::replica::Replica;

/// What the hook tells, in log order.
pub enum Heard {
    /// Records of one command.
    Rows(Vec<KvRecord>),
    /// No record with a commit ts at or below this one will follow.
    Resolved(Ts),
}

/// Hears every command behind its apply.
pub struct Hook {
    /// Locks that are held: data key → start ts.
    locks: Mutex<BTreeMap<Vec<u8>, Ts>>,
    /// Bounded: when the observer is behind, the log waits.
    heard: mpsc::Sender<Heard>,
}

impl Hook {
    /// To be called between two commands: the hook from here on, what it tells, and the records
    /// that it will not tell because they were applied before (commit ts above `checkpoint`).
    pub fn join(
        replica: &Replica,
        checkpoint: Ts,
        queue: usize,
    ) -> (Arc<Hook>, mpsc::Receiver<Heard>, Vec<KvRecord>) {
        let (heard, hears) = mpsc::channel(queue.max(1));
        let locks = replica.family(EngineCf::Lock);
        let locks = locks.into_iter().map(|(key, value)| (key, lock_ts(&value)));
        let hook = Arc::new(Hook {
            locks: Mutex::new(locks.collect()),
            heard,
        });
        let scan = scan(replica, checkpoint, &hook.locks.lock());
        (hook, hears, scan)
    }

    /// Tells what is resolved at `now`, a timestamp drawn between two commands.
    pub async fn resolve(&self, now: Ts) {
        let oldest = self.locks.lock().values().min().copied();
        let resolved = oldest.map_or(now, |start_ts| now.min(start_ts.prev()));
        // Nobody listens any more: the backup has ended.
        let _ = self.heard.send(Heard::Resolved(resolved)).await;
    }
}

#[async_trait]
impl ApplyObserver for Hook {
    async fn applied(&self, ops: &[EngineOp]) {
        let mut rows = Vec::new();
        for op in ops {
            match op {
                EngineOp::Put {
                    cf: EngineCf::Lock,
                    key,
                    value,
                } => {
                    self.locks.lock().insert(key.clone(), lock_ts(value));
                }
                EngineOp::Delete {
                    cf: EngineCf::Lock,
                    key,
                } => {
                    self.locks.lock().remove(key);
                }
                EngineOp::Put { cf, key, value } => rows.extend(record(*cf, key, value)),
                // The toy never deletes records; a real engine tells of them too.
                EngineOp::Delete { .. } => {}
            }
        }
        if !rows.is_empty() {
            let _ = self.heard.send(Heard::Rows(rows)).await;
        }
    }
}

/// Write records committed above `checkpoint` with the values they refer to, and the values of
/// transactions whose locks are still held.
fn scan(replica: &Replica, checkpoint: Ts, locks: &BTreeMap<Vec<u8>, Ts>) -> Vec<KvRecord> {
    let values = replica.family(EngineCf::Default);
    let value_of = |versioned: Vec<u8>| {
        let value = values.get(&versioned)?;
        record(EngineCf::Default, &versioned, value)
    };
    let mut rows = Vec::new();
    for (key, value) in replica.family(EngineCf::Write) {
        let Ok((encoded, commit_ts)) = split_versioned(&key) else {
            continue;
        };
        if commit_ts <= checkpoint {
            continue;
        }
        if let Ok(write) = WriteRecord::parse(&Bytes::copy_from_slice(&value))
            && write.kind == WriteType::Put
            && write.short_value.is_none()
        {
            rows.extend(value_of(at(encoded, write.start_ts)));
        }
        rows.extend(record(EngineCf::Write, &key, &value));
    }
    for (key, start_ts) in locks {
        rows.extend(value_of(at(key, *start_ts)));
    }
    rows
}

fn at(encoded: &[u8], ts: Ts) -> Vec<u8> {
    EncodedKey::from_encoded(encoded.to_vec())
        .at(ts)
        .as_bytes()
        .to_vec()
}

/// The log's record of a put; keys lose their `z`. Locks are not part of a log backup.
fn record(cf: EngineCf, data_key: &[u8], value: &[u8]) -> Option<KvRecord> {
    let cf = match cf {
        EngineCf::Default => Cf::Default,
        EngineCf::Write => Cf::Write,
        EngineCf::Lock => return None,
    };
    Some(KvRecord {
        cf,
        op: OpKind::Put,
        key: Bytes::copy_from_slice(data_key.get(1..)?),
        value: Bytes::copy_from_slice(value),
    })
}

fn lock_ts(value: &[u8]) -> Ts {
    value
        .first_chunk()
        .map_or(Ts::ZERO, |ts| Ts::new(u64::from_be_bytes(*ts)))
}
