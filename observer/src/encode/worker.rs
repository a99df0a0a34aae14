//! The workers: take closed slices from one bounded queue, compress them, spill under pressure.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};
use pitr_env::{Spawn, Step, Worker};
use pitr_format::slice::SliceBuildError;
use tokio::sync::{Notify, oneshot};

use super::stored::{Closed, StoredSlice};
use super::tools::Tools;
use crate::pressure::Pressure;

/// Jobs that wait at most, per worker.
const QUEUE: usize = 64;
/// A worker drops its tools after this time without work.
const REST: Duration = Duration::from_secs(1);

/// What became of a closed slice.
pub(crate) type EncodeResult = Result<StoredSlice, SliceBuildError>;

enum Job {
    Encode(Closed, oneshot::Sender<EncodeResult>),
    Relieve,
}

/// The way to the workers; they end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Encoders {
    queue: Sender<Job>,
    room: Arc<Notify>,
    pressure: Arc<Pressure>,
}

impl Encoders {
    /// Starts `count` workers.
    pub fn start(
        count: usize,
        spawner: &dyn Spawn,
        pressure: Arc<Pressure>,
    ) -> std::io::Result<Self> {
        let count = count.max(1);
        let (queue, inbox) = bounded(count * QUEUE);
        let room = Arc::new(Notify::new());
        for index in 0..count {
            let worker = EncodeWorker {
                inbox: inbox.clone(),
                room: Arc::clone(&room),
                pressure: Arc::clone(&pressure),
                tools: Tools::new(Arc::clone(pressure.budget())),
            };
            spawner.worker(format!("backup-encode-{index}"), Box::new(worker))?;
        }
        Ok(Encoders {
            queue,
            room,
            pressure,
        })
    }

    /// Hands a slice over without waiting; it comes back if the queue is full.
    #[expect(
        clippy::result_large_err,
        reason = "the slice comes back as it is; no allocation for a full queue"
    )]
    pub fn try_submit(&self, slice: Closed) -> Result<oneshot::Receiver<EncodeResult>, Closed> {
        let (reply, result) = oneshot::channel();
        match self.queue.try_send(Job::Encode(slice, reply)) {
            Ok(()) => Ok(result),
            Err(TrySendError::Full(Job::Encode(slice, _))) => Err(slice),
            // Workers end after all handles only; whoever waits for the result sees it lost.
            Err(_) => Ok(result),
        }
    }

    /// Hands a slice over and waits for a place in the queue.
    pub async fn submit(&self, slice: Closed) -> oneshot::Receiver<EncodeResult> {
        let mut slice = slice;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_submit(slice) {
                Ok(result) => return result,
                Err(back) => slice = back,
            }
            room.await;
        }
    }

    /// Lets a worker spill what is stored in memory. Nothing happens if the queue is full: then
    /// the workers look for themselves, after each slice.
    pub fn relieve(&self) {
        let _ = self.queue.try_send(Job::Relieve);
    }

    /// When the memory is short.
    pub fn pressure(&self) -> &Pressure {
        &self.pressure
    }
}

struct EncodeWorker {
    inbox: Receiver<Job>,
    room: Arc<Notify>,
    pressure: Arc<Pressure>,
    tools: Tools,
}

impl EncodeWorker {
    fn handle(&mut self, job: Job) {
        self.room.notify_waiters();
        if let Job::Encode(slice, reply) = job {
            let stored = slice.store(&mut self.tools);
            if let Ok(stored) = &stored {
                self.pressure.stored(&stored.body);
            }
            // Nobody waits any more: then the rows are nobody's.
            let _ = reply.send(stored);
        }
        self.pressure.relieve();
    }
}

impl Worker for EncodeWorker {
    fn step(&mut self) -> Step {
        match self.inbox.try_recv() {
            Ok(job) => {
                self.handle(job);
                Step::Worked
            }
            Err(TryRecvError::Empty) => Step::Idle,
            Err(TryRecvError::Disconnected) => Step::Over,
        }
    }

    fn run(mut self: Box<Self>) {
        loop {
            match self.inbox.recv_timeout(REST) {
                Ok(job) => self.handle(job),
                Err(RecvTimeoutError::Timeout) => {
                    self.tools.rest();
                    match self.inbox.recv() {
                        Ok(job) => self.handle(job),
                        Err(_) => return,
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
