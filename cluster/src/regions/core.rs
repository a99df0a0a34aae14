//! The tracker's state machine: events and answers in, actions and events out. No I/O; time is an
//! argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pitr_format::{Class, EncodedRange, Ts};
use pitr_proto::metapb;
use tokio::time::Instant;

use super::index::RangeIndex;
use super::penalty::Penalties;
use super::stalls::{Looked, Stalls};
use super::{FrontierFn, TrackerEvent, TrackerOptions, TrackerStats};
use crate::cdc::{CdcEvent, EndKind, EndReason, SubId, Subscription, registered_range};
use crate::pd::Region;

/// Loads that may run at a time.
const LOADS: usize = 4;
/// Ranges that may wait for a load; more are collapsed into an audit.
const PENDING: usize = 256;
/// Task ranges up to which an audit loads each one; more are loaded as one hull.
const AUDIT_RANGES: usize = 8;
/// Time between two audits of a small cluster.
const QUICK_AUDIT: Duration = Duration::from_secs(1);
/// Wait after a failed or incomplete answer of PD.
const RELOAD: Duration = Duration::from_secs(1);
/// Repeated failures of a range after which the regions that an error names are not trusted any
/// more and PD is asked.
const TRUSTED_HINTS: u32 = 3;

/// What the shell has to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Ask PD for the regions of a range and for the GC safe point; answer with `on_loaded`.
    Load(EncodedRange),
    /// Ask PD for the GC safe point; answer with `on_safe_point`.
    ReadSafePoint,
    Subscribe(Subscription),
    Unsubscribe(SubId),
    /// See which locks hold back a region that stands at `resolved`; answer with `on_looked`.
    LookAtLocks {
        sub: SubId,
        range: EncodedRange,
        resolved: Ts,
    },
}

/// Answer to [`Action::Load`].
#[derive(Debug)]
pub(super) struct Loaded {
    pub regions: Vec<Region>,
    /// What PD could not tell at the moment.
    pub rest: Option<EncodedRange>,
    pub safe_point: Ts,
}

/// PD did not answer.
#[derive(Debug)]
pub(super) struct LoadFailed {
    pub permanent: bool,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Registered, INITIALIZED not seen.
    Scanning,
    /// Scan complete; GC must be seen not to have passed checkpoint_ts.
    Verifying,
    /// May resolve.
    Live,
}

#[derive(Debug)]
pub(super) struct Tracked {
    region_id: u64,
    range: EncodedRange,
    checkpoint_ts: Ts,
    state: State,
}

pub(super) struct Core {
    pub store_id: u64,
    pub wanted: Arc<[EncodedRange]>,
    pub frontier: FrontierFn,
    audit_interval: Duration,
    audit_per_region: Duration,
    /// Regions that PD told since the last audit began.
    told: usize,
    max_window: usize,
    window: usize,

    subs: BTreeMap<SubId, Tracked>,
    /// The same by range: subscription and epoch version.
    pub tracked: RangeIndex<(SubId, u64)>,
    scanning: usize,
    next_sub: u64,
    /// Regions that wait for the window.
    pub ready: RangeIndex<metapb::Region>,
    /// Ranges to ask PD about, and when.
    pending: Vec<(EncodedRange, Instant)>,
    loads: usize,
    pub penalties: Penalties,
    pub lost: Vec<EncodedRange>,
    audit_due: Instant,
    pub stalls: Stalls,

    pub safe_point: Ts,
    /// Scans that ended after the running read of the safe point began.
    unverified: BTreeSet<SubId>,
    /// Scans that the running read decides.
    verifying: BTreeSet<SubId>,
    reading: bool,
    read_due: Instant,

    ended: [u64; EndKind::ALL.len()],
    /// Why the last subscription ended that did.
    pub last_end: Option<EndReason>,
    pub failed: bool,
    pub actions: VecDeque<Action>,
    pub events: VecDeque<TrackerEvent>,
}

impl Core {
    pub fn new(options: &TrackerOptions, now: Instant) -> Self {
        Core {
            store_id: options.store_id,
            wanted: options.wanted.clone().into(),
            frontier: options.frontier.clone(),
            audit_interval: options.audit_interval,
            audit_per_region: options.audit_per_region,
            told: 0,
            max_window: options.scan_window.max(1),
            window: options.scan_window.max(1),
            subs: BTreeMap::new(),
            tracked: RangeIndex::new(),
            scanning: 0,
            next_sub: options.first_sub,
            ready: RangeIndex::new(),
            pending: Vec::new(),
            loads: 0,
            penalties: Penalties::default(),
            lost: Vec::new(),
            audit_due: now,
            stalls: Stalls::new(now),
            safe_point: Ts::ZERO,
            unverified: BTreeSet::new(),
            verifying: BTreeSet::new(),
            reading: false,
            read_due: now,
            ended: Default::default(),
            last_end: None,
            failed: false,
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Starts whatever is due.
    pub fn tick(&mut self, now: Instant) {
        if self.failed {
            return;
        }
        if now >= self.audit_due {
            self.audit_due = now + self.until_next_audit();
            self.told = 0;
            self.audit_at(now);
        }
        while self.loads < LOADS {
            let due = self.pending.iter().position(|(_, due)| *due <= now);
            let Some(at) = due else { break };
            let (range, _) = self.pending.swap_remove(at);
            self.loads += 1;
            self.actions.push_back(Action::Load(range));
        }
        while self.scanning < self.window {
            let Some((range, region)) = self.ready.pop_first() else {
                break;
            };
            self.start(range, region);
        }
        let check = self.stalls.check(now);
        for (sub, resolved) in check.repairs {
            self.repair(sub, resolved, now);
        }
        for (sub, range, resolved) in check.looks {
            // Every lock that the store counts, also where the task wants nothing.
            let range = registered_range(&range, &self.wanted);
            self.actions.push_back(Action::LookAtLocks {
                sub,
                range,
                resolved,
            });
        }
        if !self.reading && !self.unverified.is_empty() && now >= self.read_due {
            self.reading = true;
            self.verifying = std::mem::take(&mut self.unverified);
            self.actions.push_back(Action::ReadSafePoint);
        }
    }

    /// When `tick` has something to do again, if nothing else happens.
    pub fn next_wake(&self) -> Instant {
        let mut wake = self.audit_due;
        if self.loads < LOADS {
            let dues = self.pending.iter().map(|(_, due)| *due);
            wake = dues.fold(wake, Instant::min);
        }
        if !self.reading && !self.unverified.is_empty() {
            wake = wake.min(self.read_due);
        }
        self.stalls.next_wake().map_or(wake, |due| wake.min(due))
    }

    pub fn stats(&self) -> TrackerStats {
        TrackerStats {
            scanning: self.scanning,
            verifying: self.count(State::Verifying),
            live: self.count(State::Live),
            waiting: self.ready.len(),
            failing: self.penalties.len(),
            lost: self.lost.len(),
            ended: self.ended,
        }
    }

    fn count(&self, state: State) -> usize {
        self.subs.values().filter(|sub| sub.state == state).count()
    }

    /// An audit costs PD some work for each region, and a leader that moved costs lag until its new
    /// owner looks: few regions are looked at often.
    fn until_next_audit(&self) -> Duration {
        let regions = u32::try_from(self.told.max(1)).unwrap_or(u32::MAX);
        let pace = self.audit_per_region.saturating_mul(regions);
        pace.max(QUICK_AUDIT).min(self.audit_interval)
    }

    fn audit_at(&mut self, due: Instant) {
        let ranges: Vec<_> = if self.wanted.len() <= AUDIT_RANGES {
            self.wanted.to_vec()
        } else {
            let start = self.wanted.first().map(|r| r.start.clone());
            let end = self.wanted.last().map(|r| r.end.clone());
            vec![EncodedRange::new(
                start.unwrap_or_default(),
                end.unwrap_or_default(),
            )]
        };
        for range in ranges {
            self.load_at(range, due);
        }
    }

    /// Asks PD about a range not before `due`.
    pub fn load_at(&mut self, range: EncodedRange, due: Instant) {
        if let Some((_, known)) = self.pending.iter_mut().find(|(r, _)| *r == range) {
            *known = due.min(*known);
            return;
        }
        if self.pending.len() >= PENDING {
            self.pending.clear();
            self.audit_due = self.audit_due.min(due);
            return;
        }
        self.pending.push((range, due));
    }

    /// Registers a region that overlaps nothing tracked.
    fn start(&mut self, range: EncodedRange, region: metapb::Region) {
        let Some(checkpoint_ts) = self.checkpoint_of(&range) else {
            return;
        };
        if self.safe_point > checkpoint_ts {
            self.gap(range, checkpoint_ts);
            return;
        }
        let id = SubId(self.next_sub);
        self.next_sub += 1;
        let version = region.region_epoch.as_ref().map_or(0, |e| e.version);
        self.tracked.insert(range.clone(), (id, version));
        self.scanning += 1;
        let tracked = Tracked {
            region_id: region.id,
            range,
            checkpoint_ts,
            state: State::Scanning,
        };
        self.subs.insert(id, tracked);
        self.events.push_back(TrackerEvent::Started {
            sub: id,
            region: region.clone(),
            checkpoint_ts,
        });
        self.actions.push_back(Action::Subscribe(Subscription {
            id,
            alone: self.stalls.is_suspect(region.id),
            region,
            checkpoint_ts,
            wanted: self.wanted.clone(),
        }));
    }

    /// The smallest frontier of what is wanted of a range.
    fn checkpoint_of(&self, range: &EncodedRange) -> Option<Ts> {
        let parts = self.wanted.iter().filter_map(|w| w.intersect(range));
        parts.map(|part| (self.frontier)(&part)).min()
    }

    /// The range cannot be continued without a hole.
    fn gap(&mut self, range: EncodedRange, checkpoint_ts: Ts) {
        tracing::error!(
            ?range,
            %checkpoint_ts,
            safe_point = %self.safe_point,
            "GC passed the checkpoint of a range, its changes are lost"
        );
        self.lost.push(range.clone());
        self.events.push_back(TrackerEvent::Gap {
            range,
            checkpoint_ts,
            safe_point: self.safe_point,
        });
    }

    pub fn on_cdc(&mut self, event: CdcEvent, now: Instant) {
        match event {
            CdcEvent::Records { sub, records } if self.subs.contains_key(&sub) => {
                self.events
                    .push_back(TrackerEvent::Records { sub, records });
            }
            CdcEvent::Initialized { sub } => {
                if let Some(tracked) = self.subs.get_mut(&sub) {
                    tracked.state = State::Verifying;
                    self.scanning -= 1;
                    self.unverified.insert(sub);
                    self.window = (self.window + 1).min(self.max_window);
                }
            }
            CdcEvent::Resolved { mut subs, ts } => {
                for sub in &subs {
                    self.stalls.resolved(*sub, ts, now);
                }
                let live = |id: &SubId| {
                    let sub = self.subs.get(id);
                    sub.is_some_and(|sub| sub.state == State::Live)
                };
                subs.retain(live);
                if !subs.is_empty() {
                    self.events.push_back(TrackerEvent::Resolved { subs, ts });
                }
            }
            CdcEvent::Ended { sub, reason } => {
                if let Some(tracked) = self.end(sub, reason.clone()) {
                    self.after_end(&tracked, sub, reason, now);
                }
            }
            CdcEvent::Disconnected { subs, reason } => {
                for sub in subs {
                    self.end(sub, reason.clone());
                }
                match reason.class() {
                    Class::Permanent => self.fail(reason.to_string()),
                    _ => self.audit_at(now + Duration::from_millis(100)),
                }
            }
            // Of a subscription that was given up meanwhile.
            CdcEvent::Records { .. } => {}
        }
    }

    /// Forgets a subscription and tells so; `None` if it was unknown.
    pub fn end(&mut self, sub: SubId, reason: EndReason) -> Option<Tracked> {
        let tracked = self.subs.remove(&sub)?;
        self.tracked.remove(&tracked.range);
        self.stalls.end(sub);
        self.scanning -= usize::from(tracked.state == State::Scanning);
        self.unverified.remove(&sub);
        self.verifying.remove(&sub);
        if let Some(ended) = self.ended.get_mut(reason.kind as usize) {
            *ended += 1;
        }
        self.last_end = Some(EndReason {
            regions: Vec::new(),
            ..reason.clone()
        });
        self.events.push_back(TrackerEvent::Ended { sub, reason });
        Some(tracked)
    }

    fn after_end(&mut self, tracked: &Tracked, sub: SubId, reason: EndReason, now: Instant) {
        if reason.class() == Class::Permanent {
            self.fail(reason.to_string());
            return;
        }
        let load = [
            EndKind::ServerIsBusy,
            EndKind::Congested,
            EndKind::Overrun,
            EndKind::LargeTransaction,
        ];
        if load.contains(&reason.kind) {
            self.window = (self.window / 2).max(1);
        }
        // Of a region that was live it is no failure that its leader moves or that it splits.
        let moved = matches!(reason.kind, EndKind::NotLeader | EndKind::EpochNotMatch);
        if moved && tracked.state == State::Live {
            self.penalties.forgive(&tracked.range);
        }
        let (until, before) = self.penalties.note(&tracked.range, &reason, sub.0, now);
        if before < TRUSTED_HINTS {
            for region in reason.regions {
                self.consider_hint(region);
            }
        }
        self.load_at(tracked.range.clone(), until);
    }

    /// The stream refused the command; try the range again.
    pub fn on_refused(&mut self, sub: SubId, text: String, now: Instant) {
        let reason = EndReason::new(EndKind::Stream, text);
        if let Some(tracked) = self.end(sub, reason.clone()) {
            self.after_end(&tracked, sub, reason, now);
        }
    }

    pub fn on_loaded(
        &mut self,
        range: EncodedRange,
        answer: Result<Loaded, LoadFailed>,
        now: Instant,
    ) {
        self.loads -= 1;
        let loaded = match answer {
            Ok(loaded) => loaded,
            Err(failed) if failed.permanent => return self.fail(failed.text),
            Err(failed) => {
                tracing::warn!(?range, error = %failed.text, "cannot load regions, trying again");
                return self.load_at(range, now + RELOAD);
            }
        };
        self.safe_point = self.safe_point.max(loaded.safe_point);
        self.told += loaded.regions.len();
        if let Some(rest) = loaded.rest {
            self.load_at(rest, now + RELOAD);
        }
        for region in loaded.regions {
            if region.leader.is_none() {
                self.load_at(region.range(), now + RELOAD);
            } else if region.leader_store() == self.store_id {
                self.consider(region.meta, now);
            }
        }
    }

    pub fn on_safe_point(&mut self, answer: Result<Ts, LoadFailed>, now: Instant) {
        self.reading = false;
        let verifying = std::mem::take(&mut self.verifying);
        match answer {
            Ok(safe_point) => self.safe_point = self.safe_point.max(safe_point),
            Err(failed) if failed.permanent => return self.fail(failed.text),
            Err(failed) => {
                tracing::warn!(error = %failed.text, "cannot read the GC safe point, trying again");
                self.unverified.extend(verifying);
                self.read_due = now + RELOAD;
                return;
            }
        }
        for sub in verifying {
            let Some(tracked) = self.subs.get_mut(&sub) else {
                continue;
            };
            if self.safe_point <= tracked.checkpoint_ts {
                tracked.state = State::Live;
                let (id, range) = (tracked.region_id, tracked.range.clone());
                let from = tracked.checkpoint_ts;
                self.stalls.begin(sub, id, range, from, now);
                continue;
            }
            let (range, checkpoint_ts) = (tracked.range.clone(), tracked.checkpoint_ts);
            let text = "GC passed its checkpoint during the scan";
            self.actions.push_back(Action::Unsubscribe(sub));
            self.end(sub, EndReason::new(EndKind::Unknown, text));
            self.gap(range, checkpoint_ts);
        }
    }

    /// What the locks of a region say that stood at `asked`.
    pub fn on_looked(&mut self, sub: SubId, asked: Ts, looked: Looked, now: Instant) {
        self.stalls.looked(sub, asked, looked, now);
    }

    /// Registers a region anew that a lock holds which does not exist.
    fn repair(&mut self, sub: SubId, resolved: Ts, now: Instant) {
        let text = "the store waits for a lock that does not exist";
        self.actions.push_back(Action::Unsubscribe(sub));
        if let Some(tracked) = self.end(sub, EndReason::new(EndKind::PhantomLock, text)) {
            let (region, range) = (tracked.region_id, tracked.range);
            tracing::warn!(region, ?range, %resolved, "{text}, registering the region anew");
            self.load_at(range, now);
        }
    }

    fn fail(&mut self, text: String) {
        self.failed = true;
        self.pending.clear();
        self.ready.clear();
        let subs: Vec<_> = self.subs.keys().copied().collect();
        for sub in subs {
            self.actions.push_back(Action::Unsubscribe(sub));
            self.end(sub, EndReason::new(EndKind::Incompatible, text.clone()));
        }
        self.events.push_back(TrackerEvent::Failed { text });
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;

#[cfg(test)]
#[path = "stall_tests.rs"]
mod stall_tests;

#[cfg(test)]
#[path = "error_tests.rs"]
mod error_tests;
