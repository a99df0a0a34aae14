//! Objects as files below a directory.
//!
//! Reads go through `object_store`'s local file system; writes and deletions through
//! [`crate::durable_file`], which says why. Listings are ours too: `object_store` leaves out what it
//! cannot look at (an unreadable entry, a broken link), and a meta that is silently missing from a
//! listing is data silently missing from a restore. Ours fails instead.
//!
//! The directory need not exist: the first write makes it, while listing a missing one is an error.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
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
use crate::{ObjectInfo, Payload, Result, Storage, name};

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
        match fs::metadata(&self.root) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(context.fail(StorageErrorKind::InvalidConfig, "this is not a directory")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
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

    async fn write(&self, path: &str, data: Payload, existing: Existing) -> Result<()> {
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
    async fn put(&self, path: &str, data: Payload) -> Result<()> {
        self.write(path, data, Existing::Replace).await
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<()> {
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
        let context = self.objects.context("list", prefix);
        name::check_prefix(prefix, context)?;
        self.check_root("list")?;
        let (root, wanted) = (self.root.clone(), prefix.to_owned());
        let mut found = self
            .blocking(context, move |_| list(&root, &wanted))
            .await?;
        found.sort_unstable();
        Ok(found)
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

fn remove_leftovers(root: &Path, older_than: Duration) -> io::Result<u64> {
    let mut removed = 0;
    for (path, meta) in files_below(root)? {
        let leftover = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(name::is_leftover);
        if leftover && is_older(&meta, older_than) && fs::remove_file(&path).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// The objects whose names begin with `prefix`, unsorted.
fn list(root: &Path, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
    let directory = prefix
        .rsplit_once('/')
        .map_or(root.to_path_buf(), |(dir, _)| root.join(dir));
    let files = files_below(&directory)?;
    let objects = files.into_iter().filter_map(|(path, meta)| {
        // A name that is not UTF-8 is no object's.
        let path = path.strip_prefix(root).ok()?.to_str()?.to_owned();
        let hidden = name::is_hidden(path.rsplit('/').next().unwrap_or(&path));
        (path.starts_with(prefix) && !hidden).then_some(ObjectInfo {
            path,
            size: meta.len(),
        })
    });
    Ok(objects.collect())
}

/// Every file below a directory, links followed. What vanishes meanwhile is left out; what is there
/// and cannot be looked at is an error.
fn files_below(directory: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                continue;
            }
            other => other.map_err(|e| at(&directory, &e))?,
        };
        for entry in entries {
            let path = entry.map_err(|e| at(&directory, &e))?.path();
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => directories.push(path),
                Ok(meta) if meta.is_file() => files.push((path, meta)),
                Ok(_) => {}
                Err(_)
                    if fs::symlink_metadata(&path)
                        .is_err_and(|e| e.kind() == ErrorKind::NotFound) => {}
                Err(error) => return Err(at(&path, &error)),
            }
        }
    }
    Ok(files)
}

/// Says which file it was.
fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A file of the future is left alone.
fn is_older(meta: &Metadata, age: Duration) -> bool {
    let modified = meta.modified();
    modified.is_ok_and(|at| {
        SystemTime::now()
            .duration_since(at)
            .is_ok_and(|old| old >= age)
    })
}
