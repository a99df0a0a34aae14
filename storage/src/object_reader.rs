//! Reading through `object_store`: the part that all backends share. Adds what an archive needs: our
//! error kinds, checked names and exact ranges (`object_store` shortens a range silently).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use crate::error::{Context, StorageErrorKind};
use crate::{ObjectInfo, Result, name};

/// The shared read half of a backend.
pub(crate) struct ObjectReader {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) uri: String,
}

impl ObjectReader {
    pub(crate) fn context<'a>(&'a self, action: &'static str, path: &'a str) -> Context<'a> {
        Context {
            action,
            path,
            uri: &self.uri,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Bytes> {
        let context = self.context("read", path);
        let location = name::object_path(path, context)?;
        let answer = self
            .store
            .get(&location)
            .await
            .map_err(|e| context.object_store(&e))?;
        answer.bytes().await.map_err(|e| context.object_store(&e))
    }

    pub(crate) async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let context = self.context("read", path);
        let location = name::object_path(path, context)?;
        if range.start < range.end {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                ..Default::default()
            };
            if let Ok(answer) = self.store.get_opts(&location, options).await
                && answer.range == range
            {
                return answer.bytes().await.map_err(|e| context.object_store(&e));
            }
        }
        // `object_store` shortens a range that ends behind the object, and its error for one that
        // is empty or begins behind it cannot be told from others: the size decides.
        let size = self
            .store
            .head(&location)
            .await
            .map_err(|e| context.object_store(&e))?
            .size;
        let Range { start, end } = range;
        if start == end && end <= size {
            return Ok(Bytes::new());
        }
        if start <= end && end <= size {
            let detail = format!("bytes {start}..{end} could not be read");
            return Err(context.fail(StorageErrorKind::Transient, detail));
        }
        let detail = format!("bytes {start}..{end} of an object of {size} bytes");
        Err(context.fail(StorageErrorKind::OutOfRange, detail))
    }

    pub(crate) async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        let context = self.context("read", path);
        let location = name::object_path(path, context)?;
        match self.store.head(&location).await {
            Ok(meta) => Ok(Some(ObjectInfo {
                path: path.to_owned(),
                size: meta.size,
            })),
            Err(error) => match context.object_store(&error) {
                error if error.is_not_found() => Ok(None),
                error => Err(error),
            },
        }
    }
}
