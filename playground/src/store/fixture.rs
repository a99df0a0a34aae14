//! A store in a temporary directory, for the tests of this module.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pitr_proto::metapb::Region;
use tempfile::TempDir;

use super::{IdAllocator, RegionIds, Store, StoreOptions};

/// Ids from a first one on.
struct Ids(AtomicU64);

pub(super) fn ids_from(first: u64) -> Arc<dyn IdAllocator> {
    Arc::new(Ids(AtomicU64::new(first)))
}

impl IdAllocator for Ids {
    fn alloc(&self, region: &Region, count: usize) -> Result<Vec<RegionIds>, String> {
        let peers = region.peers.len() as u64;
        let one = |_| {
            let region = self.0.fetch_add(1 + peers, Ordering::Relaxed);
            RegionIds {
                region,
                peers: (1..=peers).map(|n| region + n).collect(),
            }
        };
        Ok((0..count).map(one).collect())
    }
}

pub(super) fn open_store(dir: &Path) -> Arc<Store> {
    let options = StoreOptions {
        store_ids: vec![1],
        first_region: RegionIds {
            region: 2,
            peers: vec![3],
        },
        ids: ids_from(100),
    };
    Store::open(&[dir], options).unwrap().remove(0)
}

pub(super) struct Fixture {
    pub store: Arc<Store>,
    dir: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        Fixture {
            store: open_store(dir.path()),
            dir,
        }
    }

    /// Closes the store and gives its directory back.
    pub fn close(self) -> TempDir {
        let Fixture { store, dir } = self;
        assert_eq!(Arc::strong_count(&store), 1);
        drop(store);
        dir
    }
}
