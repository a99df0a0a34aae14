//! One temporary file and the extents of it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{SpillDir, SpillError};

/// Bytes read at a time where no caller needs them at once.
const PIECE: usize = 256 << 10;

/// What the owner of a file and its extents share; the last of them removes the file.
#[derive(Debug)]
struct Shared {
    dir: Arc<SpillDir>,
    path: PathBuf,
    file: Arc<File>,
    /// Bytes taken from the quota.
    taken: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            // The next start removes it; until then it takes room that the quota does not count.
            tracing::warn!(path = %self.path.display(), %error, "a temporary file stays");
        }
        self.dir.give_back(*self.taken.get_mut());
    }
}

/// A temporary file in the making. Dropping it leaves the file to its extents.
#[derive(Debug)]
pub struct SpillFile {
    shared: Arc<Shared>,
    len: u64,
}

impl SpillFile {
    pub(super) fn new(dir: Arc<SpillDir>, path: PathBuf, file: File) -> Self {
        SpillFile {
            shared: Arc::new(Shared {
                dir,
                path,
                file: Arc::new(file),
                taken: AtomicU64::new(0),
            }),
            len: 0,
        }
    }

    /// Writes `bytes` behind what is there. Blocks on the disk. After an error the file holds
    /// what it held before, and the caller still has the bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<Extent, SpillError> {
        self.append_parts([bytes])
    }

    /// [`SpillFile::append`] of several pieces as one extent.
    pub fn append_parts<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
    ) -> Result<Extent, SpillError> {
        let parts = parts.into_iter();
        let len = parts.clone().map(|part| part.len() as u64).sum();
        let shared = &self.shared;
        shared.dir.take(len)?;
        let mut crc = crc64fast::Digest::new();
        let mut at = self.len;
        for part in parts {
            crc.write(part);
            if let Err(error) = shared.file.write_all_at(part, at) {
                shared.dir.give_back(len);
                return Err(shared.dir.refused("write", &shared.path, len, error));
            }
            at += part.len() as u64;
        }
        shared.taken.fetch_add(len, Ordering::AcqRel);
        let offset = std::mem::replace(&mut self.len, at);
        Ok(Extent {
            shared: Arc::clone(shared),
            offset,
            len,
            crc64: crc.sum64(),
        })
    }

    /// Bytes written.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Bytes in a temporary file; clones are the same bytes. Keeps the file, until the last one goes.
#[derive(Clone, Debug)]
pub struct Extent {
    shared: Arc<Shared>,
    offset: u64,
    len: u64,
    crc64: u64,
}

impl Extent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The open file, for readers of their own; they keep the extent for as long as they read,
    /// since the quota counts the file no longer once it is gone.
    pub fn file(&self) -> &Arc<File> {
        &self.shared.file
    }

    /// Where in the file the bytes are.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// CRC-64/XZ of the bytes as they were written.
    pub fn crc64(&self) -> u64 {
        self.crc64
    }

    /// The bytes, proven. Blocks on the disk; the caller has room for [`Extent::len`] bytes.
    pub fn read(&self) -> Result<Bytes, SpillError> {
        let mut bytes = vec![0; self.len as usize];
        self.fill(&mut bytes, self.offset)?;
        let mut crc = crc64fast::Digest::new();
        crc.write(&bytes);
        self.proven(&crc)?;
        Ok(bytes.into())
    }

    /// Reads all bytes in pieces and proves that they are those that were written. Blocks.
    pub fn verify(&self) -> Result<(), SpillError> {
        let mut piece = vec![0; PIECE.min(self.len as usize)];
        let mut crc = crc64fast::Digest::new();
        let mut range = self.range();
        while range.start < range.end {
            let len = piece.len().min((range.end - range.start) as usize);
            self.fill(&mut piece[..len], range.start)?;
            crc.write(&piece[..len]);
            range.start += len as u64;
        }
        self.proven(&crc)
    }

    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<(), SpillError> {
        let read = self.shared.file.read_exact_at(bytes, at);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(),
            _ => SpillError::io("read", &self.shared.path, error),
        })
    }

    fn proven(&self, crc: &crc64fast::Digest) -> Result<(), SpillError> {
        match crc.sum64() == self.crc64 {
            true => Ok(()),
            false => Err(self.damaged()),
        }
    }

    /// The error of bytes that are not those that were written.
    pub fn damaged(&self) -> SpillError {
        SpillError::Damaged {
            path: self.shared.path.clone(),
            offset: self.offset,
            len: self.len,
        }
    }
}
