//! A store itself: its engine, and what it shares with the other stores of the cluster: the write
//! lock, the largest read timestamp, the regions and their leaders.
//!
//! # One lock orders everything
//!
//! A real TiKV computes the commit ts of an async or one-phase commit while readers run, so it
//! needs in-memory locks that make such readers wait until the write is applied. Here a single
//! lock, [`Store::lock_writes`], covers the whole of "check, compute `max_ts + 1`, apply, tell
//! the observers", and a reader raises `max_ts` and takes its snapshot inside the same lock.
//! So a reader either came before (then the commit ts is above its read ts) or after (then its
//! snapshot has the write); there is no third case, and in-memory locks are unnecessary. The same
//! holds for a resolved ts: who raises `max_ts` to it under the lock can promise that no later
//! write commits at or below it, except for the locks that the store holds at that moment.
//!
//! Lock order: the write lock first, then (never the other way round) the region map and the
//! table of waiters. Called by the services of the store, by the change data service and by PD.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use pitr_format::key::data_key;
use pitr_format::{Class, Ts};
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::Region;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{EngineCf, EngineError};
use prost::Message;
use rocksdb::WriteBatch;

use super::change::{ApplyObserver, Modify, RegionChange};
use super::context::{RegionError, check_context};
use super::group::{Group, Member, Order};
use super::region::{RegionIds, RegionMap, RegionMapError, meta_key};
use super::snapshot::Snapshot;

/// Where a split takes the ids of its new regions from (PD).
pub trait IdAllocator: Send + Sync + 'static {
    /// `count` ids that were never given out before, for new regions cut from `region`; the error
    /// is a text for the client. May take seconds: never called inside the write lock.
    fn alloc(&self, region: &Region, count: usize) -> Result<Vec<RegionIds>, String>;
}

/// What the stores of a cluster are opened with.
pub struct StoreOptions {
    /// Ids of the stores.
    pub store_ids: Vec<u64>,
    /// Ids of the only region, used when the directories have none yet.
    pub first_region: RegionIds,
    /// Source of further ids.
    pub ids: Arc<dyn IdAllocator>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The kept regions make no sense.
    #[error("{path}: {source}")]
    Regions {
        /// Directory of the store.
        path: String,
        /// What is wrong.
        source: RegionMapError,
    },
    /// The data were made by another number of stores.
    #[error(
        "the data directory was made by {found} stores, not {wanted}; start with --stores {found}, or use another directory"
    )]
    Stores {
        /// Stores of the directory.
        found: usize,
        /// Stores asked for.
        wanted: usize,
    },
}

impl OpenError {
    /// Disk and damage: repeating does not help.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// See the module.
pub struct Store {
    pub(super) group: Arc<Group>,
    pub(super) member: Arc<Member>,
}

impl Store {
    /// Opens or creates the directories, one for each id of `options`, and gives the stores in that
    /// order. `max_ts` is zero: the owner has to call [`Store::raise_max_ts`] with PD's clock before
    /// the first request, so that a restart never computes a commit ts at or below a read that was
    /// answered before.
    pub fn open(dirs: &[&Path], options: StoreOptions) -> Result<Vec<Arc<Self>>, OpenError> {
        let group = Arc::new(Group::open(dirs, options)?);
        let store = |member: &Arc<Member>| {
            Arc::new(Store {
                group: group.clone(),
                member: member.clone(),
            })
        };
        Ok(group.members.iter().map(store).collect())
    }

    /// The engine, for those who write around transactions (import) or read everything (digests).
    pub fn engine(&self) -> &RocksEngine {
        &self.member.engine
    }

    /// Id of the store.
    pub fn store_id(&self) -> u64 {
        self.member.store_id
    }

    /// A restore switched to import mode or back. There is nothing to tune; it is counted, so
    /// that a test sees that it happened.
    pub fn note_import_mode(&self, import: bool) {
        tracing::info!(import, "import mode");
        let switches = &self.member.import_mode_switches;
        switches.fetch_add(1, Ordering::AcqRel);
    }

    /// How often import mode began or ended.
    pub fn import_mode_switches(&self) -> u64 {
        self.member.import_mode_switches.load(Ordering::Acquire)
    }

    /// The regions as they are now.
    pub fn regions(&self) -> Arc<RegionMap> {
        self.group.regions.read().clone()
    }

    /// Adds someone to tell about every write from now on.
    pub fn observe(&self, observer: Arc<dyn ApplyObserver>) {
        let _writes = self.lock_writes();
        self.member.observers.write().push(observer);
    }

    /// Waits for the write lock. Nothing changes the stores of the cluster while the guard lives.
    pub fn lock_writes(&self) -> WriteGuard<'_> {
        WriteGuard {
            store: self,
            order: self.group.order.lock(),
        }
    }

    /// Makes sure that no commit ts computed from now on is at or below `ts`.
    pub fn raise_max_ts(&self, ts: Ts) {
        self.lock_writes().raise_max_ts(ts);
    }

    /// The region that a request addresses, or the region error to answer.
    pub fn check_context(&self, context: Option<&Context>) -> Result<Arc<Region>, RegionError> {
        check_context(&self.group.regions.read(), self.store_id(), context)
    }

    pub(super) fn ids(&self) -> &dyn IdAllocator {
        &*self.group.ids
    }
}

/// The write lock, held.
pub struct WriteGuard<'s> {
    pub(super) store: &'s Store,
    order: MutexGuard<'s, Order>,
}

impl<'s> WriteGuard<'s> {
    /// The largest ts that anybody has read at.
    pub fn max_ts(&self) -> Ts {
        self.order.max_ts
    }

    /// Raises [`WriteGuard::max_ts`]; never lowers it. [`Ts::MAX`] means "the newest" and is no
    /// time, so it is ignored.
    pub fn raise_max_ts(&mut self, ts: Ts) {
        if ts != Ts::MAX && ts > self.order.max_ts {
            self.order.max_ts = ts;
        }
    }

    /// Everything that was applied so far. The snapshot outlives the guard.
    pub fn snapshot(&self) -> Snapshot<'s> {
        Snapshot::of(self.store.engine())
    }

    /// The regions; they cannot change while the guard lives.
    pub fn regions(&self) -> Arc<RegionMap> {
        self.store.regions()
    }

    /// Applies one command atomically, wakes those who wait for the locks it removes, and tells
    /// the observers.
    pub fn apply(
        &mut self,
        region_id: u64,
        mods: &[Modify],
        one_pc: bool,
    ) -> Result<(), EngineError> {
        self.write_everywhere(|engine, batch| {
            for modify in mods {
                match modify {
                    Modify::Put { cf, key, value } => {
                        batch.put_cf(engine.cf(*cf)?, data_key(key), value);
                    }
                    Modify::Delete { cf, key } => batch.delete_cf(engine.cf(*cf)?, data_key(key)),
                }
            }
            Ok(())
        })?;
        for modify in mods {
            if let Modify::Delete {
                cf: EngineCf::Lock,
                key,
            } = modify
            {
                self.store.group.waiters.wake(key);
            }
        }
        for member in self.store.group.up() {
            for observer in member.observers.read().iter() {
                observer.on_apply(region_id, mods, one_pc);
            }
        }
        Ok(())
    }

    /// Writes what `fill` makes to every running store as the next batch. Observers are not told.
    pub(crate) fn write_everywhere(
        &mut self,
        fill: impl Fn(&RocksEngine, &mut WriteBatch) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let group = &self.store.group;
        let numbered = group.members.len() > 1;
        self.order.applied += 1;
        for member in group.up() {
            let engine = &member.engine;
            let mut batch = WriteBatch::default();
            fill(engine, &mut batch)?;
            if numbered {
                member.number(&mut batch, self.order.applied)?;
            }
            let written = engine.db().write(batch);
            written.map_err(|e| engine.error("write", e))?;
        }
        Ok(())
    }

    /// Runs what changes the data of every running store by itself, as the next batch. The first store
    /// gets the number before, the others after it: of stores with the same number none lacks the
    /// change.
    pub(crate) fn around<R>(&mut self, change: impl FnOnce() -> R) -> Result<R, EngineError> {
        let group = &self.store.group;
        if group.members.len() == 1 {
            return Ok(change());
        }
        self.order.applied += 1;
        let mut members = group.up();
        if let Some(first) = members.next() {
            first.write(WriteBatch::default(), self.order.applied)?;
        }
        let done = change();
        for member in members {
            member.write(WriteBatch::default(), self.order.applied)?;
        }
        Ok(done)
    }

    /// Replaces a region by its parts, on disk and in the map, and tells the observers.
    pub(super) fn apply_split(
        &mut self,
        old: Arc<Region>,
        parts: Vec<Region>,
    ) -> Result<(), EngineError> {
        self.write_everywhere(|engine, batch| {
            let cf = engine.cf(EngineCf::Lock)?;
            for part in &parts {
                batch.put_cf(cf, meta_key(part.id), part.encode_to_vec());
            }
            Ok(())
        })?;
        self.publish(|regions| regions.with_split(&parts));
        self.tell(&RegionChange::Split {
            old: Region::clone(&old),
            new: parts,
        });
        Ok(())
    }

    /// Replaces the map of the regions.
    pub(super) fn publish(&mut self, change: impl FnOnce(&RegionMap) -> RegionMap) {
        let mut regions = self.store.group.regions.write();
        *regions = Arc::new(change(&regions));
    }

    /// Tells the observers of every store, also of one that is down, whose subscriptions have to end.
    pub(super) fn tell(&self, change: &RegionChange) {
        for member in &self.store.group.members {
            for observer in member.observers.read().iter() {
                observer.on_region_change(change);
            }
        }
    }
}
