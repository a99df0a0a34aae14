//! Calls of `object_store` that backends share, most of all reads. Adds what an archive needs: our
//! error kinds, checked names and exact ranges (`object_store` shortens a range silently).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use crate::error::{Context, StorageErrorKind};
use crate::{ObjectInfo, Result, name};

fn is_final(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(
        error,
        E::NotFound { .. } | E::PermissionDenied { .. } | E::Unauthenticated { .. }
    )
}

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
            match self.store.get_opts(&location, options).await {
                Ok(answer) if answer.range == range => {
                    return answer.bytes().await.map_err(|e| context.object_store(&e));
                }
                // A client out of patience needs no second question.
                Err(error) if is_final(&error) => return Err(context.object_store(&error)),
                _ => {}
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

    /// The listing of [`crate::Storage::list`]: asks for the directory of the prefix and picks from
    /// it, because `object_store` knows only prefixes of whole parts.
    pub(crate) async fn list_below(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let context = self.context("list", prefix);
        name::check_prefix(prefix, context)?;
        let directory = prefix.rsplit_once('/').map(|(directory, _)| directory);
        let directory = directory.map(Path::parse).transpose();
        let directory = directory.map_err(|e| context.fail(StorageErrorKind::InvalidPath, e))?;
        let listed = self.store.list(directory.as_ref());
        let found = listed.try_filter_map(|meta| async move {
            let path = String::from(meta.location);
            let hidden = name::is_hidden(path.rsplit('/').next().unwrap_or(&path));
            let size = meta.size;
            Ok((path.starts_with(prefix) && !hidden).then_some(ObjectInfo { path, size }))
        });
        let found: object_store::Result<Vec<_>> = found.try_collect().await;
        let mut found = found.map_err(|e| context.object_store(&e))?;
        found.sort_unstable();
        Ok(found)
    }

    /// Removes an object; a missing one is no error.
    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        let context = self.context("delete", path);
        let location = name::object_path(path, context)?;
        match self.store.delete(&location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(context.object_store(&error)),
        }
    }
}
