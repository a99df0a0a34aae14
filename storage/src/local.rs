//! Objects as files below a directory.
//!
//! Reads and listings go through `object_store`'s local file system; writes and deletions through
//! [`crate::durable_file`], which says why. The directory need not exist: the first write makes it,
//! while listing a missing one is an error.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;

use crate::durable_file::{DurableWriter, Existing};
use crate::error::{Context, StorageErrorKind};
use crate::object_reader::ObjectReader;
use crate::{ObjectInfo, Result, Storage, name};

/// A storage in a directory of this machine.
pub(crate) struct LocalStorage {
    root: PathBuf,
    objects: ObjectReader,
    writer: Arc<DurableWriter>,
}

impl LocalStorage {
    /// `root` is absolute and without `..`, as [`crate::Location`] makes it. Touches no file.
    pub(crate) fn open(root: PathBuf, uri: String) -> Result<Self> {
        let context = Context {
            action: "open",
            path: "",
            uri: &uri,
        };
        let prefix = object_store::path::Path::from_absolute_path(&root)
            .map_err(|e| context.fail(StorageErrorKind::InvalidConfig, e))?;
        let store = Arc::new(PrefixStore::new(LocalFileSystem::new(), prefix));
        let writer = Arc::new(DurableWriter::new(root.clone()));
        Ok(Self {
            root,
            objects: ObjectReader { store, uri },
            writer,
        })
    }

    /// Whether the root is a directory that can be looked into.
    pub(crate) fn check_root(&self, action: &'static str) -> Result<()> {
        let context = self.objects.context(action, "");
        match std::fs::metadata(&self.root) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(context.fail(StorageErrorKind::InvalidConfig, "this is not a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(context.fail(StorageErrorKind::NotFound, "the directory does not exist"))
            }
            Err(error) => Err(context.io(&error)),
        }
    }

    /// Runs a blocking file operation; it is carried through even if the caller stops waiting.
    async fn blocking<T: Send + 'static>(
        &self,
        context: Context<'_>,
        work: impl FnOnce(&DurableWriter) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let writer = Arc::clone(&self.writer);
        match tokio::task::spawn_blocking(move || work(&writer)).await {
            Ok(done) => done.map_err(|e| context.io(&e)),
            Err(error) => Err(context.fail(StorageErrorKind::Transient, error)),
        }
    }

    async fn write(&self, path: &str, data: Bytes, existing: Existing) -> Result<()> {
        let context = self.objects.context("write", path);
        name::object_path(path, context)?;
        let target = path.to_owned();
        self.blocking(context, move |writer| {
            writer.write(&target, &data, existing)
        })
        .await
    }
}

#[async_trait]
impl Storage for LocalStorage {
    async fn put(&self, path: &str, data: Bytes) -> Result<()> {
        self.write(path, data, Existing::Replace).await
    }

    async fn put_new(&self, path: &str, data: Bytes) -> Result<()> {
        self.write(path, data, Existing::Refuse).await
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
        self.check_root("list")?;
        self.objects.list(prefix).await
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let context = self.objects.context("delete", path);
        name::object_path(path, context)?;
        let target = path.to_owned();
        self.blocking(context, move |writer| writer.remove(&target))
            .await
    }

    fn uri(&self) -> String {
        self.objects.uri.clone()
    }

    async fn remove_leftovers(&self, older_than: Duration) -> Result<u64> {
        let root = self.root.clone();
        let context = self.objects.context("delete", "");
        self.blocking(context, move |_| remove_leftovers(&root, older_than))
            .await
    }
}

/// Walks the directories itself: `object_store` hides what is looked for here.
fn remove_leftovers(root: &Path, older_than: Duration) -> io::Result<u64> {
    let mut removed = 0;
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file()
                && entry.file_name().to_str().is_some_and(name::is_leftover)
                && is_older(&entry, older_than)
                && std::fs::remove_file(entry.path()).is_ok()
            {
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// A file that vanished meanwhile, or of the future, is left alone.
fn is_older(entry: &std::fs::DirEntry, age: Duration) -> bool {
    let modified = entry.metadata().and_then(|meta| meta.modified());
    modified.is_ok_and(|at| {
        SystemTime::now()
            .duration_since(at)
            .is_ok_and(|old| old >= age)
    })
}
