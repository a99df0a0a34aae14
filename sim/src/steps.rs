//! The steps of the world: what users do, what the network does, what breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pitr_env::Step;
use rand::Rng;

use crate::SimError;
use crate::bug::Bug;
use crate::calls::{Reply, Request};
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
            632..640 => {
                let index = self.rng_below(self.store.regions.len());
                let leaves = self.rng.random_bool(0.3);
                let region = &mut self.store.regions[index];
                region.here = !(region.here && leaves);
                let ended = region.sub.take().filter(|_| !region.here);
                self.end(ended);
            }
            640..660 => self.weather = self.choose_weather(),
            660..664 => self.crash()?,
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

    /// Something moves: an event, a worker, a job, a call, or the node itself.
    fn background(&mut self) -> Result<(), SimError> {
        match self.rng.random_range(0..10) {
            0..3 => self.deliver(),
            3..5 if self.spawner.workers() > 0 => {
                let worker = self.rng_below(self.spawner.workers());
                for _ in 0..self.rng.random_range(1..6) {
                    if self.spawner.step(worker) != Step::Worked {
                        break;
                    }
                }
            }
            5 => {
                self.spawner.run_job();
            }
            6..9 => self.progress_call()?,
            _ => {}
        }
        self.board.lock().told = self.source.claims();
        self.poll_node()
    }

    /// A call takes its next step, or fails.
    fn progress_call(&mut self) -> Result<(), SimError> {
        let waiting = self.calls.waiting();
        if waiting.is_empty() {
            return Ok(());
        }
        let id = waiting[self.rng_below(waiting.len())];
        let Some(request) = self.calls.request(id) else {
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
            self.trace.note(format_args!("{name} fails"));
            self.outcome.faults += 1;
            let reply = self.failure(&request);
            self.calls.answer(id, Some(reply));
        } else if luck < before + after {
            self.take_effect(id)?;
            self.trace
                .note(format_args!("{name} fails after its effect"));
            self.outcome.faults += 1;
            self.calls.answer(id, Some(Reply::Failed));
        } else if luck < before + after + slow {
            self.take_effect(id)?;
        } else {
            self.take_effect(id)?;
            self.calls.answer(id, None);
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

    /// A call that had no effect yet has it now.
    pub(crate) fn take_effect(&mut self, id: u64) -> Result<(), SimError> {
        let Some(request) = self.calls.without_effect(id) else {
            return Ok(());
        };
        self.trace.note(format_args!("{}", name_of(&request)));
        let reply = match request {
            Request::Put { path, data, new } => self.put(path, data, new)?,
            Request::Get { path, range } => match (self.objects.get(&path), range) {
                (None, _) => Reply::NotFound,
                (Some(data), None) => Reply::Data(data.clone()),
                (Some(data), Some(range)) => {
                    let end = (range.end as usize).min(data.len());
                    Reply::Data(data.slice((range.start as usize).min(end)..end))
                }
            },
            Request::List(prefix) => {
                let inside = self.objects.range(prefix.clone()..);
                let inside = inside.take_while(|(path, _)| path.starts_with(&prefix));
                Reply::Listed(inside.map(|(p, d)| (p.clone(), d.len() as u64)).collect())
            }
            Request::Delete(path) => {
                self.objects.remove(&path);
                Reply::Done
            }
            Request::Tso => Reply::Ts(self.tso()),
            Request::LoadGlobal => Reply::Global(self.oracle.global),
            Request::RaiseGlobal(ts) => Reply::Ts(self.oracle.raise_global(ts)?),
            Request::SetStorage(ts) => {
                self.oracle.set_storage(ts)?;
                Reply::Done
            }
        };
        self.calls.had_effect(id, reply);
        Ok(())
    }

    fn put(&mut self, path: String, data: Bytes, new: bool) -> Result<Reply, SimError> {
        if new && self.objects.contains_key(&path) {
            return Ok(Reply::Exists);
        }
        if self.bug == Some(Bug::MetaBeforeLogs) && path.ends_with(".log") {
            self.held_back.push((path, data));
            return Ok(Reply::Done);
        }
        self.oracle.write(&path, &data, &self.objects)?;
        let is_meta = path.ends_with(".meta");
        self.objects.insert(path, data);
        if is_meta {
            self.objects.extend(self.held_back.drain(..));
        }
        Ok(Reply::Done)
    }

    fn deliver(&mut self) {
        let Some((observer, _)) = self.board.lock().running.clone() else {
            return;
        };
        let busy = self.source.busy();
        if busy.is_empty() {
            return;
        }
        let sub = busy[self.rng_below(busy.len())];
        for _ in 0..self.rng.random_range(1..8) {
            match self.source.deliver(sub, &observer) {
                Delivered::Taken => {}
                Delivered::Nothing => return,
                Delivered::Full => {
                    if !self.calm && self.rng.random_bool(0.1) {
                        // Regions are given back, newest first, and scanned again later.
                        let newest = self.source.newest();
                        self.forget(newest);
                    }
                    return;
                }
            }
        }
    }

    fn forget(&mut self, sub: Option<u64>) {
        for region in &mut self.store.regions {
            if region.sub == sub {
                region.sub = None;
            }
        }
        if let Some(sub) = sub {
            self.trace
                .note(format_args!("subscription {sub} is given back"));
            self.source.end(sub, 0);
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
            self.source.end(sub, keep);
        }
    }

    fn subscribe(&mut self) {
        let Some((_, frontier)) = self.board.lock().running.clone() else {
            return;
        };
        for index in 0..self.store.regions.len() {
            let region = &self.store.regions[index];
            if region.sub.is_some() || !region.here || self.rng.random_bool(0.5) {
                continue;
            }
            let meta = region.meta.clone();
            let mut from = frontier.min_over(&meta.range);
            if self.bug == Some(Bug::ScanFromResolved) {
                from = from.max(self.told.min_over(&meta.range));
            }
            let scan = match self.bug {
                Some(Bug::NoScan) => Vec::new(),
                _ => self.store.scan(&meta.range, from),
            };
            let sub = self.next_sub;
            self.next_sub += 1;
            self.trace.note(format_args!(
                "subscription {sub} of region {} from {from}",
                meta.id
            ));
            self.source.subscribe(sub, &meta, from, scan, &mut self.rng);
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
                self.source.rows(sub, change.rows, &mut self.rng);
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
            self.source.resolved(sub, ts);
            self.told.raise(range, ts);
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

    /// Faults cease, all transactions end, all regions are here: the checkpoint must come up.
    pub(crate) fn settle(&mut self) -> Result<(), SimError> {
        self.weather = Weather::default();
        self.calm = true;
        self.trace.note(format_args!("calm"));
        for region in &mut self.store.regions {
            region.here = true;
        }
        while self.store.open() > 0 {
            self.commit(0);
        }
        let wanted = self.tso();
        let until = self.clock.ms() + PATIENCE.as_millis() as u64;
        while self.oracle.object < wanted || self.oracle.storage != self.oracle.object {
            if self.clock.ms() > until {
                let object = self.oracle.object;
                return Err(SimError::Stuck(format!("{object} stays below {wanted}")));
            }
            self.subscribe();
            self.resolve();
            for _ in 0..60 {
                self.background()?;
            }
            self.clock.pass(Duration::from_millis(200));
        }
        Ok(())
    }
}

fn name_of(request: &Request) -> String {
    match request {
        Request::Put { path, data, .. } => format!("put {path} of {} bytes", data.len()),
        Request::Get { path, .. } => format!("get {path}"),
        other => format!("{other:?}"),
    }
}
