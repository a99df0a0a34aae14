//! The change stream of the store as the observer's source: takes the tracker's events in their
//! order and hands them over one by one.
//!
//! When the observer has no room the hand-over waits; the stream's own bounded queue then gives
//! whole regions back instead of slowing the store down. Nothing is ever left out: an event that
//! cannot be handed over ends the source.

use std::pin::pin;
use std::sync::Arc;

use pitr_cluster::regions::{RegionTracker, TrackerEvent};
use pitr_format::EncodedRange;
use pitr_observer::{ObserverHandle, RegionMeta, SendError, SharedFrontier, SourceEvent};
use pitr_proto::metapb;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Interval, MissedTickBehavior, interval};

use super::Context;
use super::following::Following;
use super::region_page::RegionPage;
use super::standing::Regions;
use crate::codes::Code;
use crate::failure::Failure;
use crate::time;

/// How often the state of the regions is shown.
const SHOW: Duration = Duration::from_secs(1);

/// Why no more changes come.
pub(super) enum Lost {
    /// History is missing.
    Gap(String),
    /// Anything that a new session may mend.
    Broken(Failure),
}

/// Tails the regions that the store leads, and those of stores without a sidecar, until dropped.
pub(super) struct Source {
    following: JoinHandle<()>,
    lost: mpsc::Receiver<Lost>,
    regions: Regions,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Source {
    /// Starts tailing `ranges` from the frontier into `observer`.
    pub fn start(
        context: &Arc<Context>,
        ranges: Vec<EncodedRange>,
        frontier: SharedFrontier,
        observer: ObserverHandle,
        task: &str,
    ) -> Source {
        let (tell, lost) = mpsc::channel(1);
        let regions = Regions::default();
        let known = regions.clone();
        let following = Following::new(context, ranges, frontier, observer, task, known, tell);
        Source {
            following: tokio::spawn(following.run()),
            lost,
            regions,
        }
    }

    /// The regions that are tailed, and why others are not.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Waits until the source ends, which it only does when it must. Cancel-safe; to be awaited
    /// to its end at most once.
    pub async fn lost(&mut self) -> Lost {
        let broke = || Failure::new(Code::Internal, "the reader of the change stream broke");
        let lost = self.lost.recv().await;
        lost.unwrap_or_else(|| Lost::Broken(broke()))
    }
}

/// Hands over what one store sends.
pub(super) struct Pump {
    pub store: u64,
    pub tracker: RegionTracker,
    pub observer: ObserverHandle,
    pub page: Arc<RegionPage>,
    pub regions: Regions,
}

impl Pump {
    /// Runs until it must end.
    pub async fn run(mut self) -> Lost {
        let mut tick = interval(SHOW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = self.tracker.next_event() => event,
                _ = tick.tick() => {
                    self.show();
                    continue;
                }
            };
            let Some(event) = event else {
                return Lost::Broken(Failure::new(
                    Code::ChangeStreamEnded,
                    "the change stream ended",
                ));
            };
            let handing = take(self.store, &self.observer, &self.regions, event);
            let handed = meanwhile(handing, &mut tick, || self.show()).await;
            if let Err(lost) = handed {
                self.show();
                return lost;
            }
        }
    }

    fn show(&self) {
        self.page.show(self.store, &self.tracker);
        let holds = self.tracker.holds().into_iter();
        let holds = holds.map(|(sub, holder)| (sub.0, holder));
        self.regions.held(self.store, holds.collect());
    }
}

/// Waits for `work` and goes on showing: the hand-over waits while the observer has no room, and just
/// then people look at the page.
async fn meanwhile<T>(
    work: impl Future<Output = T>,
    tick: &mut Interval,
    mut show: impl FnMut(),
) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => show(),
        }
    }
}

async fn take(
    store: u64,
    observer: &ObserverHandle,
    regions: &Regions,
    event: TrackerEvent,
) -> Result<(), Lost> {
    let handed = match event {
        TrackerEvent::Gap {
            range,
            checkpoint_ts,
            safe_point,
        } => {
            return Err(Lost::Gap(format!(
                "GC removed history of range {range:?}: it must be read from {}, the GC \
                 safepoint is {}; take a new full copy and start a new task into a new archive",
                time::line(checkpoint_ts),
                time::line(safe_point),
            )));
        }
        TrackerEvent::Failed { text } => {
            let failure = Failure::new(Code::ChangeStreamEnded, text);
            return Err(Lost::Broken(failure.effect("the checkpoint stays")));
        }
        TrackerEvent::Resolved { subs, ts } => {
            let resolved = subs
                .into_iter()
                .map(|sub| SourceEvent::Resolved { sub: sub.0, ts });
            hand_over(observer, resolved).await
        }
        TrackerEvent::Started {
            sub,
            region,
            checkpoint_ts,
        } => {
            let region = region_meta(&region);
            regions.started(sub.0, store, region.id, region.range.clone());
            let started = SourceEvent::Started {
                sub: sub.0,
                region,
                checkpoint_ts,
            };
            observer.send(started).await
        }
        TrackerEvent::Records { sub, records } => {
            let sub = sub.0;
            observer.send(SourceEvent::Batch { sub, records }).await
        }
        TrackerEvent::Ended { sub, reason } => {
            tracing::debug!(sub = sub.0, %reason, "a subscription ended");
            regions.ended(sub.0, reason.to_string());
            observer.send(SourceEvent::Ended { sub: sub.0 }).await
        }
    };
    handed.map_err(|error| Lost::Broken(Failure::from_error(Code::ChangeStreamEnded, &error)))
}

async fn hand_over(
    observer: &ObserverHandle,
    events: impl Iterator<Item = SourceEvent>,
) -> Result<(), SendError> {
    for event in events {
        observer.send(event).await?;
    }
    Ok(())
}

fn region_meta(region: &metapb::Region) -> RegionMeta {
    let epoch = region.region_epoch.unwrap_or_default();
    RegionMeta {
        id: region.id,
        conf_ver: epoch.conf_ver,
        version: epoch.version,
        range: EncodedRange::new(region.start_key.clone(), region.end_key.clone()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_page_is_refreshed_while_a_hand_over_waits() {
        let (free, waits) = oneshot::channel();
        let mut tick = interval(Duration::from_millis(1));
        let mut free = Some(free);
        let mut shown = 0;
        // It waits until the page was shown three times: without that it would wait for ever.
        let done = meanwhile(waits, &mut tick, || {
            shown += 1;
            if shown == 3
                && let Some(free) = free.take()
            {
                free.send("handed over").unwrap();
            }
        });
        let done = tokio::time::timeout(Duration::from_secs(10), done).await;
        assert_eq!(done.unwrap(), Ok("handed over"));
    }
}
