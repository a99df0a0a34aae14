//! One life of a task: load it from the durable truth, tail, flush and publish until something
//! ends it. After any end the next session begins again at what is durable; nothing of an old
//! session is carried over, so nothing of it can be trusted by mistake.

use std::sync::Arc;
use std::time::Duration;

use pitr_budget::MemoryBudget;
use pitr_cluster::seat::SeatError;
use pitr_cluster::tasks::Task;
use pitr_format::Ts;
use pitr_observer::{
    FlushSchedule, Flusher, FlusherConfig, Generation, Observer, ObserverConfig, ObserverHandle,
    Publisher, PublisherConfig, TaskStatus as MetricStatus,
};
use pitr_proto::backup::stream_backup_task_security_config;
use pitr_storage::SharedStorage;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::lag::{self, LagClock};
use super::runner::{self, Inbox, Stop, asked_to_stop};
use super::sink::RegistrySink;
use super::source::{Lost, Source};
use super::standing::Rate;
use super::{Context, gap, hold, store_config};
use crate::admin::{HeldBy, TaskState};
use crate::codes::Code;
use crate::failure::{Exit, Failure};
use crate::log_backup::FlushOrder;
use crate::log_backup::orders::answer_all;
use crate::{archive, juicefs, storage, time};

/// How often it is looked whether a flush is due by size.
const TICK: Duration = Duration::from_millis(100);
/// A publication that failed is repeated after this time.
const PUBLISH_AGAIN: Duration = Duration::from_secs(1);
/// How long the last flush may wait for the checkpoint that it makes.
const ANSWER: Duration = Duration::from_secs(3);
/// How long the last flush may take when the sidecar is asked to leave.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Why a session ended.
pub(super) enum End {
    /// It was asked to; whether everything read became durable.
    Stopped {
        /// False when the last flush failed.
        clean: bool,
    },
    /// History is missing: retrying cannot help.
    Gap(String),
    /// The archive reaches the end of the task.
    Finished,
    /// Try again later.
    Failed {
        /// Why.
        failure: Failure,
        /// Whether it flushed at least once.
        ran: bool,
    },
    /// Nothing that this process could do would be right.
    Fatal(Failure),
}

/// Runs one session.
pub(super) async fn run(context: &Arc<Context>, task: &Task, inbox: &mut Inbox) -> End {
    let loaded = tokio::select! {
        loaded = Session::load(context, task) => loaded,
        _ = inbox.stopped_while("the task is being loaded") => return End::Stopped { clean: true },
    };
    match loaded {
        Ok(session) => session.tail(inbox).await,
        Err(end) => end,
    }
}

struct Session {
    context: Arc<Context>,
    task: String,
    archive: SharedStorage,
    start_ts: Ts,
    end_ts: Ts,
    observer: ObserverHandle,
    flusher: Flusher,
    publisher: Publisher,
    schedule: FlushSchedule,
    source: Source,
    /// Sealed and not yet durable.
    generation: Option<Generation>,
    /// When something is to be published: at once, or again.
    publish_due: Option<Instant>,
    /// Whether the last publication failed.
    publish_fails: bool,
    rate: Rate,
    budget: Arc<MemoryBudget>,
    flushes: u64,
    began: Instant,
    clock: Arc<LagClock>,
    /// What PD holds, whoever raised it.
    global: watch::Receiver<Option<Ts>>,
    /// Tells the safepoints.
    globals: watch::Sender<Ts>,
    helpers: [JoinHandle<()>; 2],
}

impl Drop for Session {
    fn drop(&mut self) {
        for helper in &self.helpers {
            helper.abort();
        }
    }
}

impl Session {
    async fn load(context: &Arc<Context>, task: &Task) -> Result<Session, End> {
        let board = &context.board;
        board.task(&task.name, |status| {
            status.storage = storage::uri_of_task(&task.info);
        });
        accept(task).map_err(End::not_loaded)?;
        let alone = store_config::refuse_second_observer(context).await;
        alone.map_err(End::not_loaded)?;
        let registered = registered(context, task).await?;
        // GC is held before anything that may take its time, such as a storage that is away.
        let (stored, global) = durable_start(context, task).await?;
        let archive = context.fence.guard(open_archive(context, task).await?);
        let now = in_time(context, task, global).await;
        let now = now.map_err(End::not_loaded)?;
        let ranges = task.encoded_ranges();
        let log = &context.config;
        let env = context.env.clone();
        let budget = env.budget.clone();
        let flusher = Flusher::open(archive.clone(), flusher_config(context), &env)
            .await
            .map_err(|error| failed(storage::code_of_cause(&error, error.class()), &error))?;
        let publisher = open_publisher(context, task, registered, stored, &archive).await?;
        context.tables.load(&task.name, registered, &ranges);
        let followed_global = context.cluster.tasks.follow_global(&task.name, registered);
        let observer = Observer::start(observer_config(context), env, ranges.clone())
            .map_err(|error| failed(Code::Internal, &error))?;
        let frontier = publisher.frontier();
        let source = Source::start(context, ranges, frontier, observer.clone(), &task.name);
        let (globals, followed) = watch::channel(global);
        let keeper = tokio::spawn(hold::keep(context.clone(), task.name.clone(), followed));
        let start_ts = Ts::new(task.info.start_ts);
        let clock = LagClock::new(now, publisher.published().object.max(start_ts));
        let lag = tokio::spawn(lag::show(context.clone(), task.name.clone(), clock.clone()));
        let (interval, limit) = (log.max_flush_interval.get(), log.file_size_limit.get());
        let session = Session {
            context: context.clone(),
            task: task.name.clone(),
            archive,
            start_ts,
            end_ts: end_of(task),
            observer,
            flusher,
            publisher,
            schedule: FlushSchedule::new(interval, limit, Duration::ZERO),
            source,
            generation: None,
            publish_due: None,
            publish_fails: false,
            rate: Rate::new(Instant::now()),
            budget,
            flushes: 0,
            began: Instant::now(),
            clock,
            global: followed_global,
            globals,
            helpers: [keeper, lag],
        };
        session.show_running();
        Ok(session)
    }

    async fn tail(mut self, inbox: &mut Inbox) -> End {
        loop {
            let mut order = None;
            tokio::select! {
                how = asked_to_stop(&mut inbox.stop) => {
                    let clean = how == Stop::Drop || self.drain().await;
                    return End::Stopped { clean };
                }
                lost = self.source.lost() => {
                    // What was read up to here is good and makes the archive reach further.
                    self.drain().await;
                    return match lost {
                        Lost::Gap(reason) => End::Gap(reason),
                        Lost::Broken(failure) => End::Failed { failure, ran: self.flushes > 0 },
                    };
                }
                () = risen(&mut self.global) => self.publish_due = Some(Instant::now()),
                Some(asked) = inbox.orders.recv() => order = Some(asked),
                () = sleep(TICK) => {}
            }
            let done = match order {
                Some(order) => self.flush_as_ordered(order, inbox).await,
                None => self.tick().await,
            };
            if let Err(failure) = done {
                return End::Failed {
                    failure,
                    ran: self.flushes > 0,
                };
            }
            let published = self.publisher.published();
            if published.object.min(published.storage_checkpoint) >= self.end_ts {
                return End::Finished;
            }
        }
    }

    /// Flushes and publishes what is due. An error ends the session; what can be repeated with
    /// the same generation is not one.
    async fn tick(&mut self) -> Result<(), Failure> {
        let buffered = self.observer.buffered_bytes();
        let now = self.began.elapsed();
        self.show_progress(buffered);
        let urgent = if self.observer.is_starved() {
            u64::MAX
        } else {
            buffered
        };
        if self.schedule.due(now, urgent).is_some() {
            self.scheduled_flush().await.map(drop)?;
        }
        if self.publish_due.is_some_and(|at| at <= Instant::now()) {
            match self.still_the_archive().await {
                Ok(()) => self.publish().await,
                Err(Trouble::Again(failure)) => {
                    self.publish_due = Some(Instant::now() + PUBLISH_AGAIN);
                    self.show_failing(&failure);
                }
                Err(Trouble::Over(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    /// A flush that somebody asked for; everybody who asked is told what came of it.
    async fn flush_as_ordered(
        &mut self,
        order: FlushOrder,
        inbox: &mut Inbox,
    ) -> Result<(), Failure> {
        let done = self.scheduled_flush().await;
        let told = match &done {
            Ok(told) => told.clone(),
            Err(failure) => Err(failure.one_line()),
        };
        answer_all(&mut inbox.orders, order, told);
        done.map(drop)
    }

    /// A flush as the schedule counts it; inside, whether it became durable, or why not yet.
    async fn scheduled_flush(&mut self) -> Result<Result<(), String>, Failure> {
        self.schedule.started(self.began.elapsed());
        match self.flush().await {
            Ok(()) => {
                self.schedule.succeeded();
                Ok(Ok(()))
            }
            Err(Trouble::Again(failure)) => {
                self.schedule.failed(self.began.elapsed());
                self.show_failing(&failure);
                Ok(Err(failure.one_line()))
            }
            Err(Trouble::Over(failure)) => Err(failure),
        }
    }

    /// Makes the kept generation durable, or a new one, and publishes what it proves.
    async fn flush(&mut self) -> Result<(), Trouble> {
        let mut generation = match self.generation.take() {
            Some(kept) => kept,
            None => self.observer.seal().await.map_err(|error| {
                Trouble::Over(Failure::from_error(Code::ChangeStreamEnded, &error))
            })?,
        };
        let result = self.flush_generation(&mut generation).await;
        if result.is_err() {
            self.generation = Some(generation);
        }
        result?;
        self.flushes += 1;
        self.publish().await;
        self.show_flushed();
        Ok(())
    }

    async fn flush_generation(&mut self, generation: &mut Generation) -> Result<(), Trouble> {
        let now = self.context.cluster.pd.tso().await;
        let now = now.map_err(|error| Trouble::Again(error.into()))?;
        self.clock.told(now);
        clock_is_ahead(now, self.publisher.checkpoint()).map_err(Trouble::Over)?;
        let ours = self.context.fence.confirm().await;
        ours.map_err(|error| match error {
            SeatError::Taken { .. } => Trouble::Over(error.into()),
            SeatError::Unknown { .. } => Trouble::Again(error.into()),
        })?;
        self.still_the_archive().await?;
        let flushed = self.flusher.flush(generation, now).await;
        let proof = flushed.map_err(|error| {
            let failure =
                Failure::from_error(storage::code_of_cause(&error, error.class()), &error);
            match error {
                // Storage failures of any kind may be mended outside: keep the generation.
                pitr_observer::FlushError::Storage { .. }
                | pitr_observer::FlushError::Open(_)
                | pitr_observer::FlushError::Incomplete(_) => Trouble::Again(failure),
                pitr_observer::FlushError::Spill { .. }
                | pitr_observer::FlushError::OutOfOrder { .. }
                | pitr_observer::FlushError::MetaCollision { .. } => Trouble::Over(failure),
            }
        })?;
        self.still_the_archive().await?;
        let absorbed = self.publisher.absorb(&proof);
        let fault = generation.faults().first();
        match (absorbed.gaps, fault) {
            (0, None) => Ok(()),
            (0, Some(fault)) => Err(Trouble::Over(
                Failure::new(
                    Code::RowRefused,
                    format!("a row was refused: {}", fault.reason),
                )
                .at(format!("region {}", fault.region_id))
                .effect("the checkpoint stays; the regions are read again from it"),
            )),
            (gaps, _) => Err(Trouble::Over(
                Failure::new(
                    Code::ReadTooLate,
                    format!("{gaps} ranges were read from too late"),
                )
                .effect("their checkpoint stays; everything is read again from it"),
            )),
        }
    }

    /// That what is written goes where the session began: a file system that was unmounted leaves
    /// an empty directory that takes everything. What was written meanwhile is not in the archive,
    /// so the session ends, and the next one reads it again.
    async fn still_the_archive(&self) -> Result<(), Trouble> {
        let own = self.context.cluster.pd.cluster_id();
        match archive::cluster_of(&self.archive).await {
            Ok(found) if found == own => Ok(()),
            Ok(found) => {
                let uri = self.archive.uri();
                Err(Trouble::Over(archive::other_cluster(&uri, found, own)))
            }
            Err(failure) if failure.exit() == Exit::NotFound => Err(Trouble::Over(failure)),
            Err(failure) => Err(Trouble::Again(failure)),
        }
    }

    /// Tells what is durable here, and brings the archive up to the global checkpoint; a failure is
    /// repeated later.
    async fn publish(&mut self) {
        if let Some(global) = *self.global.borrow_and_update() {
            self.publisher.learn(global);
        }
        match self.publisher.publish().await {
            Ok(published) => {
                self.publish_due = None;
                let recovered = std::mem::take(&mut self.publish_fails);
                let global = published.global.unwrap_or(self.start_ts);
                self.flusher.set_global_checkpoint(global);
                self.globals.send_replace(global);
                self.show_published(published.object);
                if self.schedule.failures() == 0 || recovered {
                    self.show_running();
                }
            }
            Err(error) => {
                self.publish_due = Some(Instant::now() + PUBLISH_AGAIN);
                self.publish_fails = true;
                self.show_failing(&Failure::from_error(
                    storage::code_of_cause(&error, error.class()),
                    &error,
                ));
            }
        }
    }

    /// The last flush: everything read so far becomes durable and published, or it is told that
    /// it did not.
    async fn drain(&mut self) -> bool {
        let until = Instant::now() + DRAIN_LIMIT;
        // A kept generation first, then what came after it.
        let mut rounds = if self.generation.is_some() { 2 } else { 1 };
        while rounds > 0 {
            match self.flush().await {
                Ok(()) => rounds -= 1,
                Err(Trouble::Again(failure)) if Instant::now() < until => {
                    self.show_failing(&failure);
                    sleep(PUBLISH_AGAIN).await;
                }
                Err(Trouble::Again(failure) | Trouble::Over(failure)) => {
                    self.show_failing(&failure);
                    return false;
                }
            }
        }
        self.settle(until).await
    }

    /// Brings the archive up to the checkpoint that the last flush makes, where it can make one: what
    /// other stores lack is not waited for. Without an answer nothing is lost but a moment: the
    /// archive promises less than it has until the next publication. Whether nothing failed at last.
    async fn settle(&mut self, until: Instant) -> bool {
        let answered_by = Instant::now() + ANSWER;
        loop {
            if self.publish_fails {
                if Instant::now() >= until {
                    return false;
                }
                sleep(PUBLISH_AGAIN).await;
                self.publish().await;
                continue;
            }
            let known = self.publisher.published().global.unwrap_or(self.start_ts);
            if known >= self.publisher.checkpoint().min(self.end_ts) {
                return true;
            }
            match timeout_at(answered_by, self.global.changed()).await {
                Ok(Ok(())) => self.publish().await,
                Ok(Err(_)) | Err(_) => return true,
            }
        }
    }

    fn show_running(&self) {
        let board = &self.context.board;
        board.set_state(&self.task, self.start_ts.get(), TaskState::Running);
        let metrics = &self.context.metrics.observer;
        metrics.set_task_status(&self.task, MetricStatus::Running);
    }

    fn show_failing(&self, failure: &Failure) {
        runner::show_failing(&self.context, &self.task, &failure.one_line());
    }

    /// What changes all the time: rows and memory.
    fn show_progress(&mut self, buffered: u64) {
        let metrics = &self.context.metrics.observer;
        let events = metrics.handle_kv_batch.get_sample_sum() as u64;
        let measured = self.rate.measure(Instant::now(), events);
        let held_by = measured.and_then(|_| self.held_by());
        let budget = self.budget.limit();
        self.context.board.task(&self.task, |status| {
            status.buffered_bytes = buffered;
            status.memory_budget_bytes = budget;
            status.events = events;
            if let Some(rate) = measured {
                status.events_per_second = rate;
                status.held_by = held_by;
            }
        });
    }

    /// What holds the checkpoint, once it lags by more than two flushes and a moment.
    fn held_by(&self) -> Option<HeldBy> {
        let now = self.clock.now();
        let usual = self.context.config.max_flush_interval.get() * 2 + Duration::from_secs(5);
        let failing = self.context.board.failing(&self.task);
        let regions = self.source.regions();
        let lowest = self.publisher.frontier().lowest()?;
        regions.held_by(lowest, now, usual, failing.as_deref())
    }

    fn show_flushed(&self) {
        let uploaded = &self.context.metrics.observer.upload_file_size_bytes;
        let bytes = ["log", "metadata"].map(|kind| uploaded.with_label_values(&[kind]).get());
        self.context.board.task(&self.task, |status| {
            status.flushes += 1;
            status.last_flush = Some(time::show(time::local_now()).utc);
            status.bytes = bytes.iter().sum();
        });
    }

    fn show_published(&self, object: Ts) {
        if !object.is_zero() {
            self.clock.reached(object);
            let checkpoint = Some(time::show(object));
            self.context
                .board
                .task(&self.task, |status| status.checkpoint = checkpoint);
        }
    }
}

/// Waits until the global checkpoint is another one; for ever once its task is gone, which the
/// supervisor hears of too.
async fn risen(global: &mut watch::Receiver<Option<Ts>>) {
    if global.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whoever publishes what is durable of the task here.
async fn open_publisher(
    context: &Context,
    task: &Task,
    registered: i64,
    stored: Option<Ts>,
    archive: &SharedStorage,
) -> Result<Publisher, End> {
    let sink = RegistrySink {
        fence: context.fence.clone(),
        tables: context.tables.clone(),
        task: task.name.clone(),
        registered,
        store_id: context.store_id,
    };
    let config = PublisherConfig {
        task: task.name.clone(),
        store_id: context.store_id,
        ranges: task.encoded_ranges(),
        start_ts: Ts::new(task.info.start_ts),
        end_ts: end_of(task),
        global_checkpoint: stored,
    };
    let opened = Publisher::open(config, archive.clone(), Arc::new(sink), &context.env);
    let opened = opened.await;
    opened.map_err(|error| failed(storage::code_of_cause(&error, error.class()), &error))
}

/// Where the log ends.
fn end_of(task: &Task) -> Ts {
    match task.info.end_ts {
        0 => Ts::MAX,
        end => Ts::new(end),
    }
}

/// What a failed step means for the session.
enum Trouble {
    /// Repeat it with the same generation.
    Again(Failure),
    /// Begin a new session at what is durable.
    Over(Failure),
}

impl End {
    fn not_loaded(failure: Failure) -> End {
        End::Failed {
            failure,
            ran: false,
        }
    }
}

fn failed(code: Code, error: &dyn std::error::Error) -> End {
    End::not_loaded(Failure::from_error(code, error))
}

/// Where the task stands: the checkpoint that PD holds, if any, and the ts from which everything
/// must be read. GC is held there before anything is registered, and read back.
async fn durable_start(context: &Context, task: &Task) -> Result<(Option<Ts>, Ts), End> {
    let not_loaded = |error: Failure| End::not_loaded(error);
    let stored = context.cluster.tasks.global_checkpoint(&task.name).await;
    let stored = stored.map_err(|error| not_loaded(error.into()))?;
    let start_ts = Ts::new(task.info.start_ts);
    let global = stored.unwrap_or(start_ts).max(start_ts);
    let effective = hold::hold(context, &task.name, global).await;
    let effective = effective.map_err(|error| not_loaded(error.into()))?;
    if effective > global {
        return Err(End::Gap(gap::reason(global, effective)));
    }
    Ok((stored, global))
}

/// The revision of the task's registration, if it still is the one that this session was given.
async fn registered(context: &Context, task: &Task) -> Result<i64, End> {
    let found = context.cluster.tasks.registration(&task.name).await;
    match found.map_err(|error| End::not_loaded(error.into()))? {
        Some((info, revision)) if info == task.info => Ok(revision),
        _ => Err(End::not_loaded(
            Failure::new(
                Code::TaskReplaced,
                "the task was stopped or registered anew meanwhile",
            )
            .effect("nothing is written; the task list is read again"),
        )),
    }
}

/// PD's time, if it fits both to the checkpoint and to what GC leaves for a flush.
async fn in_time(context: &Context, task: &Task, global: Ts) -> Result<Ts, Failure> {
    let now = context.cluster.now().await?;
    clock_is_ahead(now, global)?;
    let interval = context.config.max_flush_interval.get();
    juicefs::refuse_rare_flushes(&context.cluster, &task.ranges, now, interval).await?;
    Ok(now)
}

/// A clock behind the checkpoint means that PD lost time (a restore of PD): commits that it hands
/// out now would lie below what counts as durable, and no scan would find them.
fn clock_is_ahead(now: Ts, checkpoint: Ts) -> Result<(), Failure> {
    if now >= checkpoint {
        return Ok(());
    }
    Err(
        Failure::new(Code::ClockBehind, "PD's clock is behind the checkpoint")
            .at(format!(
                "now {}, checkpoint {}",
                time::line(now),
                time::line(checkpoint)
            ))
            .effect("nothing is published; changes made now would not count as new")
            .action("raise PD's TSO above the checkpoint, or take a new base and a new archive"),
    )
}

/// Refuses a task that cannot be done as it asks.
fn accept(task: &Task) -> Result<(), Failure> {
    if task.encoded_ranges().is_empty() {
        // Nothing to wait for would look like everything being done.
        return Err(
            Failure::new(Code::TaskWithoutRanges, "the task has no key ranges")
                .effect("nothing is tailed; the checkpoint stays")
                .action("stop the task and start it again"),
        );
    }
    use stream_backup_task_security_config::Encryption;
    let security = task.info.security_config.as_ref();
    let encrypted = match security.and_then(|config| config.encryption.as_ref()) {
        Some(Encryption::PlaintextDataKey(cipher)) => !cipher.cipher_key.is_empty(),
        Some(Encryption::MasterKeyConfig(master)) => !master.master_keys.is_empty(),
        None => false,
    };
    if encrypted {
        return Err(Failure::new(
            Code::EncryptionUnsupported,
            "the task asks for an encrypted log",
        )
        .effect("nothing is written: it would be readable; the checkpoint stays")
        .action("this version cannot encrypt; start the task without encryption"));
    }
    Ok(())
}

/// Opens the storage of the task and makes sure that it is the archive of this cluster.
async fn open_archive(context: &Context, task: &Task) -> Result<SharedStorage, End> {
    let storage =
        (context.open_storage)(&task.info).map_err(|error| End::not_loaded(error.into()))?;
    let own = context.cluster.pd.cluster_id();
    match archive::cluster_of(&storage).await {
        Ok(found) if found == own => Ok(storage),
        Ok(found) => Err(End::Fatal(archive::other_cluster(
            &storage.uri(),
            found,
            own,
        ))),
        Err(failure) => Err(End::not_loaded(failure)),
    }
}

fn flusher_config(context: &Context) -> FlusherConfig {
    FlusherConfig {
        merge_limit: context.config.file_size_limit.get(),
        ..FlusherConfig::new(context.store_id)
    }
}

fn observer_config(context: &Context) -> ObserverConfig {
    ObserverConfig {
        shards: context.config.num_threads,
        encoders: context.config.num_threads,
        slice_limit: context.config.file_size_limit.get(),
        ..ObserverConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pitr_proto::backup::{CipherInfo, StreamBackupTaskInfo, StreamBackupTaskSecurityConfig};

    use super::*;

    fn task(ranges: Vec<(Bytes, Bytes)>, info: StreamBackupTaskInfo) -> Task {
        Task {
            name: "t".to_owned(),
            info,
            ranges,
            paused: false,
        }
    }

    fn everything() -> Vec<(Bytes, Bytes)> {
        vec![(Bytes::new(), Bytes::from_static(&[0xFF; 32]))]
    }

    #[test]
    fn a_task_without_ranges_is_refused_because_its_checkpoint_would_mean_nothing() {
        let info = StreamBackupTaskInfo::default();
        assert!(accept(&task(everything(), info.clone())).is_ok());
        let refused = accept(&task(Vec::new(), info)).unwrap_err();
        assert!(refused.what.contains("no key ranges"));
    }

    #[test]
    fn a_task_that_asks_for_encryption_is_refused_and_an_empty_key_asks_for_none() {
        use stream_backup_task_security_config::Encryption;
        let with_key = |key: &'static [u8]| StreamBackupTaskInfo {
            security_config: Some(StreamBackupTaskSecurityConfig {
                encryption: Some(Encryption::PlaintextDataKey(CipherInfo {
                    cipher_key: Bytes::from_static(key),
                    ..CipherInfo::default()
                })),
            }),
            ..StreamBackupTaskInfo::default()
        };
        assert!(accept(&task(everything(), with_key(b""))).is_ok());
        let refused = accept(&task(everything(), with_key(b"0123456789abcdef"))).unwrap_err();
        assert!(refused.effect.contains("nothing is written"));
    }
}
