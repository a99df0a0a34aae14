//! Temporary files for what has no room in memory, under one disk quota.
//!
//! A [`SpillDir`] belongs to one process at a time: it holds a lock on the directory, and what a
//! dead process left there is removed when it is opened. A [`SpillFile`] is appended to by one
//! owner; every append returns an [`Extent`], which is how the bytes are read back. A file is
//! removed, and its bytes are given back to the quota, when its owner and the last of its extents
//! are gone.
//!
//! Nothing here is durable and nothing is synced: after a crash the rows are read again from
//! their source. But what is read back is what was written: an extent remembers the CRC-64 of its
//! bytes and refuses others.

mod dir;
mod file;

pub use dir::SpillDir;
pub use file::{Extent, SpillFile};

use std::io;
use std::path::{Path, PathBuf};

/// Why bytes could not be spilled or read back.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The quota or the disk is full.
    #[error(
        "no room for {bytes} bytes of temporary files: {used} of {quota} bytes are used{}",
        if *.disk { ", and the disk is full" } else { "" }
    )]
    Full {
        /// Bytes that had no room.
        bytes: u64,
        /// Bytes in temporary files.
        used: u64,
        /// The quota.
        quota: u64,
        /// Whether the disk refused and not the quota.
        disk: bool,
    },
    /// Another process holds the directory.
    #[error("temporary directory {path} is in use by another process: give each its own")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The bytes on disk are not those that were written.
    #[error(
        "{path}: {len} bytes at offset {offset} are not those that were written; \
         is somebody else writing there, or is the disk damaged?"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the extent begins.
        offset: u64,
        /// Its length.
        len: u64,
    },
}

impl SpillError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        SpillError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether room may come when other bytes are given back.
    pub fn is_full(&self) -> bool {
        matches!(self, SpillError::Full { .. })
    }
}

#[cfg(test)]
mod tests;
