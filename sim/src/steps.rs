//! The steps of the world: what users do, what the network does, what breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pitr_env::Step;
use rand::Rng;

use crate::SimError;
use crate::bug::Bug;
use crate::calls::{Reply, Request};
use crate::oracle::Oracle;
use crate::source::Delivered;
use crate::store::Change;
use crate::world::{Weather, World};

const KEYS: u32 = 24;
/// Virtual time in which a calm world must bring the checkpoint up.
const PATIENCE: Duration = Duration::from_secs(300);

impl World {
    /// One step of chaos.
    pub(crate) fn chaos(&mut self) -> Result<(), SimError> {
        let open = self.store.open();
        match self.rng.random_range(0..1000) {
            0..140 => {
                let ts = self.tso();
                self.store.begin(ts);
            }
            140..300 => self.prewrite(),
            300..500 if open > 0 => {
                let index = self.rng_below(open);
                self.commit(index);
            }
            500..515 if open > 0 => {
                let index = self.rng_below(open);
                let changes = self.store.roll_back(index);
                self.tell(changes);
            }
            515..600 => self.resolve(),
            600..612 => {
                let key = self.key();
                let ended = self.store.split(&key);
                self.end(ended);
            }
            612..620 => {
                let index = self.rng_below(self.store.regions.len());
                let ended = self.store.merge(index);
                self.end(ended);
            }
            620..632 => self.reconnect(),
            632..640 => self.move_leader(),
            640..660 => self.weather = self.choose_weather(),
            660..664 => {
                let at = self.rng_below(self.processes.len());
                self.crash(at)?;
            }
            664..700 => self.clock.pass(Duration::from_millis(700)),
            _ => {}
        }
        for _ in 0..self.rng.random_range(0..12) {
            self.background()?;
        }
        self.subscribe();
        self.clock
            .pass(Duration::from_millis(self.rng.random_range(0..60)));
        Ok(())
    }

    /// The leader of a region moves to another store, or for a while to none.
    fn move_leader(&mut self) {
        let index = self.rng_below(self.store.regions.len());
        let to = self.rng.random_range(0..=self.processes.len() as u64);
        let region = &mut self.store.regions[index];
        let to = (to > 0).then_some(to);
        if region.leader != to {
            self.outcome.moves += 1;
            region.leader = to;
            let ended = region.sub.take();
            self.end(ended);
        }
    }

    /// Something moves in one of the processes: an event, a worker, a job, a call, a message of the
    /// coordinator, or the process itself.
    fn background(&mut self) -> Result<(), SimError> {
        let at = self.rng_below(self.processes.len());
        let workers = self.processes[at].spawner.workers();
        match self.rng.random_range(0..13) {
            0..3 => self.deliver(at),
            3..5 if workers > 0 => {
                let worker = self.rng_below(workers);
                for _ in 0..self.rng.random_range(1..6) {
                    if self.processes[at].spawner.step(worker) != Step::Worked {
                        break;
                    }
                }
            }
            5 => {
                self.processes[at].spawner.run_job();
            }
            6..9 => self.progress_call(at, false)?,
            9..11 => self.progress_call(at, true)?,
            11 => self.send_table(at),
            _ => self.ring(at),
        }
        let process = &self.processes[at];
        process.board.lock().told = process.source.claims();
        self.poll_process(at)
    }

    /// A flush table reaches those who listen, or is lost with a stream.
    fn send_table(&mut self, at: usize) {
        let Some(lines) = self.processes[at].board.lock().unsent.pop_front() else {
            return;
        };
        for process in &self.processes {
            let lost = !self.calm && self.rng.random_bool(0.2);
            let mut heard = process.heard.lock();
            if heard.leads && !lost {
                heard.lines.push_back(lines.clone());
            }
        }
    }

    /// PD's watch tells the checkpoint.
    fn ring(&mut self, at: usize) {
        if !self.weather.pd_away {
            self.processes[at].board.lock().global = self.oracle.global;
        }
    }

    /// A call takes its next step, or fails.
    fn progress_call(&mut self, at: usize, of_candidate: bool) -> Result<(), SimError> {
        let calls = self.processes[at].calls(of_candidate).clone();
        let waiting = calls.waiting();
        if waiting.is_empty() {
            return Ok(());
        }
        let id = waiting[self.rng_below(waiting.len())];
        let Some(request) = calls.request(id) else {
            return Ok(());
        };
        let luck = self.rng.random_range(0..100);
        let Weather {
            before,
            after,
            slow,
            pd_away,
        } = self.weather;
        let name = name_of(&request);
        if request.is_pd() && pd_away || luck < before {
            self.trace.note(format_args!("{}: {name} fails", at + 1));
            self.outcome.faults += 1;
            let reply = self.failure(&request);
            calls.answer(id, Some(reply));
        } else if luck < before + after {
            self.take_effect(at, of_candidate, id)?;
            self.trace
                .note(format_args!("{}: {name} fails after its effect", at + 1));
            self.outcome.faults += 1;
            calls.answer(id, Some(Reply::Failed));
        } else if luck < before + after + slow {
            self.take_effect(at, of_candidate, id)?;
        } else {
            self.take_effect(at, of_candidate, id)?;
            calls.answer(id, None);
        }
        Ok(())
    }

    /// The answer to a call that had no effect; a planted mistake takes it for a success.
    fn failure(&self, request: &Request) -> Reply {
        let Request::Put { path, .. } = request else {
            return Reply::Failed;
        };
        match self.bug {
            Some(Bug::LogErrorIgnored) if path.ends_with(".log") => Reply::Done,
            Some(Bug::MetaErrorIgnored) if path.ends_with(".meta") => Reply::Done,
            _ => Reply::Failed,
        }
    }

    fn deliver(&mut self, at: usize) {
        let Some((observer, _)) = self.processes[at].board.lock().running.clone() else {
            return;
        };
        let busy = self.processes[at].source.busy();
        if busy.is_empty() {
            return;
        }
        let sub = busy[self.rng_below(busy.len())];
        for _ in 0..self.rng.random_range(1..8) {
            match self.processes[at].source.deliver(sub, &observer) {
                Delivered::Taken => {}
                Delivered::Nothing => return,
                Delivered::Full => {
                    if !self.calm && self.rng.random_bool(0.1) {
                        // Regions are given back, newest first, and scanned again later.
                        let newest = self.processes[at].source.newest();
                        self.forget(at, newest);
                    }
                    return;
                }
            }
        }
    }

    fn forget(&mut self, at: usize, sub: Option<u64>) {
        for region in &mut self.store.regions {
            if sub.is_some() && region.sub == sub {
                region.sub = None;
            }
        }
        if let Some(sub) = sub {
            self.trace
                .note(format_args!("subscription {sub} is given back"));
            self.processes[at].source.end(sub, 0);
        }
    }

    fn reconnect(&mut self) {
        let index = self.rng_below(self.store.regions.len());
        let ended = self.store.regions[index].sub.take();
        self.end(ended);
    }

    /// Subscriptions end; a part of what is under way may be lost.
    fn end(&mut self, subs: impl IntoIterator<Item = u64>) {
        for sub in subs {
            let keep = [0, 1, 3, usize::MAX][self.rng_below(4)];
            self.trace.note(format_args!("subscription {sub} ends"));
            // Only one of them knows it.
            for process in &mut self.processes {
                process.source.end(sub, keep);
            }
        }
    }

    /// Each running process subscribes what its store leads.
    fn subscribe(&mut self) {
        for index in 0..self.store.regions.len() {
            let region = &self.store.regions[index];
            let process = self.processes.iter_mut();
            let leader = process.into_iter().find(|p| region.leader == Some(p.store));
            let Some(process) = leader else { continue };
            let Some((_, frontier)) = process.board.lock().running.clone() else {
                continue;
            };
            if region.sub.is_some() || self.rng.random_bool(0.5) {
                continue;
            }
            let meta = region.meta.clone();
            let mut from = frontier.min_over(&meta.range);
            if self.bug == Some(Bug::ScanFromResolved) {
                from = from.max(process.told.min_over(&meta.range));
            }
            let scan = match self.bug {
                Some(Bug::NoScan) => Vec::new(),
                _ => self.store.scan(&meta.range, from),
            };
            let sub = self.next_sub;
            self.next_sub += 1;
            self.trace.note(format_args!(
                "{}: subscription {sub} of region {} from {from}",
                process.store, meta.id
            ));
            process
                .source
                .subscribe(sub, &meta, from, scan, &mut self.rng);
            self.store.regions[index].sub = Some(sub);
        }
    }

    fn prewrite(&mut self) {
        let now = self.tso();
        let mut writes = BTreeMap::new();
        for _ in 0..self.rng.random_range(1..5) {
            let fill = self.rng.random_range(0..=255);
            let size = [0, 10, 255, 256, 900, 5000][self.rng.random_range(0..6)];
            let value = self.rng.random_bool(0.8);
            let value = value.then(|| Bytes::from(vec![fill; size]));
            writes.insert(self.key(), value);
        }
        let changes = self.store.prewrite(now, writes);
        self.tell(changes);
    }

    fn commit(&mut self, index: usize) {
        let now = self.tso();
        let asynchronous = self.rng.random_bool(0.3);
        let keys = self.rng.random_range(1..5);
        let (decided, changes) = self.store.commit(index, now, asynchronous, keys);
        self.oracle.decide(decided);
        self.tell(changes);
    }

    fn tell(&mut self, changes: Vec<Change>) {
        for change in changes {
            if let Some(sub) = self.store.sub_of(&change.key) {
                for process in &mut self.processes {
                    process.source.rows(sub, change.rows.clone(), &mut self.rng);
                }
            }
        }
    }

    fn resolve(&mut self) {
        let now = self.tso();
        for region in &self.store.regions {
            let Some(sub) = region.sub else { continue };
            let range = &region.meta.range;
            let ts = match self.bug {
                Some(Bug::LocksIgnored) => now,
                _ => self.store.resolved(range, now),
            };
            for process in &mut self.processes {
                process.source.resolved(sub, ts);
                if region.leader == Some(process.store) {
                    process.told.raise(range, ts);
                }
            }
        }
    }

    fn choose_weather(&mut self) -> Weather {
        let mut one_of = |choices: [u32; 4]| choices[self.rng.random_range(0..4)];
        Weather {
            before: one_of([0, 0, 10, 60]),
            after: one_of([0, 0, 10, 40]),
            slow: one_of([0, 0, 30, 80]),
            pd_away: one_of([0, 0, 0, 1]) == 1,
        }
    }

    fn key(&mut self) -> Vec<u8> {
        let first = [b'a', b'm', b't', 0xFD][self.rng.random_range(0..4)];
        let mut key = vec![first];
        if first == b't' {
            let table = 0x8000_0000_0000_0000u64 | self.rng.random_range(1..3);
            key.extend_from_slice(&table.to_be_bytes());
            key.extend_from_slice(b"_r");
        }
        key.extend_from_slice(self.rng.random_range(0..KEYS).to_string().as_bytes());
        key
    }

    fn rng_below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// Faults cease, all transactions end, each region has a leader: the checkpoint must come up at
    /// every store.
    pub(crate) fn settle(&mut self) -> Result<(), SimError> {
        self.weather = Weather::default();
        self.calm = true;
        self.trace.note(format_args!("calm"));
        for region in &mut self.store.regions {
            region.leader.get_or_insert(1);
        }
        while self.store.open() > 0 {
            self.commit(0);
        }
        let wanted = self.tso();
        let until = self.clock.ms() + PATIENCE.as_millis() as u64;
        let stores: Vec<u64> = self.processes.iter().map(|p| p.store).collect();
        let arrived = |oracle: &Oracle| {
            let all = stores.iter().all(|store| oracle.object(*store) >= wanted);
            all && oracle.storage == oracle.objects
        };
        while !arrived(&self.oracle) {
            if self.clock.ms() > until {
                let objects = &self.oracle.objects;
                return Err(SimError::Stuck(format!("{objects:?} stay below {wanted}")));
            }
            self.subscribe();
            self.resolve();
            for _ in 0..60 * stores.len() {
                self.background()?;
            }
            self.clock.pass(Duration::from_millis(200));
        }
        Ok(())
    }
}

pub(crate) fn name_of(request: &Request) -> String {
    match request {
        Request::Put { path, data, .. } => format!("put {path} of {} bytes", data.len()),
        Request::Get { path, .. } => format!("get {path}"),
        other => format!("{other:?}"),
    }
}
