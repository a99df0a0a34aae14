//! Resolving the locks of other clients' transactions, by the protocol that every client follows:
//! the primary decides; for async commit the secondaries together do.
//!
//! A lock whose transaction is alive is never touched: the server decides expiry with a timestamp
//! of PD's, never with a local clock, and never one ahead of PD's, which can abort a store.
//! Source: tikv/client-go `txnkv/txnlock/lock_resolver.go`.

use std::collections::BTreeSet;

use bytes::Bytes;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{self, Action, LockInfo};

use super::error::KvError;
use super::region_call::RegionCaller;
use crate::pd::Region;

/// What became of a lock.
pub(super) enum LockState {
    /// Committed or rolled back: read again.
    Gone,
    /// Alive, but it will commit after the reader's timestamp: read past it.
    Behind(Ts),
    /// Alive: wait.
    Alive,
}

/// Outcome of a transaction.
pub(super) enum Fate {
    /// At this commit ts; zero = rolled back.
    Decided(Ts),
    State(LockState),
}

pub(super) struct Resolver<'a> {
    pub caller: &'a RegionCaller,
    /// The reader's timestamp.
    pub reader: Ts,
}

impl Resolver<'_> {
    pub async fn resolve(&self, lock: &LockInfo) -> Result<LockState, KvError> {
        let now = self.caller.stores().pd().tso().await?;
        match self.fate(lock, now).await? {
            Fate::State(state) => Ok(state),
            Fate::Decided(commit_ts) => {
                let (start_ts, now_ms) = (lock.lock_version, now.physical_ms());
                let age_ms = now_ms.saturating_sub(Ts::new(start_ts).physical_ms());
                tracing::info!(start_ts, %commit_ts, age_ms, "resolving a lock that blocks a read");
                self.finish(lock.lock_version, vec![lock.key.clone()], commit_ts)
                    .await?;
                Ok(LockState::Gone)
            }
        }
    }

    /// What became of the transaction of a lock by this time; [`Ts::MAX`] counts every lock as
    /// expired.
    pub async fn fate(&self, lock: &LockInfo, now: Ts) -> Result<Fate, KvError> {
        let expired = is_expired(lock, now);
        let status = self.status(lock, now, expired, false).await?;
        if let Some(error) = &status.error {
            // The primary is not there yet; rolled back only once the lock is too old.
            return match error.txn_not_found {
                Some(_) if !expired => Ok(Fate::State(LockState::Alive)),
                _ => Err(refused("KvCheckTxnStatus", error)),
            };
        }
        match status.lock_info.as_ref().filter(|l| l.use_async_commit) {
            Some(primary) if is_expired(primary, now) => {
                self.fate_by_secondaries(lock, primary, now).await
            }
            _ => Ok(self.read_status(lock, &status)),
        }
    }

    fn read_status(&self, lock: &LockInfo, status: &kvrpcpb::CheckTxnStatusResponse) -> Fate {
        let pushed = status.action == Action::MinCommitTsPushed as i32;
        match (status.commit_version, status.lock_ttl) {
            (0, 0) => Fate::Decided(Ts::ZERO),
            (0, _) if pushed => Fate::State(LockState::Behind(Ts::new(lock.lock_version))),
            (0, _) => Fate::State(LockState::Alive),
            (commit, _) => Fate::Decided(Ts::new(commit)),
        }
    }

    /// An expired async commit: committed if every lock of it was written, at the largest of
    /// their minimal commit ts.
    async fn fate_by_secondaries(
        &self,
        lock: &LockInfo,
        primary: &LockInfo,
        now: Ts,
    ) -> Result<Fate, KvError> {
        let mut commit_ts = primary.min_commit_ts;
        let mut left: BTreeSet<Bytes> = primary.secondaries.iter().cloned().collect();
        while let Some(first) = left.first() {
            let (answer, asked) = self.check_secondaries(lock, first, &left).await?;
            if let Some(error) = &answer.error {
                return Err(refused("KvCheckSecondaryLocks", error));
            }
            if asked.is_empty() {
                return Err(not_there("KvCheckSecondaryLocks"));
            }
            if answer.locks.len() < asked.len() {
                // One is committed, or missing and now protected against ever being written.
                return Ok(Fate::Decided(Ts::new(answer.commit_ts)));
            }
            if answer.locks.iter().any(|l| !l.use_async_commit) {
                let status = self.status(lock, now, true, true).await?;
                return match &status.error {
                    Some(error) => Err(refused("KvCheckTxnStatus", error)),
                    None => Ok(self.read_status(lock, &status)),
                };
            }
            let largest = answer.locks.iter().map(|l| l.min_commit_ts).max();
            commit_ts = commit_ts.max(largest.unwrap_or_default());
            for key in asked {
                left.remove(&key);
            }
        }
        Ok(Fate::Decided(Ts::new(commit_ts)))
    }

    /// Asks the region of `first` about all keys that lie in it.
    async fn check_secondaries(
        &self,
        lock: &LockInfo,
        first: &Bytes,
        left: &BTreeSet<Bytes>,
    ) -> Result<(kvrpcpb::CheckSecondaryLocksResponse, Vec<Bytes>), KvError> {
        let (answer, region) = self
            .caller
            .call(
                "KvCheckSecondaryLocks",
                first,
                |mut stub, context, region| {
                    let request = kvrpcpb::CheckSecondaryLocksRequest {
                        context: Some(context),
                        keys: inside(region, left),
                        start_version: lock.lock_version,
                    };
                    async move { stub.kv_check_secondary_locks(request).await }
                },
            )
            .await?;
        Ok((answer, inside(&region, left)))
    }

    async fn status(
        &self,
        lock: &LockInfo,
        now: Ts,
        roll_back_if_missing: bool,
        force_sync_commit: bool,
    ) -> Result<kvrpcpb::CheckTxnStatusResponse, KvError> {
        let primary = &lock.primary_lock;
        let (answer, _) = self
            .caller
            .call("KvCheckTxnStatus", primary, |mut stub, context, _| {
                let request = kvrpcpb::CheckTxnStatusRequest {
                    context: Some(context),
                    primary_key: primary.clone(),
                    lock_ts: lock.lock_version,
                    caller_start_ts: self.reader.get(),
                    current_ts: now.get(),
                    rollback_if_not_exist: roll_back_if_missing,
                    force_sync_commit,
                    ..Default::default()
                };
                async move { stub.kv_check_txn_status(request).await }
            })
            .await?;
        Ok(answer)
    }

    /// Writes the decision under keys that a transaction has locked, region by region.
    pub async fn finish(
        &self,
        start_ts: u64,
        keys: Vec<Bytes>,
        commit_ts: Ts,
    ) -> Result<(), KvError> {
        let mut left: BTreeSet<Bytes> = keys.into_iter().collect();
        while let Some(first) = left.first() {
            let (answer, region) = self
                .caller
                .call("KvResolveLock", first, |mut stub, context, region| {
                    let request = kvrpcpb::ResolveLockRequest {
                        context: Some(context),
                        start_version: start_ts,
                        commit_version: commit_ts.get(),
                        keys: inside(region, &left),
                        ..Default::default()
                    };
                    async move { stub.kv_resolve_lock(request).await }
                })
                .await?;
            if let Some(error) = &answer.error {
                return Err(refused("KvResolveLock", error));
            }
            let done = inside(&region, &left);
            if done.is_empty() {
                return Err(not_there("KvResolveLock"));
            }
            for key in done {
                left.remove(&key);
            }
        }
        Ok(())
    }
}

/// The keys that lie in a region.
fn inside(region: &Region, keys: &BTreeSet<Bytes>) -> Vec<Bytes> {
    let range = region.range();
    let holds = |key: &&Bytes| range.contains(EncodedKey::encode(key).as_bytes());
    keys.iter().filter(holds).cloned().collect()
}

fn not_there(call: &'static str) -> KvError {
    KvError::Refused {
        call,
        text: "PD named a region that does not hold the key".to_owned(),
    }
}

/// Whether a lock outlived its TTL by PD's time.
fn is_expired(lock: &LockInfo, now: Ts) -> bool {
    if now == Ts::MAX {
        return true;
    }
    let born = Ts::new(lock.lock_version).physical_ms();
    now.physical_ms() >= born.saturating_add(lock.lock_ttl)
}

pub(super) fn refused(call: &'static str, error: &kvrpcpb::KeyError) -> KvError {
    KvError::Refused {
        call,
        text: format!("{error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_expires_by_the_time_of_pd_and_not_before_its_ttl() {
        let lock = LockInfo {
            lock_version: Ts::compose(1000, 5).get(),
            lock_ttl: 3000,
            ..Default::default()
        };
        assert!(!is_expired(&lock, Ts::compose(3999, 0)));
        assert!(is_expired(&lock, Ts::compose(4000, 0)));
        let endless = LockInfo {
            lock_ttl: u64::MAX,
            ..lock
        };
        assert!(!is_expired(&endless, Ts::compose(1 << 40, 0)));
        assert!(is_expired(&endless, Ts::MAX));
    }
}
