//! The worker around a shard: its queue, its memory, and what it does when memory is short.
//!
//! What lies in open slices is reserved to the byte: a reservation comes in with each event, grows
//! with the buffers if the budget has room, and goes on with the slices. Without room the buffers
//! are in debt until there is; the door ([`crate::ObserverHandle::try_send`]) stays closed
//! meanwhile, so the debt is at most what the queue held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::TryRecvError;
use pitr_budget::Reservation;
use pitr_env::{Step, Worker};
use tokio::sync::oneshot;

use crate::encode::{Closed, EncodeResult, Encoders};
use crate::env::Env;
use crate::shard::{ShardCore, ShardSeal};
use crate::shard_queue::Inbox;
use crate::source::SourceEvent;

/// What travels to a shard.
pub(crate) enum ShardMessage {
    /// An event with the bytes reserved for it.
    Event(SourceEvent, Reservation),
    /// Seal and answer.
    Seal(oneshot::Sender<ShardSeal>),
    /// An event was refused for lack of memory.
    Relieve,
}

/// What the shards of an observer and its door share.
#[derive(Default)]
pub(crate) struct Gauges {
    /// Plaintext bytes since the last seal.
    pub plain_bytes: AtomicU64,
    /// Whether an event was refused for lack of memory since the last seal.
    pub refused: AtomicBool,
    /// Whether the shards were asked to relieve and did not yet.
    pub relief_asked: AtomicBool,
}

/// A shard with its queue. Over when all senders are gone.
pub(crate) struct ShardWorker {
    core: ShardCore,
    inbox: Inbox,
    encoders: Encoders,
    gauges: Arc<Gauges>,
    /// For what lies in open slices.
    held: Reservation,
    /// Closed slices that wait for a place in the encoders' queue.
    backlog: VecDeque<Closed>,
    /// Results to come, in the order in which the slices were closed.
    early: Vec<oneshot::Receiver<EncodeResult>>,
    /// Bytes in open slices at which they are closed if memory is short.
    relieve_from: u64,
}

impl ShardWorker {
    pub fn new(core: ShardCore, inbox: Inbox, encoders: Encoders, gauges: Arc<Gauges>) -> Self {
        let held = core.env().budget.nothing();
        let mut worker = ShardWorker {
            core,
            inbox,
            encoders,
            gauges,
            held,
            backlog: VecDeque::new(),
            early: Vec::new(),
            relieve_from: 0,
        };
        worker.relieve_from = worker.worth_relieving();
        worker
    }

    fn handle(&mut self, message: ShardMessage) -> Step {
        match message {
            ShardMessage::Event(event, reservation) => self.event(event, reservation),
            ShardMessage::Seal(reply) => {
                if self.seal(reply) == Step::Over {
                    return Step::Over;
                }
            }
            ShardMessage::Relieve => {
                self.gauges.relief_asked.store(false, Ordering::Release);
                if self.core.held_bytes() >= self.worth_relieving() {
                    self.relieve();
                }
            }
        }
        let Env {
            metrics, budget, ..
        } = self.core.env();
        metrics.heap_memory.set(budget.used() as i64);
        metrics.memory_peak.set(budget.peak() as i64);
        Step::Worked
    }

    fn event(&mut self, event: SourceEvent, reservation: Reservation) {
        let before = self.core.plain_bytes();
        self.held.absorb(reservation);
        self.core.apply(event);
        let more = self.core.plain_bytes() - before;
        self.gauges.plain_bytes.fetch_add(more, Ordering::AcqRel);
        if self.core.held_bytes() >= self.relieve_from && self.encoders.pressure().is_high() {
            self.relieve();
        }
        self.submit();
        self.balance();
    }

    /// Slices below this are not worth closing, however short memory is: their descriptions
    /// would take what their rows give back.
    fn worth_relieving(&self) -> u64 {
        self.core.env().budget.limit() / 64
    }

    /// Closes the larger half of what is open, and lets the encoders spill.
    fn relieve(&mut self) {
        self.core.slices().close_larger_half();
        self.submit();
        self.balance();
        self.relieve_from = self.worth_relieving().max(self.core.held_bytes() * 2);
        self.encoders.relieve();
    }

    /// Hands closed slices to the encoders, as far as these have room.
    fn submit(&mut self) {
        if self.core.slices().has_closed() {
            for (slice, bytes) in self.core.slices().take_closed() {
                let held = Some(self.held.split(bytes));
                self.backlog.push_back(Closed { slice, held });
            }
        }
        while let Some(slice) = self.backlog.pop_front() {
            match self.encoders.try_submit(slice) {
                Ok(result) => self.early.push(result),
                Err(back) => {
                    self.backlog.push_front(back);
                    return;
                }
            }
        }
    }

    fn balance(&mut self) {
        let needed = self.core.held_bytes();
        let have = self.held.bytes();
        if needed > have {
            // Without room the door is closed; the next event tries again.
            let _in_debt = !self.held.try_grow(needed - have);
        } else {
            self.held.shrink_to(needed);
        }
    }

    fn seal(&mut self, reply: oneshot::Sender<ShardSeal>) -> Step {
        let plain = self.core.plain_bytes();
        let env = self.core.env();
        let (clock, pause) = (Arc::clone(&env.clock), env.metrics.seal_pause.clone());
        let began = clock.now();
        let mut seal = self.core.seal();
        seal.reservation = Some(self.held.take());
        seal.early = std::mem::take(&mut self.early);
        seal.backlog = std::mem::take(&mut self.backlog);
        let taken = reply.send(seal);
        pause.observe(clock.now().saturating_sub(began).as_secs_f64());
        self.gauges.plain_bytes.fetch_sub(plain, Ordering::AcqRel);
        self.relieve_from = self.worth_relieving();
        if taken.is_err() {
            // Whoever asked is gone and the payload with it: going on would leave a hole.
            tracing::error!("a seal was asked for and not taken; the shard stops");
            return Step::Over;
        }
        Step::Worked
    }
}

impl Worker for ShardWorker {
    fn step(&mut self) -> Step {
        match self.inbox.try_recv() {
            Ok(message) => self.handle(message),
            Err(TryRecvError::Empty) => Step::Idle,
            Err(TryRecvError::Disconnected) => Step::Over,
        }
    }

    fn run(mut self: Box<Self>) {
        while let Ok(message) = self.inbox.recv() {
            if self.handle(message) == Step::Over {
                return;
            }
        }
    }
}
