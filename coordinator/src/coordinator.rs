//! A candidate of the election, and the coordinator once it is elected: one desk for each task, the
//! directory of the stores, and the safepoint that keeps GC behind all tasks.
//!
//! Whoever loses the election drops every desk at once; what was on its way to PD then is refused
//! by its own condition. The next leader begins at the checkpoint that PD holds and hears the whole
//! table of every store when it subscribes, so that nothing has to be handed over.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::backoff::Backoff;
use pitr_cluster::etcd::{EtcdClient, EtcdError};
use pitr_cluster::pd::PdClient;
use pitr_cluster::tasks::{Task, TaskEvent, TaskRegistry};
use pitr_format::{EncodedRange, Ts};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::desk::{self, Shared};
use crate::directory::{self, Endpoint};
use crate::election::{BEAT, Candidate, Leader};
use crate::gc_driver::{self, GcDriver};
use crate::policy::{Need, Policy, SafePoint, safe_point};
use crate::status::CoordinatorStatus;

/// Service id of the coordinator's safepoint, that of the stock advancer.
pub const SERVICE: &str = "log-backup-coordinator";
/// Its time to live.
const TTL: Duration = Duration::from_secs(86_400);
/// It is moved at most that often.
const MOVE: Duration = Duration::from_secs(10);
/// How often stores and sidecars are looked up, and whether the safepoint must move.
const LOOK: Duration = Duration::from_secs(1);

/// Makes the value of a pause key from a reason.
pub type PauseValue = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;
/// Whether the value of a pause key tells of a failure that may have passed by itself.
pub type Transient = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;
/// Resolves locks of ranges up to a ts.
pub type Locks = Arc<
    dyn Fn(Vec<EncodedRange>, Ts) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>>
        + Send
        + Sync,
>;

/// What a coordinator is given.
#[derive(Clone)]
pub struct Options {
    /// What it says of itself in the election; unique.
    pub id: String,
    /// How it treats its tasks.
    pub policy: Policy,
    /// How it pauses one.
    pub pause_value: PauseValue,
    /// Which pauses it ends by itself.
    pub transient: Transient,
    /// How it resolves locks of parts that stand still; nothing where others do.
    pub locks: Option<Locks>,
    /// Whether those who tail the stores cannot tell when they read history that GC had removed: then
    /// no checkpoint is raised once GC has passed it.
    pub history_unwatched: bool,
    /// How it drives GC; nothing where others do.
    pub gc_driver: Option<GcDriver>,
}

/// A candidate.
pub struct Coordinator {
    pd: Arc<PdClient>,
    etcd: Arc<EtcdClient>,
    tasks: TaskRegistry,
    options: Options,
    status: watch::Sender<CoordinatorStatus>,
}

/// A desk; its task ends with the set that it was spawned in.
struct Seat {
    paused: watch::Sender<bool>,
    handle: tokio::task::AbortHandle,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Coordinator {
    /// A candidate that does not stand yet.
    pub fn new(
        pd: Arc<PdClient>,
        etcd: Arc<EtcdClient>,
        tasks: TaskRegistry,
        options: Options,
    ) -> Self {
        Coordinator {
            pd,
            etcd,
            tasks,
            options,
            status: watch::Sender::default(),
        }
    }

    /// Who leads, and the tasks while it is this one.
    pub fn status(&self) -> watch::Receiver<CoordinatorStatus> {
        self.status.subscribe()
    }

    /// Stands for election, and leads whenever it is elected, until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), 13);
        loop {
            let stood = tokio::select! {
                stood = Candidate::stand(self.etcd.clone(), &self.options.id) => stood,
                () = stopped(&mut stop) => return,
            };
            match stood {
                Ok(mut candidate) => {
                    backoff.reset();
                    let ended = tokio::select! {
                        ended = self.candidate(&mut candidate) => ended,
                        () = stopped(&mut stop) => {
                            self.show(String::new(), false);
                            return candidate.resign().await;
                        }
                    };
                    self.show(String::new(), false);
                    if let Err(error) = ended {
                        tracing::info!(%error, "standing for election again");
                    }
                    candidate.resign().await;
                }
                Err(error) => tracing::debug!(%error, "cannot stand for election"),
            }
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    /// Until the candidate is out of the queue.
    async fn candidate(&self, candidate: &mut Candidate) -> Result<(), EtcdError> {
        loop {
            match candidate.leader().await? {
                Some(Leader::Us) => {
                    self.show(self.options.id.clone(), true);
                    tracing::info!(id = self.options.id, "elected as coordinator");
                    let why = self.lead(candidate).await;
                    tracing::warn!(why, "no longer the coordinator");
                    return Ok(());
                }
                Some(Leader::Other(who)) => self.show(who, false),
                None => return Ok(()),
            }
            candidate.wait().await;
            if !candidate.beat().await {
                return Ok(());
            }
        }
    }

    fn show(&self, leader: String, leads: bool) {
        self.status.send_if_modified(|status| {
            let changed = status.leader != leader || status.leads != leads;
            if changed {
                *status = CoordinatorStatus {
                    leader,
                    leads,
                    ..CoordinatorStatus::default()
                };
            }
            changed
        });
    }

    /// Leads until that is over; why it is.
    async fn lead(&self, candidate: &mut Candidate) -> &'static str {
        let (doubt, mut doubts) = mpsc::channel(1);
        let (found, endpoints) = watch::channel(Arc::default());
        let shared = Arc::new(Shared {
            pd: self.pd.clone(),
            etcd: self.etcd.clone(),
            tasks: self.tasks.fenced(candidate.condition()),
            policy: self.options.policy.clone(),
            pause_value: self.options.pause_value.clone(),
            transient: self.options.transient.clone(),
            locks: self.options.locks.clone(),
            history_unwatched: self.options.history_unwatched,
            condition: candidate.condition(),
            endpoints,
            status: self.status.clone(),
            needs: Default::default(),
            doubt,
        });
        // Everything that is spawned ends with this.
        let mut work = JoinSet::new();
        work.spawn(look_up(shared.clone(), found));
        work.spawn(keep_safe_point(shared.clone()));
        if let Some(driver) = &self.options.gc_driver {
            work.spawn(gc_driver::drive(shared.clone(), driver.clone()));
        }
        let mut desks: BTreeMap<String, Seat> = BTreeMap::new();
        let mut events = self.tasks.events();
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    if !candidate.beat().await {
                        return "the lease ended";
                    }
                }
                Some(()) = doubts.recv() => {
                    if let Ok(leader) = candidate.leader().await
                        && leader != Some(Leader::Us)
                    {
                        return "another one was elected";
                    }
                }
                event = events.recv() => match event {
                    Some(event) => seat(&shared, &mut work, &mut desks, event),
                    None => return "the follower of the task registry ended",
                },
                Some(_) = work.join_next() => {}
            }
        }
    }
}

/// Keeps the desks as the registry has the tasks.
fn seat(
    shared: &Arc<Shared>,
    work: &mut JoinSet<()>,
    desks: &mut BTreeMap<String, Seat>,
    event: TaskEvent,
) {
    match event {
        TaskEvent::Added(task) => {
            let (paused, inbox) = watch::channel(task.paused);
            shared.needs.lock().insert(task.name.clone(), Need::Unknown);
            let name = task.name.clone();
            let handle = work.spawn(open_desk(shared.clone(), task, inbox));
            desks.insert(name, Seat { paused, handle });
        }
        TaskEvent::Removed(name) => {
            desks.remove(&name);
            shared.needs.lock().remove(&name);
            shared.status.send_modify(|status| {
                status.tasks.remove(&name);
            });
        }
        TaskEvent::Paused(name) => pause(desks, &name, true),
        TaskEvent::Resumed(task) => pause(desks, &task.name, false),
        TaskEvent::Disconnected(error) => {
            tracing::debug!(error, "the task registry cannot be read; the desks go on");
        }
    }
}

async fn open_desk(shared: Arc<Shared>, task: Task, paused: watch::Receiver<bool>) {
    desk::run(shared, task, paused).await;
}

fn pause(desks: &mut BTreeMap<String, Seat>, name: &str, paused: bool) {
    if let Some(seat) = desks.get(name) {
        seat.paused.send_replace(paused);
    }
}

/// Finds the stores, again and again.
async fn look_up(shared: Arc<Shared>, found: watch::Sender<Arc<Vec<Endpoint>>>) {
    loop {
        match directory::endpoints(&shared.pd, &shared.etcd).await {
            Ok(endpoints) => {
                found.send_if_modified(|known| {
                    let changed = **known != endpoints;
                    if changed {
                        *known = Arc::new(endpoints);
                    }
                    changed
                });
            }
            Err(error) => tracing::debug!(%error, "the stores cannot be looked up"),
        }
        sleep(LOOK).await;
    }
}

/// Keeps the safepoint one below the smallest checkpoint, and removes it with the last task.
async fn keep_safe_point(shared: Arc<Shared>) {
    let mut told: Option<(SafePoint, Instant)> = None;
    loop {
        let wanted = safe_point(shared.needs.lock().values().copied());
        let due = match &told {
            None => true,
            Some((before, at)) if *before == wanted => at.elapsed() >= TTL / 3,
            Some((SafePoint::At(_), at)) if matches!(wanted, SafePoint::At(_)) => {
                at.elapsed() >= MOVE
            }
            Some(_) => true,
        };
        if due && set_safe_point(&shared, wanted).await {
            told = Some((wanted, Instant::now()));
        }
        sleep(LOOK).await;
    }
}

/// Whether PD has it as it should be.
async fn set_safe_point(shared: &Shared, wanted: SafePoint) -> bool {
    let told = match wanted {
        SafePoint::At(ts) => shared.pd.hold_gc(SERVICE, TTL, ts).await.map(|min| {
            if min > ts {
                tracing::warn!(asked = %ts, %min, "PD did not take the coordinator's safepoint");
            }
        }),
        SafePoint::Leave => return true,
        SafePoint::Remove => match shared.tasks.list().await {
            Ok((tasks, _)) if tasks.is_empty() => shared.pd.release_gc(SERVICE).await,
            // They are not seated yet.
            _ => return false,
        },
    };
    match told {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the coordinator's safepoint is not renewed");
            false
        }
    }
}

/// Waits until `stop` turns true.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone means nobody can ask for anything else.
    let _ = stop.wait_for(|stop| *stop).await;
}
