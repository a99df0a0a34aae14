//! Opened storages. A request that names a `storage_cache_id` may share a client with others of
//! the same id *and the same backend*: the id alone would let one archive answer for another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pitr_env::Clock;
use pitr_proto::backup::StorageBackend;
use pitr_storage::{SharedStorage, open_backend};
use prost::Message;
use sha2::{Digest, Sha256};

use super::error::ImportError;

/// Clients kept at most; the one unused for longest goes first.
const MAX_KEPT: usize = 16;
/// How long an unused client is kept (TiKV: 20 sweeps of 30 s).
const KEPT_UNUSED: Duration = Duration::from_secs(600);

/// Identity of a storage: everything that the request says about it, credentials included, as a
/// digest.
pub(super) type StorageId = [u8; 32];

/// A storage and what names it.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) storage: SharedStorage,
    pub(super) id: StorageId,
}

struct Kept {
    storage: SharedStorage,
    /// A moment of the clock.
    used: Duration,
}

pub(super) struct Storages {
    clock: Arc<dyn Clock>,
    kept: Mutex<HashMap<(String, StorageId), Kept>>,
}

impl Storages {
    /// None is open.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let kept = Mutex::default();
        Storages { clock, kept }
    }

    pub(super) fn open(
        &self,
        backend: Option<&StorageBackend>,
        cache_id: &str,
    ) -> Result<Opened, ImportError> {
        let backend = match backend {
            Some(backend) if backend.backend.is_some() => backend,
            _ => {
                let what = "request: no storage backend, or one of an unknown kind";
                return Err(ImportError::BadFormat(what.to_owned()));
            }
        };
        let id: StorageId = Sha256::digest(backend.encode_to_vec()).into();
        let open = || open_backend(backend).map_err(|e| ImportError::Storage(e.to_string()));
        if cache_id.is_empty() {
            return open().map(|storage| Opened { storage, id });
        }
        let mut kept = self.kept.lock();
        if let Some(found) = kept.get_mut(&(cache_id.to_owned(), id)) {
            found.used = self.clock.now();
            let storage = found.storage.clone();
            return Ok(Opened { storage, id });
        }
        let storage = open()?;
        if kept.len() >= MAX_KEPT {
            let oldest = kept.iter().min_by_key(|(_, kept)| kept.used);
            let oldest = oldest.map(|(name, _)| name.clone());
            oldest.map(|name| kept.remove(&name));
        }
        let entry = Kept {
            storage: storage.clone(),
            used: self.clock.now(),
        };
        kept.insert((cache_id.to_owned(), id), entry);
        Ok(Opened { storage, id })
    }

    /// Drops clients that were not used for long.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        let mut kept = self.kept.lock();
        kept.retain(|_, kept| now.saturating_sub(kept.used) < KEPT_UNUSED);
    }
}

#[cfg(test)]
mod tests {
    use pitr_env::SystemClock;
    use pitr_proto::backup::Local;
    use pitr_proto::backup::storage_backend::Backend;

    use super::*;

    fn local(path: &str) -> StorageBackend {
        StorageBackend {
            backend: Some(Backend::Local(Local {
                path: path.to_owned(),
            })),
        }
    }

    #[test]
    fn a_client_is_shared_only_by_those_with_the_same_id_and_the_same_backend() {
        let storages = Storages::new(Arc::new(SystemClock::new()));
        let open = |path: &str, id: &str| storages.open(Some(&local(path)), id).unwrap();
        let (a, again) = (open("/a", "x"), open("/a", "x"));
        assert!(Arc::ptr_eq(&a.storage, &again.storage));
        let (other, unnamed) = (open("/b", "x"), open("/a", ""));
        assert!(other.id != a.id && other.storage.uri() != a.storage.uri());
        assert!(unnamed.id == a.id && !Arc::ptr_eq(&a.storage, &unnamed.storage));
        for i in 0..2 * MAX_KEPT {
            open("/a", &i.to_string());
        }
        assert_eq!(storages.kept.lock().len(), MAX_KEPT);
    }

    #[test]
    fn a_request_without_a_storage_is_refused() {
        let storages = Storages::new(Arc::new(SystemClock::new()));
        for backend in [None, Some(StorageBackend { backend: None })] {
            let error = storages.open(backend.as_ref(), "x").err().unwrap();
            assert!(error.to_string().contains("no storage backend"), "{error}");
        }
    }
}
