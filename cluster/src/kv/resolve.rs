//! Clearing away the locks in a key range whose clients are gone: they hold back resolved
//! timestamps, and with them the checkpoint, for as long as nobody else reads their keys.
//!
//! Locks are listed page by page at the leader of each region, decided once per transaction by the
//! protocol of [`super::locks`], and written off region by region. Called by the region tracker, by
//! the coordinator and by the driver of GC.
//! Source: pingcap/ticdc `logservice/txnutil/lock_resolver.go`, tikv/client-go `tikv/gc.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_proto::kvrpcpb::{self, LockInfo, Op};
use tokio::time::sleep;

use super::error::{KvError, hex};
use super::locks::{Fate, Resolver, refused};
use super::region_call::RegionCaller;
use crate::backoff::Backoff;
use crate::pd::Region;
use crate::stores::StoreChannels;

/// Locks asked for at once.
const PAGE: u32 = 1024;
/// Times that a page is asked for again while a prewrite is under way in its range.
const PREWRITES: u32 = 10;

/// What happens to a transaction that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Its locks stay.
    LeaveAlive,
    /// It is rolled back, as GC does with what is older than its safe point.
    GcRollback,
}

/// What was found in a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockReport {
    /// Locks of transactions that began at or before the asked ts.
    pub found: u64,
    /// Those that were committed or rolled back.
    pub resolved: u64,
    /// Those that were left.
    pub alive: u64,
    /// The oldest of those that were left and hold back a resolved ts. Locks that change nothing
    /// (pessimistic ones, `SELECT FOR UPDATE`) hold back none.
    pub oldest: Option<HeldLock>,
}

/// A lock of a transaction that is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// Raw key.
    pub key: Bytes,
    /// Raw key of the transaction's primary.
    pub primary: Bytes,
    /// The transaction.
    pub start_ts: Ts,
    /// How long ago it began, by PD's clock.
    pub age: Duration,
}

/// Resolves the locks in `range` of transactions that began at or before `max_version`, which must
/// not be ahead of PD's clock: a store moves its own time there.
pub async fn resolve_locks(
    stores: &Arc<StoreChannels>,
    range: EncodedRange,
    max_version: Ts,
    mode: LockMode,
) -> Result<LockReport, KvError> {
    let work = Work {
        caller: &RegionCaller::new(stores.clone()),
        end: raw(&range.end)?,
        max_version,
        mode,
    };
    let mut report = LockReport::default();
    let mut next = Some(raw(&range.start)?);
    while let Some(start) = next {
        let (locks, region) = work.page(&start).await?;
        next = match locks.last() {
            Some(last) if locks.len() >= PAGE as usize => {
                Some([&last.key[..], &[0]].concat().into())
            }
            _ => work.after(&region)?,
        };
        work.settle(locks, &mut report).await?;
    }
    Ok(report)
}

struct Work<'a> {
    caller: &'a RegionCaller,
    /// Raw; empty = no bound.
    end: Bytes,
    max_version: Ts,
    mode: LockMode,
}

impl Work<'_> {
    /// Locks from `start` (raw) to the end of its region, at most a page of them.
    async fn page(&self, start: &Bytes) -> Result<(Vec<LockInfo>, Region), KvError> {
        let mut backoff = Backoff::for_regions(self.max_version.get());
        loop {
            let asked = self
                .caller
                .call("KvScanLock", start, |mut stub, context, _| {
                    let request = kvrpcpb::ScanLockRequest {
                        context: Some(context),
                        max_version: self.max_version.get(),
                        start_key: start.clone(),
                        end_key: self.end.clone(),
                        limit: PAGE,
                    };
                    async move { stub.kv_scan_lock(request).await }
                });
            let (answer, region) = asked.await?;
            match answer.error {
                None => return Ok((answer.locks, region)),
                // A prewrite that has its lock in memory only, for milliseconds.
                Some(error) if error.locked.is_some() && backoff.attempts() < PREWRITES => {
                    sleep(backoff.next_delay()).await;
                }
                Some(error) => return Err(refused("KvScanLock", &error)),
            }
        }
    }

    /// Where the range goes on behind a region.
    fn after(&self, region: &Region) -> Result<Option<Bytes>, KvError> {
        let end = &region.meta.end_key;
        let bound = raw(end).map_err(|_| KvError::BadBound {
            region_id: region.meta.id,
            bound: hex(end),
        })?;
        let done = end.is_empty() || (!self.end.is_empty() && bound >= self.end);
        Ok((!done).then_some(bound))
    }

    /// Decides each transaction of a page and writes off those that are over.
    async fn settle(&self, locks: Vec<LockInfo>, report: &mut LockReport) -> Result<(), KvError> {
        if locks.is_empty() {
            return Ok(());
        }
        let now = self.caller.stores().pd().tso().await?;
        let resolver = Resolver {
            caller: self.caller,
            reader: Ts::ZERO,
        };
        let judged_at = match self.mode {
            LockMode::LeaveAlive => now,
            LockMode::GcRollback => Ts::MAX,
        };
        report.found += locks.len() as u64;
        let mut transactions: BTreeMap<u64, Vec<LockInfo>> = BTreeMap::new();
        for lock in locks {
            transactions
                .entry(lock.lock_version)
                .or_default()
                .push(lock);
        }
        for (start_ts, locks) in transactions {
            let Some(first) = locks.first() else { continue };
            let age = age(Ts::new(start_ts), now);
            match resolver.fate(first, judged_at).await? {
                Fate::Decided(commit_ts) => {
                    tracing::info!(
                        start_ts,
                        %commit_ts,
                        locks = locks.len(),
                        age_ms = age.as_millis() as u64,
                        primary = hex(&first.primary_lock),
                        "resolving locks that a client left behind"
                    );
                    report.resolved += locks.len() as u64;
                    let keys = locks.into_iter().map(|lock| lock.key).collect();
                    resolver.finish(start_ts, keys, commit_ts).await?;
                }
                Fate::State(_) => {
                    report.alive += locks.len() as u64;
                    let holding = locks.iter().find(|lock| holds_back(lock));
                    report.left(holding.map(|lock| held(lock, age)));
                }
            }
        }
        Ok(())
    }
}

impl LockReport {
    /// A transaction was left; with its lock, if that holds back a resolved ts.
    fn left(&mut self, lock: Option<HeldLock>) {
        let older = |known: &HeldLock, lock: &HeldLock| known.start_ts <= lock.start_ts;
        self.oldest = match (self.oldest.take(), lock) {
            (Some(known), Some(lock)) if !older(&known, &lock) => Some(lock),
            (known, lock) => known.or(lock),
        };
    }
}

fn held(lock: &LockInfo, age: Duration) -> HeldLock {
    HeldLock {
        key: lock.key.clone(),
        primary: lock.primary_lock.clone(),
        start_ts: Ts::new(lock.lock_version),
        age,
    }
}

/// Whether the change stream waits for the end of the transaction.
fn holds_back(lock: &LockInfo) -> bool {
    matches!(lock.lock_type(), Op::Put | Op::Del)
}

fn age(start_ts: Ts, now: Ts) -> Duration {
    Duration::from_millis(now.physical_ms().saturating_sub(start_ts.physical_ms()))
}

/// The raw key of a bound; empty stays empty.
fn raw(bound: &Bytes) -> Result<Bytes, KvError> {
    if bound.is_empty() {
        return Ok(Bytes::new());
    }
    let decoded = EncodedKey::from_encoded(bound.clone()).decode();
    decoded.map(Bytes::from).map_err(|_| KvError::BadBound {
        region_id: 0,
        bound: hex(bound),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(start_ts: u64, kind: Op) -> LockInfo {
        LockInfo {
            key: Bytes::from(format!("k{start_ts}")),
            primary_lock: Bytes::from_static(b"p"),
            lock_version: start_ts,
            lock_type: kind as i32,
            ..LockInfo::default()
        }
    }

    #[test]
    fn the_oldest_lock_that_holds_back_is_named_whatever_the_order() {
        for order in [[5, 3, 9], [3, 5, 9], [9, 5, 3]] {
            let mut report = LockReport::default();
            for start_ts in order {
                report.left(Some(held(&lock(start_ts, Op::Put), Duration::ZERO)));
                report.left(None);
            }
            assert_eq!(report.oldest.unwrap().start_ts, Ts::new(3), "{order:?}");
        }
    }

    #[test]
    fn only_locks_that_change_something_hold_back_a_resolved_ts() {
        for kind in [Op::Put, Op::Del] {
            assert!(holds_back(&lock(1, kind)));
        }
        for kind in [Op::Lock, Op::PessimisticLock] {
            assert!(!holds_back(&lock(1, kind)), "{kind:?}");
        }
    }

    #[test]
    fn an_age_is_never_negative_and_bounds_are_raw_keys() {
        let (older, newer) = (Ts::compose(1_000, 0), Ts::compose(5_000, 0));
        assert_eq!(age(older, newer), Duration::from_secs(4));
        assert_eq!(age(newer, older), Duration::ZERO);
        assert_eq!(raw(&Bytes::new()).unwrap(), Bytes::new());
        assert_eq!(raw(&EncodedKey::encode(b"k").into_bytes()).unwrap(), "k");
        assert!(matches!(
            raw(&Bytes::from_static(b"k")),
            Err(KvError::BadBound { .. })
        ));
    }
}
