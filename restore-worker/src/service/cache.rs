//! Plaintext of log slices, shared by the calls that need the same slice: a driver sends one
//! slice to every region that it overlaps, and sends it again after region errors.
//!
//! Invariants: an entry is named by storage identity, object, offset, length, compression and key,
//! never by the object's name alone; what it holds was decoded in full, and its digests are kept,
//! so that every request is compared with what it asks for, cached or not. All bytes are reserved
//! from the budget before they are read; the cache itself is bounded, and gives way when the
//! budget has no room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::{MemoryBudget, Reservation};
use pitr_env::Clock;
use tokio::sync::OnceCell;

use super::error::ImportError;
use super::storages::StorageId;
use crate::env::{Env, within};

/// How long an entry is kept that nobody asks for (TiKV: the same).
const KEPT_UNUSED: Duration = Duration::from_secs(60);

/// How long a download waits for memory before it gives up.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What names a slice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SliceKey {
    pub(super) storage: StorageId,
    pub(super) object: String,
    pub(super) offset: u64,
    /// Stored bytes; 0 is the whole object.
    pub(super) length: u64,
    pub(super) compression: i32,
    /// Digest of key and IV.
    pub(super) cipher: Option<[u8; 32]>,
}

/// A decoded slice.
#[derive(Debug)]
pub(super) struct CachedSlice {
    pub(super) plain: Bytes,
    /// Of the plaintext.
    pub(super) sha256: [u8; 32],
    /// Of the stored bytes, for encrypted slices.
    pub(super) stored_sha256: Option<[u8; 32]>,
    pub(super) memory: Reservation,
}

struct Entry {
    slice: Arc<OnceCell<Arc<CachedSlice>>>,
    /// A moment of the clock.
    used: Duration,
}

pub(super) struct SliceCache {
    clock: Arc<dyn Clock>,
    budget: Arc<MemoryBudget>,
    max_bytes: u64,
    entries: Mutex<HashMap<SliceKey, Entry>>,
}

impl SliceCache {
    /// A cache that keeps at most `max_bytes`, and half of the budget, that nobody uses at the
    /// moment, besides the slice that was given last.
    pub(super) fn new(env: &Env, max_bytes: u64) -> Self {
        SliceCache {
            max_bytes: max_bytes.min(env.budget.limit() / 2),
            clock: Arc::clone(&env.clock),
            budget: Arc::clone(&env.budget),
            entries: Mutex::default(),
        }
    }

    /// Memory for one call: empty, grown by [`SliceCache::grow`].
    pub(super) fn memory(&self) -> Reservation {
        self.budget.nothing()
    }

    /// `bytes`, or an eighth of the budget if that is less.
    pub(super) fn share(&self, bytes: usize) -> usize {
        let eighth = usize::try_from(self.budget.limit() / 8).unwrap_or(usize::MAX);
        bytes.min(eighth).max(1)
    }

    /// Adds `bytes` to what a call holds; lets entries go if that makes room. A call that is alone
    /// may pass the limit: a slice larger than the budget could never be applied otherwise.
    pub(super) fn grow(&self, held: &mut Reservation, bytes: u64) -> Result<(), ImportError> {
        while !held.try_grow_alone(bytes) {
            if !self.evict_oldest() {
                return Err(ImportError::Busy);
            }
        }
        Ok(())
    }

    /// Memory for a call that can wait for it.
    pub(super) async fn wait(&self, bytes: u64) -> Result<Reservation, ImportError> {
        let mut held = self.memory();
        if self.grow(&mut held, bytes).is_ok() {
            return Ok(held);
        }
        let room = self.budget.reserve(bytes);
        let waited = within(self.clock.as_ref(), LONGEST_WAIT, room).await;
        waited.ok_or(ImportError::Busy)
    }

    /// The slice, from `load` unless it is there. Calls for one slice share one load; when it
    /// fails, each of them tries for itself.
    pub(super) async fn get<F>(
        &self,
        key: &SliceKey,
        load: F,
    ) -> Result<Arc<CachedSlice>, ImportError>
    where
        F: Future<Output = Result<CachedSlice, ImportError>>,
    {
        let cell = {
            let mut entries = self.entries.lock();
            let used = self.clock.now();
            let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
                slice: Arc::default(),
                used,
            });
            entry.used = used;
            Arc::clone(&entry.slice)
        };
        let loaded = cell.get_or_try_init(|| async { load.await.map(Arc::new) });
        let loaded = loaded.await.cloned();
        if loaded.is_err() && cell.get().is_none() {
            self.forget(key, &cell);
        }
        self.shrink();
        loaded
    }

    /// Drops an entry that does not hold what its object holds by now.
    pub(super) fn remove(&self, key: &SliceKey) {
        self.entries.lock().remove(key);
    }

    /// Drops entries that nobody asked for lately.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        let unused = |entry: &Entry| now.saturating_sub(entry.used);
        let mut entries = self.entries.lock();
        entries.retain(|_, entry| entry.in_use() || unused(entry) < KEPT_UNUSED);
    }

    fn forget(&self, key: &SliceKey, cell: &Arc<OnceCell<Arc<CachedSlice>>>) {
        let mut entries = self.entries.lock();
        if entries
            .get(key)
            .is_some_and(|e| Arc::ptr_eq(&e.slice, cell))
        {
            entries.remove(key);
        }
    }

    /// Keeps what nobody uses below the bound.
    fn shrink(&self) {
        let idle = || {
            let entries = self.entries.lock();
            entries
                .values()
                .filter(|e| !e.in_use())
                .map(Entry::bytes)
                .sum::<u64>()
        };
        while idle() > self.max_bytes && self.evict_oldest() {}
    }

    /// Drops the entry unused for longest; false when all are in use.
    fn evict_oldest(&self) -> bool {
        let mut entries = self.entries.lock();
        let idle = entries.iter().filter(|(_, entry)| !entry.in_use());
        let Some(key) = idle.min_by_key(|(_, e)| e.used).map(|(key, _)| key.clone()) else {
            return false;
        };
        entries.remove(&key).is_some()
    }
}

impl Entry {
    /// Being loaded, or held by a call.
    fn in_use(&self) -> bool {
        match self.slice.get() {
            Some(slice) => Arc::strong_count(slice) > 1,
            None => Arc::strong_count(&self.slice) > 1,
        }
    }

    fn bytes(&self) -> u64 {
        self.slice.get().map_or(0, |slice| slice.memory.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;

    fn key(object: &str) -> SliceKey {
        SliceKey {
            storage: [0; 32],
            object: object.to_owned(),
            offset: 0,
            length: 10,
            compression: 0,
            cipher: None,
        }
    }

    async fn get(
        cache: &SliceCache,
        key: &SliceKey,
        bytes: u64,
    ) -> Result<Arc<CachedSlice>, ImportError> {
        let load = async {
            let mut memory = cache.memory();
            cache.grow(&mut memory, bytes)?;
            Ok(CachedSlice {
                plain: key.object.clone().into(),
                sha256: [0; 32],
                stored_sha256: None,
                memory,
            })
        };
        cache.get(key, load).await
    }

    #[tokio::test]
    async fn idle_entries_stay_below_the_bound_and_give_way_to_calls() {
        let budget = MemoryBudget::new(100);
        let cache = SliceCache::new(&Env::system(Arc::clone(&budget)), 60);
        for name in ["a", "b", "c"] {
            get(&cache, &key(name), 25).await.unwrap();
        }
        get(&cache, &key("x"), 25).await.unwrap();
        assert_eq!(
            budget.used(),
            75,
            "the bound, and the slice that was given last"
        );
        let held = get(&cache, &key("d"), 90).await.unwrap();
        assert_eq!(budget.used(), 90, "the idle ones are gone");
        let error = get(&cache, &key("e"), 20).await.unwrap_err();
        assert!(matches!(error, ImportError::Busy), "{error}");
        drop(held);
        get(&cache, &key("e"), 20).await.unwrap();
        assert_eq!(budget.used(), 20);
        let all = cache.wait(100).await.unwrap();
        assert_eq!(
            (all.bytes(), budget.used()),
            (100, 100),
            "idle entries gave way"
        );
    }

    #[tokio::test]
    async fn an_equal_name_in_another_storage_is_another_slice() {
        let cache = SliceCache::new(&Env::system(MemoryBudget::new(1000)), 1000);
        let one = get(&cache, &key("a"), 1).await.unwrap();
        let elsewhere = SliceKey {
            storage: [1; 32],
            ..key("a")
        };
        for other in [
            elsewhere,
            SliceKey {
                offset: 1,
                ..key("a")
            },
            SliceKey {
                length: 11,
                ..key("a")
            },
            SliceKey {
                compression: 3,
                ..key("a")
            },
            SliceKey {
                cipher: Some([0; 32]),
                ..key("a")
            },
        ] {
            let found = get(&cache, &other, 1).await.unwrap();
            assert!(!Arc::ptr_eq(&one, &found), "{other:?}");
        }
        assert!(Arc::ptr_eq(&one, &get(&cache, &key("a"), 1).await.unwrap()));
    }

    #[tokio::test]
    async fn calls_for_one_slice_share_one_load() {
        let cache = SliceCache::new(&Env::system(MemoryBudget::new(1000)), 1000);
        let loads = AtomicU64::new(0);
        let load = || async {
            loads.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(CachedSlice {
                plain: Bytes::new(),
                sha256: [0; 32],
                stored_sha256: None,
                memory: cache.memory(),
            })
        };
        let name = key("a");
        let (a, b) = tokio::join!(cache.get(&name, load()), cache.get(&name, load()));
        assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
        assert_eq!(loads.load(SeqCst), 1);
        let failing = cache.get(&key("b"), async { Err(ImportError::Busy) }).await;
        assert!(failing.is_err());
        assert_eq!(
            cache.entries.lock().len(),
            1,
            "a failed load leaves no entry"
        );
    }
}
