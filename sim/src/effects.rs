//! What calls do to the world: to the archive, to PD with its election, and to other stores.

use bytes::Bytes;
use pitr_format::EncodedRange;

use crate::SimError;
use crate::bug::Bug;
use crate::calls::{Reply, Request};
use crate::coordinator::{LEASE_MS, Lines};
use crate::steps::name_of;
use crate::world::World;

impl World {
    /// A call of process `at`, or of its candidate, that had no effect yet has it now.
    pub(crate) fn take_effect(
        &mut self,
        at: usize,
        of_candidate: bool,
        id: u64,
    ) -> Result<(), SimError> {
        let calls = self.processes[at].calls(of_candidate).clone();
        let Some(request) = calls.without_effect(id) else {
            return Ok(());
        };
        self.trace
            .note(format_args!("{}: {}", at + 1, name_of(&request)));
        let reply = match request {
            Request::Put { path, data, new } => self.put(at, path, data, new)?,
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
            Request::SetStorage { ts, store } => {
                self.oracle.set_storage(store, ts)?;
                Reply::Done
            }
            Request::Poll(store) => Reply::Lines(self.poll(store)),
            election => self.election(election)?,
        };
        calls.had_effect(id, reply);
        Ok(())
    }

    fn put(&mut self, at: usize, path: String, data: Bytes, new: bool) -> Result<Reply, SimError> {
        if new && self.objects.contains_key(&path) {
            return Ok(Reply::Exists);
        }
        let held_back = &mut self.processes[at].held_back;
        if self.bug == Some(Bug::MetaBeforeLogs) && path.ends_with(".log") {
            held_back.push((path, data));
            return Ok(Reply::Done);
        }
        self.oracle.write(&path, &data, &self.objects)?;
        if path.ends_with(".meta") {
            self.objects.extend(held_back.drain(..));
        }
        self.objects.insert(path, data);
        Ok(Reply::Done)
    }

    /// PD's etcd, as far as the election goes: the first key that was created and lives leads.
    fn election(&mut self, request: Request) -> Result<Reply, SimError> {
        let now = self.clock.ms();
        self.candidates.retain(|_, lives_until| *lives_until > now);
        Ok(match request {
            Request::Stand => {
                self.revision += 1;
                self.candidates.insert(self.revision, now + LEASE_MS);
                Reply::Revision(self.revision)
            }
            Request::Beat(revision) => match self.candidates.get_mut(&revision) {
                Some(lives_until) => {
                    *lives_until = now + LEASE_MS;
                    Reply::Done
                }
                None => Reply::NotFound,
            },
            Request::RaiseGlobal { ts, revision } => {
                if !self.candidates.contains_key(&revision) {
                    return Ok(Reply::NotFound);
                }
                if self.candidates.keys().next() != Some(&revision) {
                    let what = format!("candidate {revision} writes, and another one leads");
                    return Err(SimError::Violation(what));
                }
                self.outcome.leaders += u64::from(revision != self.last_leader);
                self.last_leader = revision;
                Reply::Ts(self.oracle.raise_global(ts)?)
            }
            _ => Reply::Leader(self.candidates.keys().next().copied()),
        })
    }

    /// What a store answers for the regions that it leads now.
    fn poll(&self, store: u64) -> Lines {
        let Some(process) = self.processes.iter().find(|p| p.store == store) else {
            return Lines::new();
        };
        let table = &process.board.lock().table;
        let led = self
            .store
            .regions
            .iter()
            .filter(|r| r.leader == Some(store));
        let mut lines: Vec<(EncodedRange, _)> = Vec::new();
        for region in led {
            let meta = &region.meta;
            let any = self.bug == Some(Bug::VersionIgnored);
            let same = |version: u64| any || version == meta.version;
            let known = table
                .iter()
                .find(|l| l.region == meta.id && same(l.version));
            lines.extend(known.map(|line| (meta.range.clone(), line.ts)));
        }
        lines
    }
}
