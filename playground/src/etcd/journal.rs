//! The durable form of the key space: one JSON line per revision or lease change, synced before
//! the change is answered.
//!
//! A line that `kill -9` cut short at the end of the file was never answered, so it is dropped. A
//! bad line anywhere else is damage and refused.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::EtcdError;
use crate::durable;

/// One line. Keys and values are hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// All keys at a revision; only as the first line.
    Snapshot {
        /// The newest revision in it.
        revision: i64,
        /// Every key.
        keys: Vec<SavedKey>,
    },
    /// One revision.
    Change {
        /// Its number.
        revision: i64,
        /// What happened, in order.
        ops: Vec<Op>,
    },
    /// A lease came.
    Grant {
        /// Its id.
        id: i64,
        /// Seconds.
        ttl: i64,
    },
    /// A lease went.
    Revoke {
        /// Its id.
        id: i64,
    },
}

/// A key with everything that a snapshot has to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedKey {
    /// The key, hex.
    pub key: String,
    /// The value, hex.
    pub value: String,
    /// Revision of creation.
    pub created: i64,
    /// Revision of the last change.
    pub modified: i64,
    /// Number of puts since creation.
    pub version: i64,
    /// Lease or 0.
    pub lease: i64,
}

/// One operation of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Set.
    Put {
        /// The key, hex.
        key: String,
        /// The value, hex.
        value: String,
        /// Lease or 0.
        lease: i64,
    },
    /// Remove.
    Delete {
        /// The key, hex.
        key: String,
    },
}

/// The open file, positioned at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Journal {
    /// Opens or creates the file and returns what it holds.
    pub fn open(path: &Path) -> Result<(Self, Vec<Entry>), EtcdError> {
        let io_error = |source| EtcdError::Journal {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error)?;
        if let Some(parent) = path.parent() {
            durable::sync_directory(parent).map_err(io_error)?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error)?;
        let whole = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        let mut entries = Vec::new();
        for (at, line) in bytes[..whole].split_inclusive(|b| *b == b'\n').enumerate() {
            entries.push(
                serde_json::from_slice(line).map_err(|e| EtcdError::Damaged {
                    path: path.to_owned(),
                    line: at + 1,
                    reason: e.to_string(),
                })?,
            );
        }
        let len = whole as u64;
        file.set_len(len).map_err(io_error)?;
        file.seek(SeekFrom::Start(len)).map_err(io_error)?;
        let path = path.to_owned();
        Ok((Journal { path, file, len }, entries))
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Makes `entries` durable, all or none.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), EtcdError> {
        let bytes = to_lines(entries);
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(source) => {
                // Half a line must not stay in front of the next one.
                let rewound = self
                    .file
                    .set_len(self.len)
                    .and_then(|()| self.file.seek(SeekFrom::Start(self.len)));
                Err(self.error(rewound.err().unwrap_or(source)))
            }
        }
    }

    /// Replaces the whole file by `entries`.
    pub fn rewrite(self, entries: &[Entry]) -> Result<Self, EtcdError> {
        let path = self.path.clone();
        durable::replace(&path, &to_lines(entries)).map_err(|source| self.error(source))?;
        drop(self);
        Ok(Journal::open(&path)?.0)
    }

    fn error(&self, source: io::Error) -> EtcdError {
        EtcdError::Journal {
            path: self.path.clone(),
            source,
        }
    }

    /// The error for a line that is well-formed but makes no sense.
    pub fn damaged(&self, line: usize, reason: impl Into<String>) -> EtcdError {
        EtcdError::Damaged {
            path: self.path.clone(),
            line,
            reason: reason.into(),
        }
    }
}

fn to_lines(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        // Strings and integers only: serialisation cannot fail.
        bytes.extend(serde_json::to_vec(entry).unwrap_or_default());
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(id: i64) -> Entry {
        Entry::Grant { id, ttl: 5 }
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.jsonl");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&[grant(1), grant(2)]).unwrap();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"Grant\":{\"id\":3");
        std::fs::write(&path, bytes).unwrap();
        let (mut journal, entries) = Journal::open(&path).unwrap();
        assert_eq!(entries, [grant(1), grant(2)]);
        journal.append(&[grant(4)]).unwrap();
        let (_, entries) = Journal::open(&path).unwrap();
        assert_eq!(entries, [grant(1), grant(2), grant(4)]);
    }

    #[test]
    fn a_bad_line_in_the_middle_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.jsonl");
        std::fs::write(
            &path,
            b"{\"Revoke\":{\"id\":1}}\nnonsense\n{\"Revoke\":{\"id\":2}}\n",
        )
        .unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(
            matches!(error, EtcdError::Damaged { line: 2, .. }),
            "{error}"
        );
    }
}
