//! A file that is written from an asynchronous call: every write runs as blocking work of the
//! environment.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::import_dir::{ImportDirError, io_error};
use crate::env::Env;

/// An open file; gone after a failure.
pub(super) struct DiskFile {
    file: Option<File>,
    path: PathBuf,
    env: Env,
}

impl DiskFile {
    /// Opens `path` by `open`, named `action` in an error.
    pub(super) async fn open(
        env: &Env,
        path: &Path,
        action: &'static str,
        open: impl FnOnce(&Path) -> io::Result<File> + Send + 'static,
    ) -> Result<Self, ImportDirError> {
        let named = path.to_owned();
        let opened = env.unblock(move || open(&named)).await;
        let file = opened.flatten().map_err(io_error(action, path))?;
        Ok(DiskFile {
            file: Some(file),
            path: path.to_owned(),
            env: env.clone(),
        })
    }

    /// Appends `bytes`.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), ImportDirError> {
        self.run("write", move |file| file.write_all(&bytes)).await
    }

    /// Makes what was written durable.
    pub(super) async fn sync(&mut self) -> Result<(), ImportDirError> {
        self.run("sync", |file| file.sync_all()).await
    }

    /// Does something else with the file.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        action: &'static str,
        work: impl FnOnce(&mut File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ImportDirError> {
        let taken = self.file.take();
        let mut file = taken
            .ok_or_else(|| io::Error::other("an earlier write failed"))
            .map_err(io_error(action, &self.path))?;
        let done = self
            .env
            .unblock(move || work(&mut file).map(|done| (file, done)));
        let (file, done) = done.await.flatten().map_err(io_error(action, &self.path))?;
        self.file = Some(file);
        Ok(done)
    }
}
