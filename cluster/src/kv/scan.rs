//! Scanning raw key ranges at a timestamp, page by page.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{self, LockInfo};
use tokio::time::{Instant, sleep};

use super::error::{KvError, hex};
use super::locks::{LockState, Resolver};
use super::region_call::RegionCaller;
use crate::backoff::Backoff;
use crate::pd::{PdClient, Region};
use crate::stores::StoreChannels;

/// Pairs asked for at once, until a page turns out larger than a message may be (10 MiB at TiKV's
/// sender by default): then half as many.
const PAGE: u32 = 256;
/// How long a lock of a living transaction is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Reads of one cluster; cheap to share.
#[derive(Clone)]
pub struct KvClient {
    caller: Arc<RegionCaller>,
}

impl KvClient {
    /// A client over PD.
    pub fn new(pd: Arc<PdClient>) -> Self {
        KvClient::with_stores(StoreChannels::new(pd))
    }

    /// A client that shares channels with others.
    pub fn with_stores(stores: Arc<StoreChannels>) -> Self {
        KvClient {
            caller: Arc::new(RegionCaller::new(stores)),
        }
    }

    /// Scans `[start, end)` (raw keys, empty end = no bound) as visible at `ts`, ascending.
    pub fn scan(&self, start: impl Into<Bytes>, end: impl Into<Bytes>, ts: Ts) -> Scan {
        Scan {
            caller: self.caller.clone(),
            next: Some(start.into()),
            end: end.into(),
            ts,
            page: PAGE,
            keys_only: false,
            pushed: BTreeSet::new(),
        }
    }

    /// The first keys of `[start, end)` that are visible at `ts`, of one region and `limit` at most; none only
    /// if there are none. Locks are passed over: what they would show may be missing.
    pub async fn first_keys(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
        ts: Ts,
        limit: u32,
    ) -> Result<Vec<Bytes>, KvError> {
        let mut scan = self.scan(start, end, ts);
        (scan.page, scan.keys_only) = (limit, true);
        let pairs = scan.next_page().await?.unwrap_or_default();
        Ok(pairs.into_iter().map(|(key, _)| key).collect())
    }

    /// Whether nothing is visible in `[start, end)` at `ts`.
    pub async fn is_empty(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
        ts: Ts,
    ) -> Result<bool, KvError> {
        let mut scan = self.scan(start, end, ts);
        scan.page = 1;
        Ok(scan.next_page().await?.is_none())
    }
}

/// A running scan.
pub struct Scan {
    caller: Arc<RegionCaller>,
    /// First raw key that was not scanned yet; `None` = done.
    next: Option<Bytes>,
    end: Bytes,
    ts: Ts,
    page: u32,
    /// Without values, and without waiting for locks.
    keys_only: bool,
    /// Transactions that are alive but can only commit after `ts`: their locks do not matter.
    pushed: BTreeSet<u64>,
}

impl Scan {
    /// The next pairs (raw key, value), never empty; `None` when the range is done. After an error
    /// the call may be repeated.
    pub async fn next_page(&mut self) -> Result<Option<Vec<(Bytes, Bytes)>>, KvError> {
        let deadline = Instant::now() + LOCK_WAIT;
        let mut backoff = Backoff::for_regions(self.ts.get());
        while let Some(start) = self.next.clone() {
            let (answer, region) = match self.ask(&start).await {
                Err(KvError::TooLarge { .. }) if self.page > 1 => {
                    self.page /= 2;
                    continue;
                }
                other => other?,
            };
            if let Some(error) = &answer.error {
                self.handle(error, deadline, &mut backoff).await?;
                continue;
            }
            let full = answer.pairs.len() >= self.page as usize;
            let mut pairs = Vec::with_capacity(answer.pairs.len());
            let mut blocked = None;
            for pair in answer.pairs {
                if let Some(error) = pair.error {
                    blocked = Some(error);
                    break;
                }
                pairs.push((pair.key, pair.value));
            }
            match (&blocked, pairs.last()) {
                (None, _) if !full => self.next = self.after_region(&region)?,
                (_, Some((last, _))) => self.next = Some(successor(last)),
                (_, None) => {}
            }
            if !pairs.is_empty() {
                return Ok(Some(pairs));
            }
            if let Some(error) = blocked {
                self.handle(&error, deadline, &mut backoff).await?;
            }
        }
        Ok(None)
    }

    async fn ask(&self, start: &Bytes) -> Result<(kvrpcpb::ScanResponse, Region), KvError> {
        self.caller
            .call("KvScan", start, |mut stub, context, _| {
                let isolation = match self.keys_only {
                    true => kvrpcpb::IsolationLevel::Rc,
                    false => kvrpcpb::IsolationLevel::Si,
                };
                let request = kvrpcpb::ScanRequest {
                    context: Some(kvrpcpb::Context {
                        isolation_level: isolation.into(),
                        resolved_locks: self.pushed.iter().copied().collect(),
                        // A digest reads everything once: it must not evict what clients use.
                        not_fill_cache: true,
                        ..context
                    }),
                    start_key: start.clone(),
                    end_key: self.end.clone(),
                    limit: self.page,
                    key_only: self.keys_only,
                    version: self.ts.get(),
                    ..Default::default()
                };
                async move { stub.kv_scan(request).await }
            })
            .await
    }

    /// Where the scan goes on behind a region that had no more.
    fn after_region(&self, region: &Region) -> Result<Option<Bytes>, KvError> {
        let bound = &region.meta.end_key;
        if bound.is_empty() {
            return Ok(None);
        }
        let bound = EncodedKey::from_encoded(bound.clone());
        let raw = bound.decode().map_err(|_| KvError::BadBound {
            region_id: region.meta.id,
            bound: hex(bound.as_bytes()),
        })?;
        let done = !self.end.is_empty() && raw >= self.end;
        Ok((!done).then(|| raw.into()))
    }

    async fn handle(
        &mut self,
        error: &kvrpcpb::KeyError,
        deadline: Instant,
        backoff: &mut Backoff,
    ) -> Result<(), KvError> {
        let Some(lock) = &error.locked else {
            return Err(KvError::Refused {
                call: "KvScan",
                text: format!("{error:?}"),
            });
        };
        let resolver = Resolver {
            caller: &self.caller,
            reader: self.ts,
        };
        match resolver.resolve(lock).await? {
            LockState::Gone => Ok(()),
            LockState::Behind(start_ts) => {
                self.pushed.insert(start_ts.get());
                Ok(())
            }
            LockState::Alive if Instant::now() < deadline => {
                sleep(backoff.next_delay()).await;
                Ok(())
            }
            LockState::Alive => Err(locked(lock)),
        }
    }
}

fn locked(lock: &LockInfo) -> KvError {
    KvError::Locked {
        key: hex(&lock.key),
        start_ts: Ts::new(lock.lock_version),
        seconds: LOCK_WAIT.as_secs(),
    }
}

/// The smallest raw key behind `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
