//! Two-phase transactions on the log, with TiKV's records: a lock and, for a long value, a
//! `default` record at the prewrite; a write record instead of the lock at the commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pitr_format::key::data_key;
use pitr_format::write_cf::{SHORT_VALUE_MAX_LEN, WriteRecord};
use pitr_format::{EncodedKey, Ts};
use pitr_restore_worker::engine::{EngineCf, EngineOp};

use crate::log::ReplicatedLog;

/// A store: the log and its source of timestamps.
#[derive(Clone)]
pub struct Store {
    log: Arc<ReplicatedLog>,
    last_ts: Arc<AtomicU64>,
}

/// A transaction between its two phases.
pub struct Prewritten {
    start_ts: Ts,
    writes: Vec<(Bytes, Option<Bytes>)>,
}

impl Store {
    /// A store over `log` whose timestamps begin above `first`.
    pub fn new(log: Arc<ReplicatedLog>, first: Ts) -> Self {
        Store {
            log,
            last_ts: Arc::new(AtomicU64::new(first.get())),
        }
    }

    /// The log underneath.
    pub fn log(&self) -> &Arc<ReplicatedLog> {
        &self.log
    }

    /// A timestamp above every one that was given out.
    pub fn tso(&self) -> Ts {
        Ts::new(self.last_ts.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Both phases: sets (`Some`) or deletes (`None`) keys; returns the commit ts.
    pub async fn write(&self, writes: Vec<(Bytes, Option<Bytes>)>) -> Ts {
        let prewritten = self.prewrite(writes).await;
        self.commit(prewritten).await
    }

    /// First phase.
    pub async fn prewrite(&self, writes: Vec<(Bytes, Option<Bytes>)>) -> Prewritten {
        let start_ts = self.tso();
        let mut ops = Vec::new();
        for (key, value) in &writes {
            let encoded = EncodedKey::encode(key);
            ops.push(EngineOp::Put {
                cf: EngineCf::Lock,
                key: data_key(encoded.as_bytes()),
                value: start_ts.get().to_be_bytes().to_vec(),
            });
            if let Some(long) = value.as_ref().filter(|value| is_long(value)) {
                ops.push(EngineOp::Put {
                    cf: EngineCf::Default,
                    key: data_key(encoded.at(start_ts).as_bytes()),
                    value: long.to_vec(),
                });
            }
        }
        self.log.propose(&ops).await;
        Prewritten { start_ts, writes }
    }

    /// Second phase. The commit ts is drawn only now, with the locks in place: that is what makes
    /// a resolved ts below the oldest lock a promise.
    pub async fn commit(&self, prewritten: Prewritten) -> Ts {
        let Prewritten { start_ts, writes } = prewritten;
        let commit_ts = self.tso();
        let mut ops = Vec::new();
        for (key, value) in writes {
            let encoded = EncodedKey::encode(&key);
            let record = match value {
                None => WriteRecord::delete(start_ts),
                Some(long) if is_long(&long) => WriteRecord::put(start_ts, None),
                Some(short) => WriteRecord::put(start_ts, Some(short)),
            };
            ops.push(EngineOp::Delete {
                cf: EngineCf::Lock,
                key: data_key(encoded.as_bytes()),
            });
            ops.push(EngineOp::Put {
                cf: EngineCf::Write,
                key: data_key(encoded.at(commit_ts).as_bytes()),
                value: record.to_bytes().to_vec(),
            });
        }
        self.log.propose(&ops).await;
        commit_ts
    }
}

fn is_long(value: &Bytes) -> bool {
    value.len() > SHORT_VALUE_MAX_LEN
}
