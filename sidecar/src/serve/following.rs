//! Whose regions are tailed: those that the own store leads, for as long as the session lives, and
//! those of stores whose sidecars are gone, until one is back. Decided by [`super::orphans`], done
//! here; each store has a tracker and a pump of its own. Started by [`super::source`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::cdc::CdcOptions;
use pitr_cluster::regions::{RegionTracker, TrackerOptions};
use pitr_format::EncodedRange;
use pitr_observer::{ObserverHandle, SharedFrontier, SourceEvent};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Context;
use super::orphans::{Orphans, Seen};
use super::region_page::RegionPage;
use super::source::{Lost, Pump};
use super::standing::{Located, Regions};
use crate::members::StoreStatus;

/// How often the stores are compared with those that are followed.
const LOOK: Duration = Duration::from_secs(1);
/// How often PD is asked who leads what holds the checkpoint.
const LOCATE: Duration = Duration::from_secs(5);
/// Names of subscriptions of one tracker: more than it can use.
const NAMES: u64 = 1 << 40;

pub(super) struct Following {
    context: Arc<Context>,
    ranges: Vec<EncodedRange>,
    frontier: SharedFrontier,
    observer: ObserverHandle,
    regions: Regions,
    page: Arc<RegionPage>,
    lost: mpsc::Sender<Lost>,
    orphans: Orphans,
    /// By store.
    followers: BTreeMap<u64, Follower>,
    /// Trackers that were begun.
    begun: u64,
    located: Option<Instant>,
}

/// The pump of one store; ends with this.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Following {
    pub fn new(
        context: &Arc<Context>,
        ranges: Vec<EncodedRange>,
        frontier: SharedFrontier,
        observer: ObserverHandle,
        task: &str,
        regions: Regions,
        lost: mpsc::Sender<Lost>,
    ) -> Self {
        let interval = context.config.max_flush_interval.get();
        Following {
            context: context.clone(),
            ranges,
            frontier,
            observer,
            regions,
            page: Arc::new(RegionPage::new(context.clone(), task.to_owned())),
            lost,
            orphans: Orphans::new(context.store_id, interval, Instant::now()),
            followers: BTreeMap::new(),
            begun: 0,
            located: None,
        }
    }

    /// Follows until dropped.
    pub async fn run(mut self) {
        let address = self.context.store_addr.clone();
        self.follow(self.context.store_id, address);
        loop {
            sleep(LOOK).await;
            let stores = self.context.board.snapshot().stores;
            self.give_up_broken().await;
            self.compare(&stores).await;
            self.locate(&stores).await;
        }
    }

    fn follow(&mut self, store: u64, address: String) {
        let frontier = self.frontier.clone();
        let options = TrackerOptions {
            cdc: CdcOptions {
                security: self.context.cluster.pd.security().clone(),
                ..CdcOptions::new(
                    self.context.env.budget.clone(),
                    self.context.env.spill.clone(),
                )
            },
            first_sub: self.begun * NAMES + 1,
            ..TrackerOptions::new(
                store,
                address,
                self.ranges.clone(),
                Arc::new(move |range: &EncodedRange| frontier.min_over(range)),
            )
        };
        self.begun += 1;
        let pump = Pump {
            store,
            tracker: RegionTracker::new(self.context.cluster.pd.clone(), options),
            observer: self.observer.clone(),
            page: self.page.clone(),
            regions: self.regions.clone(),
        };
        let (lost, own) = (self.lost.clone(), self.context.store_id);
        let pump = tokio::spawn(async move {
            match pump.run().await {
                Lost::Broken(failure) if store != own => {
                    tracing::warn!(store, reason = failure.one_line(), "cannot tail this store");
                }
                // A session that is gone does not care.
                why => drop(lost.send(why).await),
            }
        });
        self.followers.insert(store, Follower(pump));
    }

    async fn compare(&mut self, stores: &[StoreStatus]) {
        let Some((_, lowest)) = self.frontier.lowest() else {
            return;
        };
        let seen = stores.iter().map(|store| Seen {
            id: store.store_id,
            has_sidecar: store.sidecar.is_some(),
        });
        let seen: Vec<Seen> = seen.collect();
        let decision = self.orphans.decide(lowest, &seen, Instant::now());
        for store in decision.give_back {
            tracing::info!(
                store,
                "its own sidecar tails the store again, or it is gone"
            );
            self.leave(store, "given back").await;
        }
        for store in decision.adopt {
            let known = stores.iter().find(|known| known.store_id == store);
            let address = known.map(|known| known.store_address.clone());
            tracing::warn!(store, "no sidecar tails this store: tailing it from here");
            self.follow(store, address.unwrap_or_default());
        }
    }

    /// Stores that turned out not to be followable.
    async fn give_up_broken(&mut self) {
        let ended = self.followers.iter().filter(|(_, one)| one.0.is_finished());
        let ended: BTreeSet<u64> = ended.map(|(store, _)| *store).collect();
        for store in ended {
            if store != self.context.store_id {
                self.leave(store, "cannot be tailed from here").await;
                self.orphans.gave_up(store, Instant::now());
            }
        }
    }

    /// Ends what is tailed of a store; what its subscriptions have proven stays.
    async fn leave(&mut self, store: u64, why: &str) {
        let Some(mut follower) = self.followers.remove(&store) else {
            return;
        };
        follower.0.abort();
        // It hands nothing over any more after this.
        let _ = (&mut follower.0).await;
        for sub in self.regions.forget(store, why) {
            if self
                .observer
                .send(SourceEvent::Ended { sub })
                .await
                .is_err()
            {
                break;
            }
        }
        self.page.forget(store);
    }

    /// Finds out who leads what holds the checkpoint, if nobody here does.
    async fn locate(&mut self, stores: &[StoreStatus]) {
        let due = self.located.is_none_or(|at| at.elapsed() >= LOCATE);
        let Some((range, _)) = self.frontier.lowest() else {
            return;
        };
        if !due || self.regions.is_tailed(&range.start) {
            return;
        }
        self.located = Some(Instant::now());
        if let Ok(region) = self.context.cluster.pd.region_of(&range.start).await {
            let store_id = region.leader_store();
            let store = stores.iter().find(|store| store.store_id == store_id);
            self.regions.locate(Located {
                range: region.range(),
                region_id: region.meta.id,
                store_id,
                sidecar: store.and_then(|store| Some(store.sidecar.as_ref()?.address.clone())),
            });
        }
    }
}
