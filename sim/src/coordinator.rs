//! The life of a coordinator candidate: the product's span map and policy, driven by pending calls
//! as the product's shell is by PD and the stores. It dies with the process of its node.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_coordinator::{Policy, SpanMap};
use pitr_env::Clock;
use pitr_format::{EncodedRange, Ts};
use pitr_observer::TaskRanges;

use crate::bug::Bug;
use crate::calls::{Calls, Reply, Request};
use crate::env::SimClock;
use crate::node::pause;

/// How long the key of a candidate outlives it.
pub const LEASE_MS: u64 = 6_000;
/// How often the lease is renewed, and the election looked at.
const BEAT: Duration = Duration::from_secs(2);

/// Ranges and up to where they are durable.
pub type Lines = Vec<(EncodedRange, Ts)>;

/// What a candidate is given.
pub struct Setup {
    /// Its calls.
    pub calls: Arc<Calls>,
    /// Time.
    pub clock: Arc<SimClock>,
    /// Stores that can be asked.
    pub stores: Vec<u64>,
    /// The task's key ranges.
    pub ranges: Vec<EncodedRange>,
    /// Figures.
    pub policy: Policy,
    /// What it hears of flushes while it leads.
    pub heard: Arc<Mutex<Heard>>,
    /// The planted mistake.
    pub bug: Option<Bug>,
}

/// The streams of a candidate.
#[derive(Default)]
pub struct Heard {
    /// Whether it listens.
    pub leads: bool,
    /// What was told and not read yet.
    pub lines: VecDeque<Lines>,
}

/// Lives until it is dropped.
pub async fn live(setup: Setup) -> Infallible {
    loop {
        if let Some(revision) = stand(&setup).await {
            lead_when_elected(&setup, revision).await;
        }
        setup.heard.lock().leads = false;
        sleep(&setup, BEAT).await;
    }
}

async fn stand(setup: &Setup) -> Option<u64> {
    match setup.calls.call(Request::Stand).await {
        Reply::Revision(revision) => Some(revision),
        _ => None,
    }
}

/// Until the candidate is out of the queue.
async fn lead_when_elected(setup: &Setup, revision: u64) {
    loop {
        match setup.calls.call(Request::Leader).await {
            Reply::Leader(Some(first)) if first == revision => return lead(setup, revision).await,
            Reply::Leader(_) | Reply::Failed => {}
            _ => return,
        }
        if !beat(setup, revision).await {
            return;
        }
        sleep(setup, Duration::from_secs(1)).await;
    }
}

/// False when the key is gone, or may be.
async fn beat(setup: &Setup, revision: u64) -> bool {
    !matches!(
        setup.calls.call(Request::Beat(revision)).await,
        Reply::NotFound
    )
}

async fn lead(setup: &Setup, revision: u64) {
    let Reply::Global(stored) = setup.calls.call(Request::LoadGlobal).await else {
        return;
    };
    {
        let mut heard = setup.heard.lock();
        heard.leads = true;
        heard.lines.clear();
    }
    let mut desk = Desk::new(setup, stored);
    let (mut beaten, mut polled) = (setup.clock.now(), Duration::ZERO);
    loop {
        let told: Vec<Lines> = setup.heard.lock().lines.drain(..).collect();
        for lines in &told {
            desk.told(lines);
        }
        if setup.clock.now() >= polled + setup.policy.tick() {
            polled = setup.clock.now();
            for store in &setup.stores {
                if let Reply::Lines(lines) = setup.calls.call(Request::Poll(*store)).await {
                    desk.told(&lines);
                }
            }
        }
        if !desk.raise(revision).await {
            return;
        }
        if setup.clock.now() >= beaten + BEAT {
            beaten = setup.clock.now();
            if !beat(setup, revision).await {
                return;
            }
        }
        pause().await;
    }
}

struct Desk<'a> {
    setup: &'a Setup,
    spans: SpanMap,
    /// Only for a planted mistake: the least of what was told last.
    last_heard: Ts,
    stored: Option<Ts>,
}

impl<'a> Desk<'a> {
    fn new(setup: &'a Setup, stored: Option<Ts>) -> Self {
        Desk {
            setup,
            spans: SpanMap::new(TaskRanges::new(setup.ranges.clone()), stored),
            last_heard: Ts::ZERO,
            stored,
        }
    }

    fn told(&mut self, lines: &Lines) {
        for (range, ts) in lines {
            self.spans.told(range, *ts);
        }
        if let Some(least) = lines.iter().map(|(_, ts)| *ts).min() {
            self.last_heard = least;
        }
    }

    fn proven(&self) -> Ts {
        match self.setup.bug {
            Some(Bug::HoleIgnored) => self.last_heard,
            _ => self.spans.global(),
        }
    }

    /// False when this candidate leads no longer.
    async fn raise(&mut self, revision: u64) -> bool {
        let ts = self.proven();
        if self.stored.is_some_and(|stored| ts <= stored) || ts.is_zero() {
            return true;
        }
        match self
            .setup
            .calls
            .call(Request::RaiseGlobal { ts, revision })
            .await
        {
            Reply::Ts(holds) => {
                self.stored = Some(holds);
                self.spans.told(&EncodedRange::ALL, holds);
                true
            }
            Reply::NotFound => false,
            _ => true,
        }
    }
}

async fn sleep(setup: &Setup, time: Duration) {
    let until = setup.clock.now() + time;
    while setup.clock.now() < until {
        pause().await;
    }
}
