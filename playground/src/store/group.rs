//! What the stores of one cluster share, and how they are opened.
//!
//! There is no raft: every region has a peer on every store, and a command is written to all running
//! stores, one after the other, under one write lock. So running stores hold the same data at any
//! time. Each batch carries a number; a store that was down, or that a crash of the process has left
//! behind, is made equal to the one with the largest number before it runs (`catch_up`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use pitr_format::Ts;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError};
use prost::Message;
use rocksdb::WriteBatch;

use super::catch_up;
use super::change::ApplyObserver;
use super::kernel::{IdAllocator, OpenError, StoreOptions};
use super::region::{RegionMap, RegionMapError, decode_region, first_region, meta_key, meta_range};
use super::wait::WaitTable;

/// Key, outside of the data keys and of the regions, of the number of the last batch. A cluster of
/// one store has none.
const APPLIED_KEY: &[u8] = b"\x01applied";

/// See the module.
pub(super) struct Group {
    pub order: Mutex<Order>,
    pub regions: RwLock<Arc<RegionMap>>,
    pub members: Vec<Arc<Member>>,
    pub ids: Arc<dyn IdAllocator>,
    pub waiters: WaitTable,
}

/// What the write lock protects besides the order of writes.
pub(super) struct Order {
    pub max_ts: Ts,
    /// Number of the last batch.
    pub applied: u64,
}

/// One store of the cluster.
pub(super) struct Member {
    pub store_id: u64,
    pub engine: RocksEngine,
    pub observers: RwLock<Vec<Arc<dyn ApplyObserver>>>,
    pub import_mode_switches: AtomicU64,
    /// Changes under the write lock only.
    up: AtomicBool,
}

impl Member {
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
    }

    fn open(store_id: u64, dir: &Path) -> Result<Arc<Self>, EngineError> {
        Ok(Arc::new(Member {
            store_id,
            engine: RocksEngine::open(dir)?,
            observers: RwLock::default(),
            import_mode_switches: AtomicU64::new(0),
            up: AtomicBool::new(true),
        }))
    }

    /// Number of the last batch that this store has.
    pub fn applied(&self) -> Result<u64, EngineError> {
        let value = self.engine.get(EngineCf::Lock, APPLIED_KEY)?;
        let bytes = value.and_then(|v| <[u8; 8]>::try_from(v).ok());
        Ok(bytes.map_or(0, u64::from_be_bytes))
    }

    /// Adds the number to a batch.
    pub fn number(&self, batch: &mut WriteBatch, applied: u64) -> Result<(), EngineError> {
        let cf = self.engine.cf(EngineCf::Lock)?;
        batch.put_cf(cf, APPLIED_KEY, applied.to_be_bytes());
        Ok(())
    }

    /// Writes a batch as number `applied`.
    pub fn write(&self, mut batch: WriteBatch, applied: u64) -> Result<(), EngineError> {
        self.number(&mut batch, applied)?;
        let written = self.engine.db().write(batch);
        written.map_err(|e| self.engine.error("write", e))
    }

    /// Makes this store equal to another one; how many pairs changed.
    pub fn catch_up(&self, from: &Member) -> Result<u64, EngineError> {
        let changed = catch_up::copy(&from.engine, &self.engine, APPLIED_KEY)?;
        self.write(WriteBatch::default(), from.applied()?)?;
        Ok(changed)
    }
}

impl Group {
    /// Opens the stores of `options` in these directories, makes them equal and spreads the leaders.
    pub fn open(dirs: &[&Path], options: StoreOptions) -> Result<Self, OpenError> {
        let pairs = options.store_ids.iter().zip(dirs);
        let members = pairs
            .map(|(id, dir)| Member::open(*id, dir))
            .collect::<Result<Vec<_>, _>>()?;
        let applied = level(&members)?;
        let damaged = |source| OpenError::Regions {
            path: dirs
                .first()
                .map_or(String::new(), |d| d.display().to_string()),
            source,
        };
        let regions = load_regions(&members, applied, &options).map_err(|e| match e {
            LoadError::Engine(e) => OpenError::Engine(e),
            LoadError::Map(source) => damaged(source),
        })?;
        for region in regions.iter() {
            if !region
                .peers
                .iter()
                .map(|p| p.store_id)
                .eq(options.store_ids.iter().copied())
            {
                return Err(OpenError::Stores {
                    found: region.peers.len(),
                    wanted: options.store_ids.len(),
                });
            }
        }
        let group = Group {
            order: Mutex::new(Order {
                max_ts: Ts::ZERO,
                applied: level(&members)?,
            }),
            regions: RwLock::new(Arc::new(regions)),
            members,
            ids: options.ids,
            waiters: WaitTable::default(),
        };
        let leaders = group.candidates();
        let mut map = group.regions.write();
        *map = Arc::new(map.with_leaders(leaders));
        drop(map);
        Ok(group)
    }

    /// The stores that run.
    pub fn up(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter().filter(|member| member.is_up())
    }

    pub fn member(&self, store_id: u64) -> Option<&Arc<Member>> {
        self.members.iter().find(|m| m.store_id == store_id)
    }

    /// A running store for each region without a leader, in key order: the one that leads fewest.
    pub fn candidates(&self) -> Vec<(u64, Option<u64>)> {
        let regions = self.regions.read().clone();
        let count = |m: &Arc<Member>| (regions.led_by(Some(m.store_id)).len(), m.store_id);
        let mut load: Vec<(usize, u64)> = self.up().map(count).collect();
        let mut chosen = Vec::new();
        for region in regions.led_by(None) {
            // Equal loads: the first of the stores.
            if let Some((led, store)) = load.iter_mut().min_by_key(|(led, _)| *led) {
                *led += 1;
                chosen.push((region.id, Some(*store)));
            }
        }
        chosen
    }
}

/// Makes all stores equal to the one that has applied most; its number.
fn level(members: &[Arc<Member>]) -> Result<u64, EngineError> {
    let mut numbers = Vec::new();
    for member in members {
        numbers.push((member.applied()?, member));
    }
    // `rev`: of equals the last wins, and the first store shall.
    let Some((most, ahead)) = numbers.iter().rev().max_by_key(|(applied, _)| *applied) else {
        return Ok(0);
    };
    for (applied, member) in &numbers {
        if applied < most {
            let changed = member.catch_up(ahead)?;
            let store = member.store_id;
            tracing::info!(store, changed, "a store has caught up");
        }
    }
    Ok(*most)
}

enum LoadError {
    Engine(EngineError),
    Map(RegionMapError),
}

fn load_regions(
    members: &[Arc<Member>],
    applied: u64,
    options: &StoreOptions,
) -> Result<RegionMap, LoadError> {
    let (start, end) = meta_range();
    let mut regions = Vec::new();
    for member in members.iter().take(1) {
        for pair in member.engine.scan(EngineCf::Lock, &start, &end) {
            let (_, value) = pair.map_err(LoadError::Engine)?;
            regions.push(decode_region(&value).map_err(LoadError::Map)?);
        }
    }
    if regions.is_empty() {
        let first = first_region(&options.first_region, &options.store_ids);
        let bytes = first.encode_to_vec();
        for member in members {
            let mut batch = WriteBatch::default();
            let cf = member
                .engine
                .cf(EngineCf::Lock)
                .map_err(LoadError::Engine)?;
            batch.put_cf(cf, meta_key(first.id), &bytes);
            let written = member.write(batch, applied + 1);
            written.map_err(LoadError::Engine)?;
        }
        regions.push(first);
    }
    RegionMap::new(regions).map_err(LoadError::Map)
}
