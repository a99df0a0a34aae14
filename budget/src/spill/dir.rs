//! The directory: its lock, its leftovers, its quota.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::{SpillError, SpillFile};

/// Name of the file whose lock says that the directory is in use.
const LOCK: &str = "lock";
/// What the names of temporary files end with.
const SUFFIX: &str = ".spill";

/// A directory of temporary files that belongs to this process.
#[derive(Debug)]
pub struct SpillDir {
    path: PathBuf,
    quota: u64,
    used: AtomicU64,
    next: AtomicU64,
    /// Held for as long as the directory and any file of it are.
    _lock: File,
}

impl SpillDir {
    /// Creates or takes over `path` (readable by this user only) and removes the files that a dead
    /// process left there; other files stay. At most `quota` bytes are written.
    pub fn open(path: impl Into<PathBuf>, quota: u64) -> Result<Arc<Self>, SpillError> {
        let path = path.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| SpillError::io("create the temporary directory", &path, error))?;
        let lock = lock(&path)?;
        remove_leftovers(&path)
            .map_err(|error| SpillError::io("empty the temporary directory", &path, error))?;
        Ok(Arc::new(SpillDir {
            path,
            quota,
            used: AtomicU64::new(0),
            next: AtomicU64::new(1),
            _lock: lock,
        }))
    }

    /// A new empty file.
    pub fn create(self: &Arc<Self>) -> Result<SpillFile, SpillError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("{number:010}{SUFFIX}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.refused("create", &path, 0, error))?;
        Ok(SpillFile::new(Arc::clone(self), path, file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that may be written.
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// Bytes in files that are still there.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    pub(super) fn take(&self, bytes: u64) -> Result<(), SpillError> {
        let fits = |used: u64| {
            let after = used.checked_add(bytes)?;
            (after <= self.quota).then_some(after)
        };
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .map(drop)
            .map_err(|used| SpillError::Full {
                bytes,
                used,
                quota: self.quota,
                disk: false,
            })
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// The error of a failed write of `bytes`.
    pub(super) fn refused(
        &self,
        action: &'static str,
        path: &Path,
        bytes: u64,
        error: io::Error,
    ) -> SpillError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpillError::Full {
                bytes,
                used: self.used(),
                quota: self.quota,
                disk: true,
            },
            _ => SpillError::io(action, path, error),
        }
    }
}

/// The lock dies with the process, so a leftover lock file means nothing.
fn lock(dir: &Path) -> Result<File, SpillError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| SpillError::io("open", &path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SpillError::Locked {
            path: dir.to_owned(),
        }),
        Err(error) => Err(SpillError::io("lock", &path, error.into())),
    }
}

fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_ours = entry.file_name().to_string_lossy().ends_with(SUFFIX);
        if is_ours && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
