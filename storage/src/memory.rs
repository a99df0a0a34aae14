//! Objects in memory, for tests and simulation: `memory://NAME` is the same storage for everyone
//! in this process, `memory://` a new one each time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{PutMode, PutPayload};

use crate::object_reader::ObjectReader;
use crate::{ObjectInfo, Payload, Result, Storage, name};

/// A storage that lives as long as the process (or its last handle, if it has no name).
pub(crate) struct MemoryStorage {
    objects: ObjectReader,
}

static NAMED: Mutex<BTreeMap<String, Arc<InMemory>>> = Mutex::new(BTreeMap::new());

impl MemoryStorage {
    pub(crate) fn open(name: &str) -> Self {
        let store = if name.is_empty() {
            Arc::default()
        } else {
            let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(named.entry(name.to_owned()).or_default())
        };
        Self {
            objects: ObjectReader {
                store,
                uri: format!("memory://{name}"),
            },
        }
    }

    async fn write(&self, path: &str, data: Payload, mode: PutMode) -> Result<()> {
        let context = self.objects.context("write", path);
        let location = name::object_path(path, context)?;
        let permit = data.clone();
        let data = collect(data).await.map_err(|e| context.io(&e))?;
        permit.check_permit().map_err(|e| context.io(&e))?;
        let written = self
            .objects
            .store
            .put_opts(&location, PutPayload::from_bytes(data), mode.into())
            .await;
        written.map(drop).map_err(|e| context.object_store(&e))
    }
}

/// Files are read on a thread that may block; without files nothing leaves the caller's thread,
/// so that a simulation stays in one.
async fn collect(data: Payload) -> io::Result<Bytes> {
    if data.file_bytes() == 0 {
        return data.collect();
    }
    let read = tokio::task::spawn_blocking(move || data.collect()).await;
    read.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn put(&self, path: &str, data: Payload) -> Result<()> {
        self.write(path, data, PutMode::Overwrite).await
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<()> {
        self.write(path, data, PutMode::Create).await
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        self.objects.get(path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        self.objects.get_range(path, range).await
    }

    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        self.objects.head(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.objects.list_below(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.objects.delete(path).await
    }

    fn uri(&self) -> String {
        self.objects.uri.clone()
    }
}
