//! The shell of the tracker: PD and the change stream on one side, the user's `next_event` on the
//! other.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use pitr_format::{Class, EncodedRange, Ts};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::core::{Action, Core, LoadFailed, Loaded};
use super::stalls::{Looked, STALL};
use super::{Holder, TrackerEvent, TrackerOptions, TrackerStats};
use crate::cdc::{Address, CdcClient, CdcError, CdcEvents, CdcStats, EndReason, SubId};
use crate::kv::{KvError, LockMode, resolve_locks};
use crate::pd::{PdClient, PdError};
use crate::stores::StoreChannels;

/// How long PD may take to tell where the store is.
const ASK_PD: Duration = Duration::from_secs(3);

/// Follows the leader regions of one store. Driven by [`RegionTracker::next_event`]: what the user
/// does not take waits in the stream's bounded queue, not here.
pub struct RegionTracker {
    pd: Arc<PdClient>,
    stores: Arc<StoreChannels>,
    cdc: CdcClient,
    stream: CdcEvents,
    core: Core,
    answers: JoinSet<Answer>,
}

enum Answer {
    Loaded(EncodedRange, Result<Loaded, LoadFailed>),
    SafePoint(Result<Ts, LoadFailed>),
    Looked(SubId, Ts, Looked),
}

impl RegionTracker {
    /// Prepares tracking; nothing is asked before the first `next_event`. Needs a tokio runtime.
    pub fn new(pd: Arc<PdClient>, options: TrackerOptions) -> Self {
        let address = address(pd.clone(), &options);
        let (cdc, stream) = CdcClient::start(pd.cluster_id(), address, options.cdc.clone());
        RegionTracker {
            core: Core::new(&options, Instant::now()),
            stores: StoreChannels::new(pd.clone()),
            pd,
            cdc,
            stream,
            answers: JoinSet::new(),
        }
    }

    /// The next event. `None` after [`TrackerEvent::Failed`]. Cancel-safe.
    pub async fn next_event(&mut self) -> Option<TrackerEvent> {
        loop {
            self.core.tick(Instant::now());
            self.act();
            if let Some(event) = self.core.events.pop_front() {
                return Some(event);
            }
            if self.core.failed {
                return None;
            }
            tokio::select! {
                event = self.stream.next() => {
                    self.core.on_cdc(event?, Instant::now());
                }
                Some(answer) = self.answers.join_next() => match answer {
                    Ok(Answer::Loaded(range, answer)) => {
                        self.core.on_loaded(range, answer, Instant::now());
                    }
                    Ok(Answer::SafePoint(answer)) => {
                        self.core.on_safe_point(answer, Instant::now());
                    }
                    Ok(Answer::Looked(sub, resolved, looked)) => {
                        self.core.on_looked(sub, resolved, looked, Instant::now());
                    }
                    // Only a runtime that shuts down ends these tasks early.
                    Err(_) => return None,
                },
                () = sleep_until(self.core.next_wake()) => {}
            }
        }
    }

    /// Gauges.
    pub fn stats(&self) -> TrackerStats {
        self.core.stats()
    }

    /// Why the last subscription ended that did.
    pub fn last_end(&self) -> Option<&EndReason> {
        self.core.last_end.as_ref()
    }

    /// What holds back which subscriptions, as far as it was looked.
    pub fn holds(&self) -> Vec<(SubId, Holder)> {
        let holds = self.core.stalls.holds();
        holds.map(|(sub, holder)| (sub, holder.clone())).collect()
    }

    /// Gauges of the stream.
    pub fn cdc_stats(&self) -> CdcStats {
        self.cdc.stats()
    }

    fn act(&mut self) {
        let mut actions: VecDeque<Action> = std::mem::take(&mut self.core.actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Load(range) => {
                    let pd = self.pd.clone();
                    self.answers.spawn(async move {
                        let answer = load(&pd, &range).await.map_err(failed);
                        Answer::Loaded(range, answer)
                    });
                }
                Action::ReadSafePoint => {
                    let pd = self.pd.clone();
                    self.answers.spawn(async move {
                        Answer::SafePoint(pd.gc_safe_point().await.map_err(failed))
                    });
                }
                Action::LookAtLocks {
                    sub,
                    range,
                    resolved,
                } => {
                    let stores = self.stores.clone();
                    self.answers.spawn(async move {
                        let looked = look(&stores, range, resolved).await;
                        let failed = |error: KvError| Looked::Failed(error.to_string());
                        Answer::Looked(sub, resolved, looked.unwrap_or_else(failed))
                    });
                }
                Action::Subscribe(subscription) => {
                    let id = subscription.id;
                    if let Err(error) = self.cdc.subscribe(subscription) {
                        self.core.on_refused(id, error.to_string(), Instant::now());
                    }
                }
                Action::Unsubscribe(sub) => {
                    // It must go out some time, or the store sends rows that nobody takes.
                    if let Err(CdcError::Busy) = self.cdc.unsubscribe(sub) {
                        self.core.actions.push_back(Action::Unsubscribe(sub));
                    }
                }
            }
        }
    }
}

/// Where PD says that the store is; where it was known to be while PD does not answer.
fn address(pd: Arc<PdClient>, options: &TrackerOptions) -> Address {
    let store_id = options.store_id;
    let last = Arc::new(Mutex::new(options.store_address.clone()));
    Address::asked(move || {
        let (pd, last) = (pd.clone(), last.clone());
        async move {
            match timeout(ASK_PD, pd.stores()).await {
                Ok(Ok(stores)) => {
                    let store = stores.into_iter().find(|store| store.id == store_id);
                    if let Some(store) = store.filter(|store| !store.address.is_empty()) {
                        *last.lock() = store.address;
                    }
                }
                Ok(Err(error)) => tracing::debug!(%error, "PD does not tell where the store is"),
                Err(_) => tracing::debug!("PD does not tell where the store is"),
            }
            last.lock().clone()
        }
    })
}

/// The safe point is read last, right before the registers.
async fn load(pd: &PdClient, range: &EncodedRange) -> Result<Loaded, PdError> {
    let (regions, rest) = pd.regions_in(range).await?;
    Ok(Loaded {
        regions,
        rest,
        safe_point: pd.gc_safe_point().await?,
    })
}

/// Resolves what holds a range back that stands at `resolved`, up to a little above it and never
/// above PD's time.
async fn look(
    stores: &Arc<StoreChannels>,
    range: EncodedRange,
    resolved: Ts,
) -> Result<Looked, KvError> {
    let now = stores.pd().tso().await?;
    let behind = Ts::compose(resolved.physical_ms() + STALL.as_millis() as u64, 0);
    if now < behind {
        return Ok(Looked::NotBehind);
    }
    let report = resolve_locks(stores, range, behind, LockMode::LeaveAlive).await?;
    Ok(Looked::Locks(report, now))
}

fn failed(error: PdError) -> LoadFailed {
    LoadFailed {
        permanent: error.class() == Class::Permanent,
        text: error.to_string(),
    }
}
