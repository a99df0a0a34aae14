//! A small transaction client: routes by region, resolves locks it meets, commits in two phases,
//! asynchronously or in one phase, with or without pessimistic locks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use pitr_proto::errorpb;
use pitr_proto::kvrpcpb::prewrite_request::PessimisticAction;
use pitr_proto::kvrpcpb::{
    Action, BatchRollbackRequest, CheckTxnStatusRequest, CommitRequest, Context, GetRequest,
    KeyError, LockInfo, Mutation, Op, PessimisticLockRequest, PessimisticRollbackRequest,
    PrewriteRequest, PrewriteResponse, ResolveLockRequest,
};
use pitr_proto::metapb::Region;
use pitr_proto::pdpb::pd_client::PdClient;
use pitr_proto::pdpb::{RequestHeader, TsoRequest, TsoResponse};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::system::{System, context, encode, regions};

const LOCK_TTL: u64 = 3000;
const PAUSE: Duration = Duration::from_millis(3);

/// How a transaction commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode {
    pub pessimistic: bool,
    pub commit: CommitMode,
}

/// The last part of it. One phase is possible only inside one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommitMode {
    TwoPhase,
    Async,
    OnePc,
}

/// What happens to a key.
#[derive(Clone, Debug)]
pub enum Write {
    Put(Bytes),
    Delete,
    Lock,
}

/// How it ended well.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub ts: u64,
    pub how: CommitMode,
}

/// Somebody else was first; nothing is left behind.
#[derive(Debug)]
pub struct Aborted;

/// Why one request did nothing.
#[derive(Debug)]
enum Failure {
    Region,
    Key(Box<KeyError>),
}

/// What became of a lock that was met.
enum Met {
    Wait,
    Pushed,
    Gone,
}

struct Tso {
    requests: mpsc::UnboundedSender<TsoRequest>,
    answers: Streaming<TsoResponse>,
    request: TsoRequest,
}

/// The client; share it behind an `Arc`.
pub struct Client {
    pd: PdClient<Channel>,
    kv: TikvClient<Channel>,
    header: Option<RequestHeader>,
    tso: Mutex<Tso>,
    regions: RwLock<Vec<Region>>,
}

fn region_result(error: Option<errorpb::Error>) -> Result<(), Failure> {
    match error {
        None => Ok(()),
        Some(e) => {
            let expected = e.epoch_not_match.is_some()
                || e.region_not_found.is_some()
                || e.key_not_in_region.is_some();
            assert!(expected, "unexpected region error {e:?}");
            Err(Failure::Region)
        }
    }
}

fn key_result(error: Option<KeyError>) -> Result<(), Failure> {
    error.map_or(Ok(()), |e| Err(Failure::Key(Box::new(e))))
}

impl Client {
    pub async fn new(system: &System) -> Client {
        let (requests, receiver) = mpsc::unbounded_channel();
        let request = TsoRequest {
            header: system.header(),
            count: 1,
            ..TsoRequest::default()
        };
        requests.send(request.clone()).unwrap();
        let stream = UnboundedReceiverStream::new(receiver);
        let mut answers = system.pd.clone().tso(stream).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        let client = Client {
            pd: system.pd.clone(),
            kv: system.kv.clone(),
            header: system.header(),
            tso: Mutex::new(Tso {
                requests,
                answers,
                request,
            }),
            regions: RwLock::new(Vec::new()),
        };
        client.reload().await;
        client
    }

    pub async fn now(&self) -> u64 {
        let mut tso = self.tso.lock().await;
        tso.requests.send(tso.request.clone()).unwrap();
        let answer = tso
            .answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .timestamp
            .unwrap();
        u64::try_from(answer.physical << 18 | answer.logical).unwrap()
    }

    async fn reload(&self) {
        let loaded = regions(&self.pd, self.header.clone()).await;
        *self.regions.write() = loaded;
    }

    fn region_of(&self, key: &[u8]) -> Region {
        let key = encode(key);
        let regions = self.regions.read();
        regions
            .iter()
            .rfind(|r| r.start_key <= key)
            .expect("the first region has no bound")
            .clone()
    }

    fn grouped<'k>(
        &self,
        keys: impl Iterator<Item = &'k Bytes>,
    ) -> BTreeMap<u64, (Region, Vec<Bytes>)> {
        let mut groups: BTreeMap<u64, (Region, Vec<Bytes>)> = BTreeMap::new();
        for key in keys {
            let region = self.region_of(key);
            groups
                .entry(region.id)
                .or_insert((region, Vec::new()))
                .1
                .push(key.clone());
        }
        groups
    }

    /// Sends a request per region until every key was served; a region error re-routes.
    async fn for_each_region<R>(
        &self,
        keys: &[Bytes],
        mut send: impl AsyncFnMut(Context, Vec<Bytes>) -> Result<R, Failure>,
    ) -> Result<Vec<R>, Box<KeyError>> {
        let mut left: Vec<Bytes> = keys.to_vec();
        let mut answers = Vec::new();
        while let Some(first) = left.first() {
            // The first key, the primary, goes first, so that its lock is never missing.
            let region = self.region_of(first);
            let group = self
                .grouped(left.iter())
                .remove(&region.id)
                .expect("first key's region")
                .1;
            match send(context(&region), group.clone()).await {
                Ok(answer) => {
                    answers.push(answer);
                    left.retain(|k| !group.contains(k));
                }
                Err(Failure::Region) => self.reload().await,
                Err(Failure::Key(error)) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// The value visible at `version`.
    pub async fn get(&self, key: &Bytes, version: u64) -> Option<Bytes> {
        let mut pushed = Vec::new();
        loop {
            let mut context = context(&self.region_of(key));
            context.resolved_locks.clone_from(&pushed);
            let request = GetRequest {
                context: Some(context),
                key: key.clone(),
                version,
                ..GetRequest::default()
            };
            let answer = self.kv.clone().kv_get(request).await.unwrap().into_inner();
            if region_result(answer.region_error).is_err() {
                self.reload().await;
                continue;
            }
            match answer.error {
                None => return (!answer.not_found).then_some(answer.value),
                Some(error) => {
                    let lock = error
                        .locked
                        .unwrap_or_else(|| panic!("get of {key:?}: no lock"));
                    assert!(lock.lock_version <= version);
                    match self.meet(&lock, version).await {
                        Met::Pushed => pushed.push(lock.lock_version),
                        Met::Wait => tokio::time::sleep(PAUSE).await,
                        Met::Gone => {}
                    }
                }
            }
        }
    }

    /// Finds out about the transaction of a lock and clears the lock if it has ended.
    async fn meet(&self, lock: &LockInfo, caller_start_ts: u64) -> Met {
        let request = CheckTxnStatusRequest {
            context: Some(context(&self.region_of(&lock.primary_lock))),
            primary_key: lock.primary_lock.clone(),
            lock_ts: lock.lock_version,
            caller_start_ts,
            current_ts: self.now().await,
            resolving_pessimistic_lock: lock.lock_type() == Op::PessimisticLock,
            ..CheckTxnStatusRequest::default()
        };
        let status = self
            .kv
            .clone()
            .kv_check_txn_status(request)
            .await
            .unwrap()
            .into_inner();
        if region_result(status.region_error.clone()).is_err() {
            self.reload().await;
            return Met::Wait;
        }
        if let Some(error) = &status.error {
            assert!(error.txn_not_found.is_some(), "{error:?}");
            return Met::Wait;
        }
        if status.lock_ttl > 0 {
            let pushed = status.action() == Action::MinCommitTsPushed;
            return if pushed { Met::Pushed } else { Met::Wait };
        }
        if lock.lock_type() == Op::PessimisticLock {
            let for_update = lock.lock_for_update_ts;
            self.pessimistic_rollback(
                std::slice::from_ref(&lock.key),
                lock.lock_version,
                for_update,
            )
            .await;
            return Met::Gone;
        }
        self.for_each_region(std::slice::from_ref(&lock.key), async |context, keys| {
            let request = ResolveLockRequest {
                context: Some(context),
                start_version: lock.lock_version,
                commit_version: status.commit_version,
                keys,
                ..ResolveLockRequest::default()
            };
            let answer = self
                .kv
                .clone()
                .kv_resolve_lock(request)
                .await
                .unwrap()
                .into_inner();
            region_result(answer.region_error)?;
            key_result(answer.error)
        })
        .await
        .expect("a lock of an ended transaction resolves");
        Met::Gone
    }

    async fn pessimistic_rollback(&self, keys: &[Bytes], start: u64, for_update_ts: u64) {
        self.for_each_region(keys, async |context, keys| {
            let request = PessimisticRollbackRequest {
                context: Some(context),
                start_version: start,
                for_update_ts,
                keys,
            };
            let answer = self
                .kv
                .clone()
                .kv_pessimistic_rollback(request)
                .await
                .unwrap()
                .into_inner();
            assert!(answer.errors.is_empty(), "{:?}", answer.errors);
            region_result(answer.region_error)
        })
        .await
        .expect("only region errors");
    }

    async fn rollback(&self, keys: &[Bytes], start: u64) {
        self.for_each_region(keys, async |context, keys| {
            let request = BatchRollbackRequest {
                context: Some(context),
                start_version: start,
                keys,
                ..BatchRollbackRequest::default()
            };
            let answer = self
                .kv
                .clone()
                .kv_batch_rollback(request)
                .await
                .unwrap()
                .into_inner();
            region_result(answer.region_error)?;
            key_result(answer.error)
        })
        .await
        .expect("a transaction that did not commit rolls back");
    }

    /// Locks the keys at a timestamp; the `for_update_ts` that held for all, and their values.
    pub async fn lock(
        &self,
        keys: &[Bytes],
        start: u64,
    ) -> Result<(u64, BTreeMap<Bytes, Bytes>), Aborted> {
        let mut for_update_ts = start;
        for _ in 0..30 {
            let mut values = BTreeMap::new();
            let locked = self
                .for_each_region(keys, async |context, group| {
                    let found = self
                        .lock_in_region(context, &group, &keys[0], start, for_update_ts)
                        .await?;
                    values.extend(found);
                    Ok(())
                })
                .await;
            let Err(error) = locked else {
                return Ok((for_update_ts, values));
            };
            if let Some(lock) = &error.locked {
                if matches!(self.meet(lock, 0).await, Met::Wait) {
                    tokio::time::sleep(PAUSE).await;
                }
            } else {
                assert!(error.conflict.is_some(), "{error:?}");
            }
            for_update_ts = self.now().await;
        }
        self.pessimistic_rollback(keys, start, for_update_ts).await;
        Err(Aborted)
    }

    async fn lock_in_region(
        &self,
        context: Context,
        keys: &[Bytes],
        primary: &Bytes,
        start: u64,
        for_update_ts: u64,
    ) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        let mutations = keys.iter().map(|key| Mutation {
            op: Op::PessimisticLock.into(),
            key: key.clone(),
            ..Mutation::default()
        });
        let request = PessimisticLockRequest {
            context: Some(context),
            mutations: mutations.collect(),
            primary_lock: primary.clone(),
            start_version: start,
            lock_ttl: LOCK_TTL,
            for_update_ts,
            wait_timeout: -1,
            return_values: true,
            min_commit_ts: for_update_ts + 1,
            ..PessimisticLockRequest::default()
        };
        let answer = self
            .kv
            .clone()
            .kv_pessimistic_lock(request)
            .await
            .unwrap()
            .into_inner();
        region_result(answer.region_error)?;
        key_result(answer.errors.into_iter().next())?;
        assert_eq!(answer.values.len(), keys.len());
        let found = keys
            .iter()
            .cloned()
            .zip(answer.values)
            .zip(answer.not_founds);
        Ok(found
            .filter(|(_, absent)| !absent)
            .map(|(pair, _)| pair)
            .collect())
    }

    /// Writes and commits; `for_update_ts` of the locks if they were taken before.
    pub async fn commit(
        &self,
        how: CommitMode,
        start: u64,
        for_update_ts: Option<u64>,
        writes: &BTreeMap<Bytes, Write>,
    ) -> Result<Committed, Aborted> {
        let keys: Vec<Bytes> = writes.keys().cloned().collect();
        let one_pc = how == CommitMode::OnePc && self.grouped(keys.iter()).len() == 1;
        let asynchronous = how != CommitMode::TwoPhase;
        let answers = self
            .for_each_region(&keys, async |context, group| {
                let mut request = prewrite(context, &group, writes, start, for_update_ts);
                request.use_async_commit = asynchronous;
                request.try_one_pc = one_pc && group.len() == keys.len();
                if asynchronous && group.contains(&keys[0]) {
                    request.secondaries = keys[1..].to_vec();
                }
                let answer = self
                    .kv
                    .clone()
                    .kv_prewrite(request)
                    .await
                    .unwrap()
                    .into_inner();
                region_result(answer.region_error.clone())?;
                key_result(answer.errors.first().cloned())?;
                Ok(answer)
            })
            .await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                self.rollback(&keys, start).await;
                if let Some(lock) = &error.locked {
                    let _ = self.meet(lock, 0).await;
                    tokio::time::sleep(PAUSE).await;
                } else {
                    assert!(error.conflict.is_some(), "{error:?}");
                }
                return Err(Aborted);
            }
        };
        self.second_phase(&keys, start, asynchronous, &answers)
            .await
    }

    async fn second_phase(
        &self,
        keys: &[Bytes],
        start: u64,
        asynchronous: bool,
        answers: &[PrewriteResponse],
    ) -> Result<Committed, Aborted> {
        if let [one] = answers
            && one.one_pc_commit_ts > 0
        {
            return Ok(Committed {
                ts: one.one_pc_commit_ts,
                how: CommitMode::OnePc,
            });
        }
        if asynchronous && answers.iter().all(|a| a.min_commit_ts > 0) {
            let ts = answers
                .iter()
                .map(|a| a.min_commit_ts)
                .max()
                .expect("a region answered");
            // Committed already; the second phase only clears the locks.
            let done = self.send_commit(keys, start, ts).await;
            done.unwrap_or_else(|e| panic!("asynchronous commit at {ts}: {e:?}"));
            return Ok(Committed {
                ts,
                how: CommitMode::Async,
            });
        }
        loop {
            let ts = self.now().await;
            match self.send_commit(&keys[..1], start, ts).await {
                Ok(()) => {
                    let rest = self.send_commit(&keys[1..], start, ts).await;
                    rest.unwrap_or_else(|e| panic!("secondary of a committed transaction: {e:?}"));
                    return Ok(Committed {
                        ts,
                        how: CommitMode::TwoPhase,
                    });
                }
                // A reader pushed it: once more with a later timestamp.
                Err(error) if error.commit_ts_expired.is_some() => {}
                Err(error) => panic!("commit of {keys:?} at {ts}: {error:?}"),
            }
        }
    }

    async fn send_commit(&self, keys: &[Bytes], start: u64, ts: u64) -> Result<(), Box<KeyError>> {
        self.for_each_region(keys, async |context, keys| {
            let request = CommitRequest {
                context: Some(context),
                start_version: start,
                keys,
                commit_version: ts,
                ..CommitRequest::default()
            };
            let answer = self
                .kv
                .clone()
                .kv_commit(request)
                .await
                .unwrap()
                .into_inner();
            region_result(answer.region_error)?;
            key_result(answer.error)
        })
        .await
        .map(|_| ())
    }
}

fn prewrite(
    context: Context,
    keys: &[Bytes],
    writes: &BTreeMap<Bytes, Write>,
    start: u64,
    for_update_ts: Option<u64>,
) -> PrewriteRequest {
    let mutations = keys.iter().map(|key| {
        let (op, value) = match &writes[key] {
            Write::Put(value) => (Op::Put, value.clone()),
            Write::Delete => (Op::Del, Bytes::new()),
            Write::Lock => (Op::Lock, Bytes::new()),
        };
        Mutation {
            op: op.into(),
            key: key.clone(),
            value,
            ..Mutation::default()
        }
    });
    let actions = match for_update_ts {
        Some(_) => vec![PessimisticAction::DoPessimisticCheck.into(); keys.len()],
        None => Vec::new(),
    };
    PrewriteRequest {
        context: Some(context),
        mutations: mutations.collect(),
        primary_lock: writes.keys().next().expect("something is written").clone(),
        start_version: start,
        lock_ttl: LOCK_TTL,
        pessimistic_actions: actions,
        txn_size: u64::try_from(writes.len()).unwrap(),
        for_update_ts: for_update_ts.unwrap_or_default(),
        min_commit_ts: for_update_ts.unwrap_or(start) + 1,
        ..PrewriteRequest::default()
    }
}
