//! A store in a temporary directory, for the tests of this module.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pitr_proto::metapb::Region;
use tempfile::TempDir;

use super::{IdAllocator, RegionIds, Store, StoreOptions};

/// Ids from 100 on.
struct Ids(AtomicU64);

impl IdAllocator for Ids {
    fn alloc(&self, _: &Region, count: usize) -> Result<Vec<RegionIds>, String> {
        let one = |_| {
            let region = self.0.fetch_add(2, Ordering::Relaxed);
            RegionIds {
                region,
                peer: region + 1,
            }
        };
        Ok((0..count).map(one).collect())
    }
}

pub(super) fn open_store(dir: &Path) -> Arc<Store> {
    let options = StoreOptions {
        store_id: 1,
        first_region: RegionIds { region: 2, peer: 3 },
        ids: Arc::new(Ids(AtomicU64::new(100))),
    };
    Store::open(dir, options).unwrap()
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
