//! One task at its coordinator: hears the stores, raises the checkpoint in PD, watches the lag.
//!
//! Invariants: the checkpoint in PD is only raised, only to the minimum of what was told, only by
//! a transaction that the election still holds in, never above PD's own time, which nothing durable
//! can have passed, and never once GC has passed it where nobody else would notice. A flush that is heard is published at once, without waiting for a tick.
//! Started and dropped by [`crate::coordinator`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_cluster::backoff::Backoff;
use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::pd::PdClient;
use pitr_cluster::tasks::{Task, TaskError, TaskRegistry};
use pitr_cluster::tls::Security;
use pitr_format::{EncodedRange, Ts};
use pitr_observer::TaskRanges;
use pitr_proto::etcdserverpb as pb;
use pitr_proto::logbackup::FlushNowRequest;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::CoordinatorError;
use crate::coordinator::{Locks, PauseValue, Transient};
use crate::directory::Endpoint;
use crate::policy::{Grace, LagStage, Need, Policy, Standstill, earlier, lag};
use crate::poll::{Polled, poll};
use crate::resume::Resume;
use crate::spans::SpanMap;
use crate::status::{CoordinatorStatus, StoreHealth, StoreProgress, TaskProgress};
use crate::streams::{Heard, client, follow};

/// Messages of stores that wait; a full queue holds the streams back.
const QUEUE: usize = 1024;
/// A checkpoint that PD did not take is offered again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a store may take to flush when it is urged.
const URGE: Duration = Duration::from_secs(60);

/// What all desks of one leadership share.
pub(crate) struct Shared {
    pub pd: Arc<PdClient>,
    pub etcd: Arc<EtcdClient>,
    /// Writes only while this process leads.
    pub tasks: TaskRegistry,
    pub policy: Policy,
    pub pause_value: PauseValue,
    pub transient: Transient,
    pub locks: Option<Locks>,
    /// Whether nobody tells when history was read that GC had removed.
    pub history_unwatched: bool,
    /// Holds in a transaction only while this process leads.
    pub condition: pb::Compare,
    pub endpoints: watch::Receiver<Arc<Vec<Endpoint>>>,
    pub status: watch::Sender<CoordinatorStatus>,
    /// What each task needs of GC.
    pub needs: Mutex<BTreeMap<String, Need>>,
    /// A write was refused: do we still lead?
    pub doubt: mpsc::Sender<()>,
}

/// Work that must not hold the desk up.
enum Done {
    Clock(Result<Ts, CoordinatorError>),
    Polled(Result<Polled, CoordinatorError>),
    Urged,
    Searched(Result<(), String>),
}

pub(crate) struct Desk {
    shared: Arc<Shared>,
    task: Task,
    /// Turns true while the task is paused.
    paused: watch::Receiver<bool>,
    registered: i64,
    spans: SpanMap,
    /// What PD holds.
    stored: Option<Ts>,
    /// PD's time when it was last asked.
    now: Ts,
    streams: BTreeMap<u64, (Endpoint, AbortHandle)>,
    following: JoinSet<()>,
    jobs: JoinSet<Done>,
    /// The time or regions are being asked for.
    asking: bool,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    page: TaskProgress,
    stage: LagStage,
    grace: Grace,
    still: Standstill,
    resume: Resume,
    /// The checkpoint when the task was last tried again.
    resumed_at: Ts,
    urged: Option<Instant>,
    began: Instant,
    /// History after the checkpoint may be missing.
    broken: bool,
}

/// Runs the desk of a task until it is gone.
pub(crate) async fn run(shared: Arc<Shared>, task: Task, paused: watch::Receiver<bool>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5), 11);
    let desk = loop {
        match Desk::open(&shared, &task, &paused).await {
            Ok(Some(desk)) => break desk,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(task = task.name, %error, "the checkpoint of the task cannot be read");
                sleep(backoff.next_delay()).await;
            }
        }
    };
    desk.serve().await;
}

impl Desk {
    /// Nothing if the task is not the one that is registered now.
    async fn open(
        shared: &Arc<Shared>,
        task: &Task,
        paused: &watch::Receiver<bool>,
    ) -> Result<Option<Desk>, CoordinatorError> {
        let registered = match shared.tasks.registration(&task.name).await? {
            Some((info, revision)) if info == task.info => revision,
            _ => return Ok(None),
        };
        let stored = shared.tasks.global_checkpoint(&task.name).await?;
        let now = shared.pd.tso().await?;
        let start = stored.unwrap_or(Ts::new(task.info.start_ts));
        let mut desk = Desk {
            shared: shared.clone(),
            task: task.clone(),
            paused: paused.clone(),
            registered,
            spans: SpanMap::new(TaskRanges::new(task.encoded_ranges()), stored),
            stored,
            now,
            streams: BTreeMap::new(),
            following: JoinSet::new(),
            jobs: JoinSet::new(),
            asking: false,
            heard: mpsc::channel(QUEUE),
            page: TaskProgress::default(),
            stage: LagStage::Fine,
            grace: Grace::default(),
            still: Standstill::new(start, Duration::ZERO),
            resume: Resume::default(),
            resumed_at: start,
            urged: None,
            began: Instant::now(),
            broken: false,
        };
        if shared.policy.lag_stage(lag(now, start)) == LagStage::Pause {
            desk.grace.begin(Duration::ZERO);
        }
        desk.holds(start);
        desk.follow_stores();
        Ok(Some(desk))
    }

    async fn serve(mut self) {
        let mut endpoints = self.shared.endpoints.clone();
        let mut tick = interval(self.shared.policy.tick());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(heard) = self.heard.1.recv() => {
                    self.take(heard);
                    while let Ok(heard) = self.heard.1.try_recv() {
                        self.take(heard);
                    }
                    if !self.raise().await {
                        return;
                    }
                }
                changed = endpoints.changed() => match changed {
                    Ok(()) => self.follow_stores(),
                    Err(_) => return,
                },
                _ = tick.tick() => self.ask_the_time(),
                () = sleep(AGAIN), if !self.page.trouble.is_empty() => {
                    if !self.raise().await {
                        return;
                    }
                }
                Some(done) = self.jobs.join_next() => {
                    match done {
                        Ok(done) => self.done(done).await,
                        Err(_) => self.asking = false,
                    }
                    if !self.raise().await {
                        return;
                    }
                }
            }
            self.show();
        }
    }

    fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Flushed(told) => {
                for (range, ts) in told {
                    self.spans.told(&range, ts);
                }
            }
            Heard::Health { store_id, health } => {
                if let StoreHealth::Failing { reason } = &health {
                    tracing::debug!(task = self.task.name, store_id, reason, "no flush events");
                }
                if let Some(store) = self.page.stores.get_mut(&store_id) {
                    store.health = health;
                }
            }
        }
    }

    /// One stream to each store, begun anew where the store or its address is another one.
    fn follow_stores(&mut self) {
        let endpoints = self.shared.endpoints.borrow().clone();
        self.streams.retain(|_, (endpoint, stream)| {
            let stays = endpoints.contains(endpoint);
            if !stays {
                stream.abort();
            }
            stays
        });
        let known = |id: &u64| endpoints.iter().any(|endpoint| endpoint.store_id == *id);
        self.page.stores.retain(|id, _| known(id));
        for endpoint in endpoints.iter() {
            if self.streams.contains_key(&endpoint.store_id) {
                continue;
            }
            let security = self.shared.pd.security().clone();
            let heard = self.heard.0.clone();
            let stream = follow(security, endpoint.clone(), self.registered, heard);
            let stream = self.following.spawn(stream);
            let progress = StoreProgress {
                address: endpoint.address.clone(),
                health: StoreHealth::Connecting,
            };
            self.page.stores.insert(endpoint.store_id, progress);
            self.streams
                .insert(endpoint.store_id, (endpoint.clone(), stream));
        }
        // Those that were aborted.
        while self.following.try_join_next().is_some() {}
    }

    /// Brings PD up to what was told; false when the task is gone.
    async fn raise(&mut self) -> bool {
        let end = match self.task.info.end_ts {
            0 => Ts::MAX,
            end => Ts::new(end),
        };
        let proven = self.spans.global().min(end);
        let held = self.stored.unwrap_or(Ts::new(self.task.info.start_ts));
        if proven <= held {
            self.page.trouble.clear();
            return true;
        }
        if proven > self.now {
            match self.shared.pd.tso().await {
                Ok(now) => self.now = now,
                Err(error) => {
                    self.page.trouble = error.to_string();
                    return true;
                }
            }
        }
        if proven > self.now {
            self.page.trouble = format!("stores told {proven}, which PD's clock has not reached");
            tracing::error!(task = self.task.name, %proven, now = %self.now, "a checkpoint of the future");
            return true;
        }
        if !self.history_is_whole(held).await {
            return true;
        }
        let tasks = &self.shared.tasks;
        let raised = tasks.raise_global_checkpoint(&self.task.name, self.registered, proven);
        match raised.await {
            Ok(holds) => {
                self.page.trouble.clear();
                self.stored = Some(holds);
                self.spans.told(&EncodedRange::ALL, holds);
                self.holds(holds);
            }
            Err(TaskError::NotFound { .. }) => return false,
            Err(error) => {
                tracing::warn!(task = self.task.name, %error, "the checkpoint is not raised");
                self.page.trouble = error.to_string();
                if matches!(error, TaskError::Contended { .. }) {
                    // Full: it is being looked into.
                    let _ = self.shared.doubt.try_send(());
                }
            }
        }
        true
    }

    /// Whether all that was read since the checkpoint was there to be read: as long as GC has not
    /// passed that. Where the tailers watch that themselves, theirs is the word.
    async fn history_is_whole(&mut self, held: Ts) -> bool {
        if !self.shared.history_unwatched {
            return true;
        }
        let safe_point = match self.shared.pd.gc_safe_point().await {
            Ok(safe_point) => safe_point,
            Err(error) => {
                self.page.trouble = error.to_string();
                return false;
            }
        };
        if safe_point > held && !std::mem::replace(&mut self.broken, true) {
            tracing::error!(task = self.task.name, checkpoint = %held, %safe_point,
                "GC passed the checkpoint: it is not raised any more");
        }
        if self.broken {
            self.page.trouble = format!(
                "GC passed the checkpoint {held}, its safepoint is {safe_point}: history after it may \
                 be missing"
            );
        }
        !self.broken
    }

    /// Notes what GC must keep.
    fn holds(&mut self, global: Ts) {
        let policy = &self.shared.policy;
        let over = policy.lag_stage(lag(self.now, global)) == LagStage::Pause;
        let catches_up = !*self.paused.borrow() && self.grace.lasts(policy, self.began.elapsed());
        let need = match (over && !catches_up) || self.broken {
            true => Need::LetGo,
            false => Need::From(global),
        };
        let mut needs = self.shared.needs.lock();
        needs.insert(self.task.name.clone(), need);
    }

    /// The time decides what is to be done; one question at a time.
    fn ask_the_time(&mut self) {
        if !std::mem::replace(&mut self.asking, true) {
            let pd = self.shared.pd.clone();
            self.jobs
                .spawn(async move { Done::Clock(pd.tso().await.map_err(Into::into)) });
        }
    }

    async fn done(&mut self, done: Done) {
        if matches!(done, Done::Clock(_) | Done::Polled(_)) {
            self.asking = false;
        }
        match done {
            Done::Clock(Ok(now)) => {
                self.now = now.max(self.now);
                self.decide().await;
            }
            Done::Polled(Ok(polled)) => self.polled(polled),
            Done::Clock(Err(error)) | Done::Polled(Err(error)) => {
                tracing::debug!(task = self.task.name, %error, "the cluster does not answer");
            }
            Done::Searched(Err(why)) => {
                tracing::warn!(task = self.task.name, why, "locks could not be resolved");
            }
            Done::Urged | Done::Searched(Ok(())) => {}
        }
    }

    async fn decide(&mut self) {
        let policy = self.shared.policy.clone();
        let global = self.stored.unwrap_or(Ts::new(self.task.info.start_ts));
        self.holds(global);
        let all_tell = self.page.stores.values().all(|store| store.health.tells());
        let below = earlier(self.now, policy.poll_threshold(all_tell));
        let lagging = self.spans.below(below);
        match lagging.is_empty() {
            true => self.explain(None, ""),
            false => self.poll(lagging),
        }
        if *self.paused.borrow() {
            self.grace.begin(self.began.elapsed());
            self.still = Standstill::new(global, self.began.elapsed());
            return self.consider_resuming(global).await;
        }
        self.resume.runs(global > self.resumed_at);
        self.weigh(global).await;
        let patience = policy.standstill.unwrap_or(Duration::MAX);
        let moment = self.began.elapsed();
        if let Some(target) = self.still.look(global, moment, patience) {
            self.search_locks(target);
        }
    }

    fn poll(&mut self, lagging: Vec<EncodedRange>) {
        self.asking = true;
        let (shared, registered) = (self.shared.clone(), self.registered);
        self.jobs.spawn(async move {
            let endpoints = shared.endpoints.borrow().clone();
            Done::Polled(poll(&shared.pd, &endpoints, registered, &lagging).await)
        });
    }

    fn polled(&mut self, polled: Polled) {
        for (range, ts) in &polled.told {
            self.spans.told(range, *ts);
        }
        match polled.failed {
            Some((region, store, why)) => self.explain(Some((region, store)), &why),
            None => self.explain(
                polled.first,
                "its store answers, but its checkpoint stands: an unfinished transaction holds a \
                 lock there, or its flushes fail",
            ),
        }
    }

    fn explain(&mut self, region: Option<(u64, u64)>, reason: &str) {
        self.page.lowest_region = region.map(|(region, _)| region);
        self.page.lowest_store = region.map(|(_, store)| store).filter(|store| *store > 0);
        self.page.reason = reason.to_owned();
    }

    /// Ends a pause that a failure caused which may have passed, as long as GC has not.
    async fn consider_resuming(&mut self, global: Ts) {
        if !self.resume.due(self.began.elapsed()) {
            return;
        }
        let (tasks, task) = (&self.shared.tasks, &self.task.name);
        let value = tasks.pause_value(task).await;
        let transient = matches!(&value, Ok(Some(value)) if (self.shared.transient)(value));
        let safe_point = self.shared.pd.gc_safe_point().await;
        if !transient || !safe_point.is_ok_and(|safe_point| safe_point <= global) {
            return;
        }
        match tasks.resume(task).await {
            Ok(resumed) => tracing::warn!(task, resumed, "a pause by a transient failure is ended"),
            Err(error) => tracing::warn!(task, %error, "the task cannot be resumed"),
        }
        self.resume.tried();
        self.resumed_at = global;
    }

    /// What the lag calls for.
    async fn weigh(&mut self, global: Ts) {
        let behind = lag(self.now, global);
        let stage = self.shared.policy.lag_stage(behind);
        let worse = stage > self.stage;
        self.stage = stage;
        let (task, seconds) = (self.task.name.clone(), behind.as_secs());
        match stage {
            LagStage::Fine => {}
            LagStage::Warn if worse => tracing::warn!(task, seconds, "the task lags"),
            LagStage::Warn => {}
            LagStage::Urge => {
                if worse {
                    tracing::error!(task, seconds, "the task lags by half of its limit");
                }
                self.urge();
            }
            LagStage::Pause if self.grace.lasts(&self.shared.policy, self.began.elapsed()) => {
                self.urge();
            }
            LagStage::Pause => {
                let why = format!("the checkpoint lags by {seconds} s, the limit is reached");
                let value = (self.shared.pause_value)(&why);
                match self.shared.tasks.pause(&task, value).await {
                    Ok(paused) => tracing::error!(task, seconds, paused, "the task is paused"),
                    Err(error) => tracing::warn!(task, %error, "the task cannot be paused"),
                }
            }
        }
    }

    /// Asks every store to flush, once a flush interval; their errors say what is wrong.
    fn urge(&mut self) {
        let due = |at: Instant| at.elapsed() >= self.shared.policy.flush_interval;
        if !self.urged.is_none_or(due) {
            return;
        }
        self.urged = Some(Instant::now());
        let endpoints = self.shared.endpoints.borrow().clone();
        let pd = self.shared.pd.clone();
        self.jobs.spawn(async move {
            for endpoint in endpoints.iter() {
                flush_now(pd.security(), endpoint).await;
            }
            Done::Urged
        });
    }

    fn search_locks(&mut self, target: Ts) {
        let Some(locks) = self.shared.locks.clone() else {
            return;
        };
        let ranges = self.spans.below(target);
        let target = target.min(self.now);
        tracing::info!(task = self.task.name, %target, ranges = ranges.len(), "looking for locks");
        self.jobs
            .spawn(async move { Done::Searched(locks(ranges, target).await) });
    }

    fn show(&mut self) {
        self.page.global = self.stored.map_or(0, Ts::get);
        let lowest = self.spans.lowest();
        self.page.lowest = lowest.as_ref().map_or(0, |(_, ts)| ts.get());
        self.page.lowest_range = lowest
            .map(|(range, _)| format!("{range:?}"))
            .unwrap_or_default();
        let page = self.page.clone();
        self.shared.status.send_if_modified(|status| {
            let before = status.tasks.insert(self.task.name.clone(), page.clone());
            before.as_ref() != Some(&page)
        });
    }
}

async fn flush_now(security: &Security, endpoint: &Endpoint) {
    let store = endpoint.store_id;
    let mut client = match client(security, &endpoint.address) {
        Ok(client) => client,
        Err(error) => return tracing::warn!(store, %error, "the store cannot be asked to flush"),
    };
    match timeout(URGE, client.flush_now(FlushNowRequest {})).await {
        Ok(Ok(answer)) => {
            for result in answer.into_inner().results {
                let (task, why) = (result.task_name, result.error_message);
                if !result.success {
                    tracing::error!(store, task, why, "a flush that was asked for failed");
                }
            }
        }
        Ok(Err(status)) => tracing::warn!(store, %status, "the store does not flush when asked"),
        Err(_) => tracing::warn!(store, "the store did not flush in time"),
    }
}
