//! The rules of the commands, through the requests that clients send.

mod client;
mod pessimistic;
mod prewrite;
mod reads;
mod rollback;
mod status;
mod workload;

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::kvrpcpb::*;

use crate::store::fixture::Fixture;

/// A store with one region, and requests with small timestamps.
pub(super) struct Kv {
    pub fixture: Fixture,
}

/// A ts in a given millisecond, for time to live.
pub(super) fn at_ms(ms: u64) -> u64 {
    Ts::compose(ms, 0).get()
}

pub(super) fn mutation(op: Op, key: &str, value: &str) -> Mutation {
    Mutation {
        op: op.into(),
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

pub(super) fn put(key: &str, value: &str) -> Mutation {
    mutation(Op::Put, key, value)
}

fn bytes(keys: &[&str]) -> Vec<Bytes> {
    keys.iter().map(|k| Bytes::from(k.to_string())).collect()
}

impl Kv {
    pub fn new() -> Self {
        Kv {
            fixture: Fixture::new(),
        }
    }

    pub fn context(&self) -> Option<Context> {
        let regions = self.fixture.store.regions();
        regions.find(b"").map(|region| regions.context(region))
    }

    pub fn prewrite_request(&self, mutations: Vec<Mutation>, start: u64) -> PrewriteRequest {
        PrewriteRequest {
            context: self.context(),
            primary_lock: mutations[0].key.clone(),
            txn_size: mutations.len() as u64,
            mutations,
            start_version: start,
            lock_ttl: 3000,
            ..Default::default()
        }
    }

    pub fn prewrite(&self, mutations: Vec<Mutation>, start: u64) -> PrewriteResponse {
        let request = self.prewrite_request(mutations, start);
        self.fixture.store.prewrite(request)
    }

    pub fn must_prewrite(&self, mutations: Vec<Mutation>, start: u64) {
        assert_eq!(self.prewrite(mutations, start), PrewriteResponse::default());
    }

    pub fn async_prewrite(&self, mutations: Vec<Mutation>, start: u64, max: u64) -> u64 {
        let secondaries = mutations[1..].iter().map(|m| m.key.clone()).collect();
        let response = self.fixture.store.prewrite(PrewriteRequest {
            use_async_commit: true,
            secondaries,
            max_commit_ts: max,
            ..self.prewrite_request(mutations, start)
        });
        assert_eq!(response.errors, []);
        response.min_commit_ts
    }

    pub fn one_pc(&self, mutations: Vec<Mutation>, start: u64) -> PrewriteResponse {
        self.fixture.store.prewrite(PrewriteRequest {
            try_one_pc: true,
            use_async_commit: true,
            ..self.prewrite_request(mutations, start)
        })
    }

    pub fn commit(&self, keys: &[&str], start: u64, commit: u64) -> Option<KeyError> {
        let response = self.fixture.store.commit(CommitRequest {
            context: self.context(),
            start_version: start,
            keys: bytes(keys),
            commit_version: commit,
            ..Default::default()
        });
        assert_eq!(response.commit_version == commit, response.error.is_none());
        response.error
    }

    /// Puts one value in one transaction.
    pub fn must_put(&self, key: &str, value: &str, start: u64, commit: u64) {
        self.must_prewrite(vec![put(key, value)], start);
        assert_eq!(self.commit(&[key], start, commit), None);
    }

    pub fn rollback(&self, keys: &[&str], start: u64) -> Option<KeyError> {
        let response = self.fixture.store.batch_rollback(BatchRollbackRequest {
            context: self.context(),
            start_version: start,
            keys: bytes(keys),
            ..Default::default()
        });
        response.error
    }

    pub fn get(&self, key: &str, ts: u64) -> GetResponse {
        self.fixture.store.get(GetRequest {
            context: self.context(),
            key: key.to_owned().into(),
            version: ts,
            ..Default::default()
        })
    }

    /// The value, `None` if there is none; a lock is a failure of the test.
    pub fn value(&self, key: &str, ts: u64) -> Option<String> {
        let response = self.get(key, ts);
        assert_eq!(response.error, None);
        let value = String::from_utf8(response.value.to_vec()).unwrap();
        (!response.not_found).then_some(value)
    }

    pub fn info(&self, key: &str) -> MvccInfo {
        let response = self.fixture.store.mvcc_get_by_key(MvccGetByKeyRequest {
            context: self.context(),
            key: key.to_owned().into(),
        });
        assert_eq!(response.error, "");
        response.info.unwrap()
    }

    /// Write records as (kind, start ts, commit ts, marks), newest first.
    pub fn records(&self, key: &str) -> Vec<(Op, u64, u64, &'static str)> {
        let records = self.info(key).writes.into_iter();
        records
            .map(|w| {
                let mark = match (w.has_overlapped_rollback, &w.short_value[..], w.r#type()) {
                    (true, _, _) => "overlapped",
                    (_, b"p", Op::Rollback) => "protected",
                    _ => "",
                };
                (w.r#type(), w.start_ts, w.commit_ts, mark)
            })
            .collect()
    }

    pub fn is_locked(&self, key: &str) -> bool {
        self.info(key).lock.is_some()
    }

    pub fn status(&self, request: CheckTxnStatusRequest) -> CheckTxnStatusResponse {
        self.fixture.store.check_txn_status(CheckTxnStatusRequest {
            context: self.context(),
            ..request
        })
    }

    pub fn resolve(&self, start: u64, commit: u64) -> ResolveLockResponse {
        self.fixture.store.resolve_lock(ResolveLockRequest {
            context: self.context(),
            start_version: start,
            commit_version: commit,
            ..Default::default()
        })
    }
}

/// The conflict that a prewrite or a lock request met.
pub(super) fn conflict(errors: &[KeyError]) -> (write_conflict::Reason, u64, u64) {
    let conflict = errors[0].conflict.as_ref().unwrap();
    assert!(errors[0].retryable.contains("WriteConflict"));
    let commit_ts = conflict.conflict_commit_ts;
    (conflict.reason(), conflict.conflict_ts, commit_ts)
}
