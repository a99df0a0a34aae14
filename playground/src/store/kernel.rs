//! The store itself: the engine, the write lock, the largest read timestamp, the regions and
//! those who watch writes.
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
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use pitr_format::key::data_key;
use pitr_format::{Class, Ts};
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::Region;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError};
use prost::Message;
use rocksdb::WriteBatch;

use super::change::{ApplyObserver, Modify, RegionChange};
use super::context::{RegionError, check_context};
use super::region::{
    RegionIds, RegionMap, RegionMapError, decode_region, first_region, meta_key, meta_range,
};
use super::snapshot::Snapshot;
use super::wait::WaitTable;

/// Where a split takes the ids of its new regions from (PD).
pub trait IdAllocator: Send + Sync + 'static {
    /// `count` ids that were never given out before, for new regions cut from `region`; the error
    /// is a text for the client. May take seconds: never called inside the write lock.
    fn alloc(&self, region: &Region, count: usize) -> Result<Vec<RegionIds>, String>;
}

/// What a store is opened with.
pub struct StoreOptions {
    /// Id of the store.
    pub store_id: u64,
    /// Ids of the only region, used when the directory has none yet.
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
}

impl OpenError {
    /// Disk and damage: repeating does not help.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// See the module.
pub struct Store {
    engine: RocksEngine,
    store_id: u64,
    order: Mutex<Order>,
    regions: RwLock<Arc<RegionMap>>,
    observers: RwLock<Vec<Arc<dyn ApplyObserver>>>,
    ids: Arc<dyn IdAllocator>,
    import_mode_switches: AtomicU64,
    pub(super) waiters: WaitTable,
}

/// What the write lock protects besides the order of writes.
struct Order {
    max_ts: Ts,
}

impl Store {
    /// Opens or creates the directory. `max_ts` is zero: the owner has to call
    /// [`Store::raise_max_ts`] with PD's clock before the first request, so that a restart never
    /// computes a commit ts at or below a read that was answered before.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Arc<Self>, OpenError> {
        let engine = RocksEngine::open(dir)?;
        let regions = load_regions(&engine, &options).map_err(|e| match e {
            LoadError::Engine(e) => OpenError::Engine(e),
            LoadError::Map(source) => OpenError::Regions {
                path: dir.display().to_string(),
                source,
            },
        })?;
        Ok(Arc::new(Store {
            engine,
            store_id: options.store_id,
            order: Mutex::new(Order { max_ts: Ts::ZERO }),
            regions: RwLock::new(Arc::new(regions)),
            observers: RwLock::new(Vec::new()),
            ids: options.ids,
            import_mode_switches: AtomicU64::new(0),
            waiters: WaitTable::default(),
        }))
    }

    /// The engine, for those who write around transactions (import) or read everything (digests).
    pub fn engine(&self) -> &RocksEngine {
        &self.engine
    }

    /// Id of the store.
    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    /// A restore switched to import mode or back. There is nothing to tune; it is counted, so
    /// that a test sees that it happened.
    pub fn note_import_mode(&self, import: bool) {
        tracing::info!(import, "import mode");
        self.import_mode_switches.fetch_add(1, Ordering::AcqRel);
    }

    /// How often import mode began or ended.
    pub fn import_mode_switches(&self) -> u64 {
        self.import_mode_switches.load(Ordering::Acquire)
    }

    /// The regions as they are now.
    pub fn regions(&self) -> Arc<RegionMap> {
        self.regions.read().clone()
    }

    /// Adds someone to tell about every write from now on.
    pub fn observe(&self, observer: Arc<dyn ApplyObserver>) {
        let _writes = self.lock_writes();
        self.observers.write().push(observer);
    }

    /// Waits for the write lock. Nothing changes the store while the guard lives.
    pub fn lock_writes(&self) -> WriteGuard<'_> {
        WriteGuard {
            store: self,
            order: self.order.lock(),
        }
    }

    /// Makes sure that no commit ts computed from now on is at or below `ts`.
    pub fn raise_max_ts(&self, ts: Ts) {
        self.lock_writes().raise_max_ts(ts);
    }

    /// The region that a request addresses, or the region error to answer.
    pub fn check_context(&self, context: Option<&Context>) -> Result<Arc<Region>, RegionError> {
        check_context(&self.regions.read(), self.store_id, context)
    }

    pub(super) fn ids(&self) -> &dyn IdAllocator {
        &*self.ids
    }
}

/// The write lock, held.
pub struct WriteGuard<'s> {
    store: &'s Store,
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
        Snapshot::of(&self.store.engine)
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
        let engine = &self.store.engine;
        let mut batch = WriteBatch::default();
        for modify in mods {
            match modify {
                Modify::Put { cf, key, value } => {
                    batch.put_cf(engine.cf(*cf)?, data_key(key), value);
                }
                Modify::Delete { cf, key } => batch.delete_cf(engine.cf(*cf)?, data_key(key)),
            }
        }
        engine
            .db()
            .write(batch)
            .map_err(|e| engine.error("write", e))?;
        for modify in mods {
            if let Modify::Delete {
                cf: EngineCf::Lock,
                key,
            } = modify
            {
                self.store.waiters.wake(key);
            }
        }
        for observer in self.store.observers.read().iter() {
            observer.on_apply(region_id, mods, one_pc);
        }
        Ok(())
    }

    /// Replaces a region by its parts, on disk and in the map, and tells the observers.
    pub(super) fn apply_split(
        &mut self,
        old: Arc<Region>,
        parts: Vec<Region>,
    ) -> Result<(), EngineError> {
        let engine = &self.store.engine;
        let mut batch = WriteBatch::default();
        for part in &parts {
            batch.put_cf(
                engine.cf(EngineCf::Lock)?,
                meta_key(part.id),
                part.encode_to_vec(),
            );
        }
        engine
            .db()
            .write(batch)
            .map_err(|e| engine.error("write regions", e))?;
        {
            let mut regions = self.store.regions.write();
            *regions = Arc::new(regions.with_split(&parts));
        }
        let change = RegionChange::Split {
            old: Region::clone(&old),
            new: parts,
        };
        for observer in self.store.observers.read().iter() {
            observer.on_region_change(&change);
        }
        Ok(())
    }
}

enum LoadError {
    Engine(EngineError),
    Map(RegionMapError),
}

fn load_regions(engine: &RocksEngine, options: &StoreOptions) -> Result<RegionMap, LoadError> {
    let (start, end) = meta_range();
    let mut regions = Vec::new();
    for pair in engine.scan(EngineCf::Lock, &start, &end) {
        let (_, value) = pair.map_err(LoadError::Engine)?;
        regions.push(decode_region(&value).map_err(LoadError::Map)?);
    }
    if regions.is_empty() {
        let first = first_region(options.first_region, options.store_id);
        let lock_cf = engine.cf(EngineCf::Lock).map_err(LoadError::Engine)?;
        engine
            .db()
            .put_cf(lock_cf, meta_key(first.id), first.encode_to_vec())
            .map_err(|e| LoadError::Engine(engine.error("write regions", e)))?;
        regions.push(first);
    }
    RegionMap::new(regions).map_err(LoadError::Map)
}
