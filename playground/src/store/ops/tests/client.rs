//! A small transactional client with the behaviour that matters for isolation: region routing
//! with refresh, lock resolution, and the four ways to commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::errorpb;
use pitr_proto::kvrpcpb::prewrite_request::PessimisticAction;
use pitr_proto::kvrpcpb::*;
use tokio::runtime::Handle;

use super::super::pessimistic::pessimistic_lock;
use crate::store::Store;

/// Milliseconds of the test's clock, which moves by one with every ts.
const TTL: u64 = 40;

/// How a transaction commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    TwoPhase,
    Async,
    OnePhase,
    Pessimistic,
}

/// The transaction did not happen (or, if its client went away, perhaps did).
#[derive(Debug)]
pub struct Aborted;

#[derive(Clone)]
pub struct Client {
    pub store: Arc<Store>,
    pub clock: Arc<AtomicU64>,
    pub runtime: Handle,
}

/// What a transaction does after it has read.
pub struct Plan {
    pub start_ts: u64,
    pub way: Way,
    /// Writes and lock-only keys.
    pub mutations: Vec<Mutation>,
    /// The client goes away after its prewrite.
    pub goes_away: bool,
}

impl Client {
    pub fn ts(&self) -> u64 {
        Ts::compose(self.clock.fetch_add(1, Ordering::SeqCst), 0).get()
    }

    fn context(&self, key: &[u8]) -> Option<Context> {
        let encoded = EncodedKey::encode(key);
        let regions = self.store.regions();
        regions.find(encoded.as_bytes()).map(|r| regions.context(r))
    }

    /// The keys by the region that holds them now.
    fn grouped(&self, mutations: &[Mutation]) -> Vec<Vec<Mutation>> {
        let mut groups: BTreeMap<u64, Vec<Mutation>> = BTreeMap::new();
        for mutation in mutations {
            let region = self.context(&mutation.key).unwrap().region_id;
            groups.entry(region).or_default().push(mutation.clone());
        }
        groups.into_values().collect()
    }

    /// Repeats until the region error is gone. The keys of the call must lie in one region.
    fn call<A>(
        &self,
        key: &[u8],
        call: impl Fn(Option<Context>) -> A,
        error: impl Fn(&A) -> &Option<errorpb::Error>,
    ) -> A {
        loop {
            let answer = call(self.context(key));
            match error(&answer) {
                None => return answer,
                Some(e) => assert!(e.epoch_not_match.is_some(), "{e:?}"),
            }
        }
    }

    /// Reads one key at a ts, resolving what is in the way.
    pub fn get(&self, key: &Bytes, ts: u64) -> Option<Bytes> {
        loop {
            let request = |context| GetRequest {
                context,
                key: key.clone(),
                version: ts,
                ..Default::default()
            };
            let answer = self.call(key, |c| self.store.get(request(c)), |a| &a.region_error);
            match answer.error.and_then(|e| e.locked) {
                Some(lock) => self.resolve(&lock, ts),
                None => return (!answer.not_found).then_some(answer.value),
            }
        }
    }

    /// Decides the transaction of a lock if its time is over, or pushes it.
    pub fn resolve(&self, lock: &LockInfo, caller: u64) {
        let now = self.ts();
        let ask = |force_sync_commit| {
            let request = |context| CheckTxnStatusRequest {
                context,
                primary_key: lock.primary_lock.clone(),
                lock_ts: lock.lock_version,
                caller_start_ts: caller,
                current_ts: now,
                rollback_if_not_exist: true,
                force_sync_commit,
                ..Default::default()
            };
            self.call(
                &lock.primary_lock,
                |c| self.store.check_txn_status(request(c)),
                |a| &a.region_error,
            )
        };
        let mut status = ask(false);
        assert_eq!(status.error, None);
        if let Some(primary) = &status.lock_info
            && primary.use_async_commit
        {
            if Ts::new(primary.lock_version).physical_ms() + primary.lock_ttl
                >= Ts::new(now).physical_ms()
            {
                return std::thread::yield_now();
            }
            match self.decide_async(primary) {
                Some(commit_ts) => return self.clear(lock, primary, commit_ts),
                None => status = ask(true),
            }
        }
        match status.lock_info {
            Some(_) => std::thread::yield_now(),
            None => self.clear_key(&lock.key, lock.lock_version, status.commit_version),
        }
    }

    /// The commit ts of an async commit (0 = rolled back) as its secondaries tell it; none if
    /// one of them says that it is a two-phase commit.
    fn decide_async(&self, primary: &LockInfo) -> Option<u64> {
        let mut commit_ts = primary.min_commit_ts;
        for key in &primary.secondaries {
            let request = |context| CheckSecondaryLocksRequest {
                context,
                keys: vec![key.clone()],
                start_version: primary.lock_version,
            };
            let answer = self.call(
                key,
                |c| self.store.check_secondary_locks(request(c)),
                |a| &a.region_error,
            );
            match answer.locks.first() {
                Some(lock) if !lock.use_async_commit => return None,
                Some(lock) => commit_ts = commit_ts.max(lock.min_commit_ts),
                None => return Some(answer.commit_ts),
            }
        }
        Some(commit_ts)
    }

    fn clear(&self, lock: &LockInfo, primary: &LockInfo, commit_ts: u64) {
        let others = primary.secondaries.iter().chain([&lock.primary_lock]);
        for key in others {
            self.clear_key(key, lock.lock_version, commit_ts);
        }
    }

    fn clear_key(&self, key: &Bytes, start_ts: u64, commit_ts: u64) {
        let request = |context| ResolveLockRequest {
            context,
            start_version: start_ts,
            commit_version: commit_ts,
            keys: vec![key.clone()],
            ..Default::default()
        };
        let answer = self.call(
            key,
            |c| self.store.resolve_lock(request(c)),
            |a| &a.region_error,
        );
        assert_eq!(answer.error, None, "resolve {key:?} {start_ts} {commit_ts}");
    }

    /// Takes pessimistic locks on keys in order; the ts to read at.
    pub fn lock(&self, keys: &[Bytes], start_ts: u64) -> Result<u64, Aborted> {
        let mut for_update_ts = start_ts;
        let mut at = 0;
        while at < keys.len() {
            let context = self.context(&keys[at]);
            let request = PessimisticLockRequest {
                context,
                mutations: vec![Mutation {
                    op: Op::PessimisticLock.into(),
                    key: keys[at].clone(),
                    ..Default::default()
                }],
                primary_lock: keys[0].clone(),
                start_version: start_ts,
                lock_ttl: TTL,
                for_update_ts,
                wait_timeout: 5,
                ..Default::default()
            };
            let answer = pessimistic_lock(self.store.clone(), request);
            let answer = self.runtime.block_on(answer);
            let Some(error) = answer.errors.first() else {
                at += usize::from(answer.region_error.is_none());
                continue;
            };
            if let Some(lock) = &error.locked {
                self.resolve(lock, 0);
            } else if error.conflict.is_some() {
                for_update_ts = self.ts();
            } else {
                self.give_up(&keys[..at], start_ts);
                return Err(Aborted);
            }
        }
        Ok(for_update_ts)
    }

    pub fn give_up(&self, keys: &[Bytes], start_ts: u64) {
        for key in keys {
            let request = |context| PessimisticRollbackRequest {
                context,
                start_version: start_ts,
                for_update_ts: u64::MAX,
                keys: vec![key.clone()],
            };
            self.call(
                key,
                |c| self.store.pessimistic_rollback(request(c)),
                |a| &a.region_error,
            );
        }
    }

    /// Prewrites and commits; the smallest ts at which the transaction is sure to be visible.
    pub fn finish(&self, plan: &Plan, for_update_ts: u64) -> Result<(), Aborted> {
        let mut groups = self.grouped(&plan.mutations);
        let whole = groups.len() == 1 && plan.way == Way::OnePhase;
        let mut min_commit_ts = 0;
        let mut decided_by_locks = matches!(plan.way, Way::Async | Way::OnePhase);
        while let Some(group) = groups.pop() {
            let request = self.prewrite_request(plan, group.clone(), for_update_ts, whole);
            let answer = self.store.prewrite(request);
            if answer.region_error.is_some() {
                groups.extend(self.grouped(&group));
                if whole && groups.len() > 1 {
                    // What was meant to be one phase lies in two regions now.
                    return Err(self.undo(plan));
                }
                continue;
            }
            if answer.one_pc_commit_ts > 0 {
                return Ok(());
            }
            if let Some(error) = answer.errors.first() {
                match &error.locked {
                    Some(lock) => {
                        self.resolve(lock, 0);
                        groups.push(group);
                        continue;
                    }
                    None => return Err(self.undo(plan)),
                }
            }
            decided_by_locks &= answer.min_commit_ts > 0;
            min_commit_ts = min_commit_ts.max(answer.min_commit_ts);
        }
        if plan.goes_away {
            return Err(Aborted);
        }
        let commit_ts = if decided_by_locks {
            min_commit_ts
        } else {
            self.ts()
        };
        self.commit(plan, commit_ts, decided_by_locks)
    }

    fn prewrite_request(
        &self,
        plan: &Plan,
        group: Vec<Mutation>,
        for_update_ts: u64,
        one_pc: bool,
    ) -> PrewriteRequest {
        let primary = plan.mutations[0].key.clone();
        let has_primary = group.iter().any(|m| m.key == primary);
        let secondaries = plan.mutations[1..].iter().map(|m| m.key.clone());
        let action = PessimisticAction::DoPessimisticCheck.into();
        PrewriteRequest {
            context: self.context(&group[0].key),
            primary_lock: primary,
            start_version: plan.start_ts,
            lock_ttl: TTL,
            txn_size: group.len() as u64,
            use_async_commit: matches!(plan.way, Way::Async | Way::OnePhase),
            secondaries: secondaries.filter(|_| has_primary).collect(),
            try_one_pc: one_pc,
            min_commit_ts: plan.start_ts + 1,
            for_update_ts: if plan.way == Way::Pessimistic {
                for_update_ts
            } else {
                0
            },
            pessimistic_actions: vec![action; group.len()],
            mutations: group,
            ..Default::default()
        }
    }

    /// Commits the primary, which decides unless the locks have decided, then the others.
    fn commit(&self, plan: &Plan, mut commit_ts: u64, decided: bool) -> Result<(), Aborted> {
        for (index, mutation) in plan.mutations.iter().enumerate() {
            loop {
                let request = |context| CommitRequest {
                    context,
                    start_version: plan.start_ts,
                    keys: vec![mutation.key.clone()],
                    commit_version: commit_ts,
                    ..Default::default()
                };
                let answer = self.call(
                    &mutation.key,
                    |c| self.store.commit(request(c)),
                    |a| &a.region_error,
                );
                match answer.error {
                    None => break,
                    Some(e) if e.commit_ts_expired.is_some() && index == 0 && !decided => {
                        commit_ts = self.ts();
                    }
                    Some(e) => {
                        assert!(!decided && index == 0, "decided, yet {e:?}");
                        return Err(self.undo(plan));
                    }
                }
            }
        }
        Ok(())
    }

    fn undo(&self, plan: &Plan) -> Aborted {
        for mutation in &plan.mutations {
            let request = |context| BatchRollbackRequest {
                context,
                start_version: plan.start_ts,
                keys: vec![mutation.key.clone()],
                ..Default::default()
            };
            let answer = self.call(
                &mutation.key,
                |c| self.store.batch_rollback(request(c)),
                |a| &a.region_error,
            );
            assert_eq!(answer.error, None, "an undecided transaction was committed");
        }
        Aborted
    }
}
