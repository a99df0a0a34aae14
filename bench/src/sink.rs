//! A storage that keeps everything but the bytes of log files.
//!
//! What a storage in memory does with them (room for the whole object, and a copy) is neither part of
//! the path nor of its limits: a real backend hands the pieces to the network or to the kernel.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use pitr_storage::{ObjectInfo, Payload, Result, SharedStorage, Storage};

/// In front of the storage that keeps the rest.
pub struct Sink(pub SharedStorage);

impl Sink {
    fn kept(path: &str, data: Payload) -> Payload {
        match path.ends_with(".log") {
            true => Bytes::new().into(),
            false => data,
        }
    }
}

#[async_trait]
impl Storage for Sink {
    async fn put(&self, path: &str, data: Payload) -> Result<()> {
        self.0.put(path, Self::kept(path, data)).await
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<()> {
        self.0.put_new(path, Self::kept(path, data)).await
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        self.0.get(path).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        self.0.get_range(path, range).await
    }

    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        self.0.head(path).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.0.list(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.0.delete(path).await
    }

    fn uri(&self) -> String {
        self.0.uri()
    }
}
