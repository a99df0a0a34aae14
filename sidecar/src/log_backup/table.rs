//! The flush tables of the tasks, and who hears of them.
//!
//! A table is replaced as a whole after each flush (tikv/tikv
//! `components/backup-stream/src/checkpoint_manager.rs`): a region that was not tailed since is
//! not known, so that its new leader is asked. Each line is true for ever, for one registration of
//! one task: a task that is registered again begins with an empty table, unlike in TiKV, which goes
//! on telling of the old one. Lines are cut to the task's ranges, so that a region which two tasks
//! share tells of each only what that one has made durable.
//!
//! A subscriber holds a place in the order of the tables and no queue: however slow it is, it costs
//! the one table that it is being sent. TiKV drops what has no room in a queue of 1024 messages; here
//! a table that a newer one of its task has replaced meanwhile is skipped. Either way the
//! subscriber's polls tell the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use pitr_format::{EncodedRange, Ts};
use pitr_observer::{FlushTable, TaskRanges};
use pitr_proto::errorpb;
use pitr_proto::logbackup::{
    FlushEvent, RegionCheckpoint, RegionIdentity, SubscribeFlushEventResponse,
};
use tokio::sync::watch;

/// Events in one message.
const CHUNK: usize = 1024;

/// The tables of all loaded tasks.
#[derive(Debug, Default)]
pub struct FlushTables {
    state: Mutex<State>,
    /// Number of the newest table.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    tasks: BTreeMap<String, TaskTable>,
    /// Number of the newest table.
    newest: u64,
}

#[derive(Debug)]
struct TaskTable {
    /// Revision of the registration.
    registered: i64,
    ranges: TaskRanges,
    known: BTreeMap<u64, Known>,
    /// Place of this table in the order of all.
    number: u64,
    events: Arc<Vec<FlushEvent>>,
}

/// A region, in its newest version.
#[derive(Clone, Debug)]
struct Known {
    version: u64,
    range: EncodedRange,
    ts: Ts,
}

/// One who hears of flushes: every table as a whole, as it comes.
#[derive(Debug)]
pub struct Subscription {
    tables: Arc<FlushTables>,
    newest: watch::Receiver<u64>,
    /// The one registration that it wants to hear of; all without.
    registered: Option<i64>,
    /// Number of the last table that it was given.
    given: u64,
    /// The events of that table, and how many of them it was sent.
    events: Arc<Vec<FlushEvent>>,
    sent: usize,
}

impl FlushTables {
    /// A task is loaded. What is known of this registration stays.
    pub fn load(&self, task: &str, registered: i64, ranges: &[EncodedRange]) {
        let mut state = self.state.lock();
        let same = state
            .tasks
            .get(task)
            .is_some_and(|t| t.registered == registered);
        if !same {
            let table = TaskTable {
                registered,
                ranges: TaskRanges::new(ranges.iter().cloned()),
                known: BTreeMap::new(),
                number: 0,
                events: Arc::default(),
            };
            state.tasks.insert(task.to_owned(), table);
        }
    }

    /// A task is gone.
    pub fn forget(&self, task: &str) {
        self.state.lock().tasks.remove(task);
    }

    /// A flush became durable: its table replaces the one before and is told to all who listen.
    pub fn replace(&self, task: &str, registered: i64, table: &FlushTable) {
        let mut state = self.state.lock();
        let State { tasks, newest } = &mut *state;
        let Some(own) = tasks.get_mut(task).filter(|t| t.registered == registered) else {
            return;
        };
        *newest += 1;
        own.take(table, *newest);
        self.newest.send_replace(*newest);
    }

    /// Everything that is known now, and then every table. With `registered`, only of that
    /// registration of a task.
    pub fn subscribe(self: &Arc<Self>, registered: Option<i64>) -> Subscription {
        Subscription {
            tables: Arc::clone(self),
            newest: self.newest.subscribe(),
            registered,
            given: 0,
            events: Arc::default(),
            sent: 0,
        }
    }

    /// The oldest table behind number `given`: its number and its events.
    fn after(&self, given: u64, registered: Option<i64>) -> Option<(u64, Arc<Vec<FlushEvent>>)> {
        let state = self.state.lock();
        let tables = state.tasks.values().filter(|t| t.is(registered));
        let next = tables
            .filter(|t| t.number > given)
            .min_by_key(|t| t.number)?;
        Some((next.number, Arc::clone(&next.events)))
    }

    /// The durable ts of each region that is asked for, in the form of TiKV's answers. A region
    /// that belongs to several tasks has the smallest of theirs.
    pub fn last_flush(
        &self,
        asked: Vec<RegionIdentity>,
        registered: Option<i64>,
    ) -> Vec<RegionCheckpoint> {
        let state = self.state.lock();
        let asked: BTreeSet<(u64, u64)> = asked.iter().map(|r| (r.id, r.epoch_version)).collect();
        let tables: Vec<&TaskTable> = state.tasks.values().filter(|t| t.is(registered)).collect();
        asked
            .into_iter()
            .map(|(id, version)| match known(&tables, id) {
                None => unknown(id, version),
                Some(known) if known.version != version => other_version(id, version, &known),
                Some(known) => RegionCheckpoint {
                    err: None,
                    region: identity(id, version),
                    checkpoint: known.ts.get(),
                },
            })
            .collect()
    }
}

impl TaskTable {
    fn is(&self, registered: Option<i64>) -> bool {
        registered.is_none_or(|wanted| wanted == self.registered)
    }

    fn take(&mut self, table: &FlushTable, number: u64) {
        let mut events = Vec::new();
        self.known.clear();
        for line in &table.regions {
            let region = &line.region;
            for part in self.ranges.intersect(&region.range) {
                events.push(FlushEvent {
                    start_key: part.start,
                    end_key: part.end,
                    checkpoint: line.ts.get(),
                });
            }
            let known = Known {
                version: region.version,
                range: region.range.clone(),
                ts: line.ts,
            };
            // Lines ascend: the newest version of a region comes last.
            self.known.insert(region.id, known);
        }
        self.number = number;
        self.events = Arc::new(events);
    }
}

impl Subscription {
    /// The next message, as soon as there is one.
    pub async fn next(&mut self) -> SubscribeFlushEventResponse {
        loop {
            self.newest.mark_unchanged();
            if let Some(message) = self.pending() {
                return message;
            }
            // The sender is one of the tables, which live as long as this.
            let _ = self.newest.changed().await;
        }
    }

    /// The next message that is there already.
    fn pending(&mut self) -> Option<SubscribeFlushEventResponse> {
        while self.sent == self.events.len() {
            let (number, events) = self.tables.after(self.given, self.registered)?;
            (self.given, self.events, self.sent) = (number, events, 0);
        }
        let chunk = self.events[self.sent..].chunks(CHUNK).next()?.to_vec();
        self.sent += chunk.len();
        Some(SubscribeFlushEventResponse { events: chunk })
    }
}

/// What all tables together say of a region: nothing unless every task that has keys there does.
fn known(tables: &[&TaskTable], id: u64) -> Option<Known> {
    let mut least: Option<Known> = None;
    for table in tables {
        if let Some(known) = table.known.get(&id)
            && least.as_ref().is_none_or(|least| known.ts < least.ts)
        {
            least = Some(known.clone());
        }
    }
    let least = least?;
    let silent = |table: &&TaskTable| {
        let speaks = table
            .known
            .get(&id)
            .is_some_and(|k| k.version == least.version);
        !speaks && table.ranges.intersect(&least.range).next().is_some()
    };
    (!tables.iter().any(silent)).then_some(least)
}

#[expect(clippy::unnecessary_wraps, reason = "the form of the field")]
fn identity(id: u64, epoch_version: u64) -> Option<RegionIdentity> {
    Some(RegionIdentity { id, epoch_version })
}

fn unknown(id: u64, version: u64) -> RegionCheckpoint {
    let message = format!(
        "the region {id} isn't in the region_manager of log backup, maybe not leader or not \
         flushed yet."
    );
    let not_leader = errorpb::NotLeader {
        region_id: id,
        leader: None,
    };
    RegionCheckpoint {
        err: Some(errorpb::Error {
            message,
            not_leader: Some(not_leader),
            ..errorpb::Error::default()
        }),
        region: identity(id, version),
        checkpoint: 0,
    }
}

fn other_version(id: u64, version: u64, known: &Known) -> RegionCheckpoint {
    let recorded = known.version;
    RegionCheckpoint {
        err: Some(errorpb::Error {
            message: format!(
                "the region {id} has recorded version {recorded}, but you sent {version}"
            ),
            epoch_not_match: Some(errorpb::EpochNotMatch::default()),
            ..errorpb::Error::default()
        }),
        region: identity(id, recorded),
        checkpoint: 0,
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
