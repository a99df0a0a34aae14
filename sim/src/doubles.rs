//! Storage and PD as the node sees them: every method is a pending call.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::{Class, Ts};
use pitr_observer::{FlushTable, ProgressSink, RegionProgress, SinkError};
use pitr_storage::{ObjectInfo, Payload, Storage, StorageError, StorageErrorKind};

use crate::calls::{Calls, Reply, Request};
use crate::node::{Board, TableLine};

/// Where the storage double says it is.
const URI: &str = "sim://archive";

/// The archive, through pending calls.
pub struct SimStorage(pub Arc<Calls>);

impl SimStorage {
    async fn ask(&self, action: &'static str, path: &str, request: Request) -> Answer {
        let reply = self.0.call(request).await;
        let fail = |kind, detail: &str| StorageError {
            kind,
            action,
            path: path.to_owned(),
            uri: URI.to_owned(),
            detail: detail.to_owned(),
        };
        match reply {
            Reply::Failed => Err(fail(StorageErrorKind::Transient, "injected")),
            Reply::NotFound => Err(fail(StorageErrorKind::NotFound, "no such object")),
            Reply::Exists => Err(fail(StorageErrorKind::AlreadyExists, "it exists")),
            reply => Ok(reply),
        }
    }

    async fn read(&self, path: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        let path_of = path.to_owned();
        let request = Request::Get {
            path: path_of,
            range,
        };
        match self.ask("read", path, request).await? {
            Reply::Data(bytes) => Ok(bytes),
            _ => Ok(Bytes::new()),
        }
    }

    async fn write(&self, path: &str, data: Payload, new: bool) -> Result<(), StorageError> {
        let path_of = path.to_owned();
        let data = data.collect().map_err(|error| StorageError {
            kind: StorageErrorKind::Transient,
            action: "write",
            path: path_of.clone(),
            uri: URI.to_owned(),
            detail: error.to_string(),
        })?;
        let request = Request::Put {
            path: path_of,
            data,
            new,
        };
        self.ask("write", path, request).await.map(drop)
    }
}

type Answer = Result<Reply, StorageError>;

#[async_trait]
impl Storage for SimStorage {
    async fn put(&self, path: &str, data: Payload) -> Result<(), StorageError> {
        self.write(path, data, false).await
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<(), StorageError> {
        self.write(path, data, true).await
    }

    async fn get(&self, path: &str) -> Result<Bytes, StorageError> {
        self.read(path, None).await
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.read(path, Some(range)).await
    }

    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>, StorageError> {
        let found = self.list(path).await?;
        Ok(found.into_iter().find(|object| object.path == path))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StorageError> {
        let request = Request::List(prefix.to_owned());
        let Reply::Listed(found) = self.ask("list", prefix, request).await? else {
            return Ok(Vec::new());
        };
        let info = |(path, size)| ObjectInfo { path, size };
        Ok(found.into_iter().map(info).collect())
    }

    async fn delete(&self, path: &str) -> Result<(), StorageError> {
        let request = Request::Delete(path.to_owned());
        self.ask("delete", path, request).await.map(drop)
    }

    fn uri(&self) -> String {
        URI.to_owned()
    }
}

/// PD as a node sees it, through pending calls.
pub struct SimPd {
    /// The calls of the node.
    pub calls: Arc<Calls>,
    /// The store of the node.
    pub store: u64,
    /// Where flush tables go.
    pub board: Arc<Mutex<Board>>,
}

impl SimPd {
    /// A timestamp; `None` while PD is away.
    pub async fn tso(&self) -> Option<Ts> {
        match self.calls.call(Request::Tso).await {
            Reply::Ts(ts) => Some(ts),
            _ => None,
        }
    }

    /// The global checkpoint that PD holds; `None` while PD is away.
    pub async fn load_global(&self) -> Option<Option<Ts>> {
        match self.calls.call(Request::LoadGlobal).await {
            Reply::Global(ts) => Some(ts),
            _ => None,
        }
    }
}

#[async_trait]
impl ProgressSink for SimPd {
    async fn tell(&self, table: &FlushTable) -> Result<Option<Ts>, SinkError> {
        let line = |line: &RegionProgress| TableLine {
            region: line.region.id,
            version: line.region.version,
            range: line.region.range.clone(),
            ts: line.ts,
        };
        self.board
            .lock()
            .flushed(table.regions.iter().map(line).collect());
        Ok(None)
    }

    async fn set_storage_checkpoint(&self, ts: Ts) -> Result<(), SinkError> {
        let store = self.store;
        match self.calls.call(Request::SetStorage { ts, store }).await {
            Reply::Done => Ok(()),
            _ => Err(SinkError::new(Class::Retry, "PD is away")),
        }
    }
}
