//! What PD remembers over restarts: one JSON file, replaced as a whole on each change.
//!
//! Invariant: memory never runs ahead of the file; a change that could not be written is not made.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use pitr_format::Class;
use serde::{Deserialize, Serialize};

use crate::durable;

/// Ids below belong to the first region, its peer and the store; see [`StateFile::alloc_ids`].
const FIRST_FREE_ID: u64 = 1000;

/// Content of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The cluster's id.
    pub cluster_id: u64,
    /// No timestamp with this physical part (ms) or a later one was handed out yet.
    pub tso_until_ms: u64,
    /// Next id that was not handed out.
    pub next_id: u64,
    /// The GC safe point: versions below may be gone.
    pub gc_safe_point: u64,
    /// Nobody reads below; only with GC states.
    #[serde(default)]
    pub txn_safe_point: u64,
    /// Service safe points by service id; with GC states these are the barriers.
    pub services: BTreeMap<String, ServiceEntry>,
    /// Barriers of all keyspaces; only with GC states.
    #[serde(default)]
    pub global_barriers: BTreeMap<String, ServiceEntry>,
}

impl Record {
    /// A new cluster's.
    pub fn new(cluster_id: u64) -> Self {
        Record {
            cluster_id,
            tso_until_ms: 0,
            next_id: FIRST_FREE_ID,
            gc_safe_point: 0,
            txn_safe_point: 0,
            services: BTreeMap::new(),
            global_barriers: BTreeMap::new(),
        }
    }
}

/// Safe point of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Nothing at or above may be collected.
    pub safe_point: u64,
    /// Unix seconds; `i64::MAX` never expires.
    pub expires_at: i64,
}

/// Why PD's file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("PD state {path}: {source}; check the disk and the permissions of the data directory")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("PD state {path} is damaged: {source}; use another data directory")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The data belong to another cluster.
    #[error("PD state {path} belongs to cluster {found}, not {wanted}; use another data directory")]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Id in the file.
        found: u64,
        /// Id asked for.
        wanted: u64,
    },
}

impl StateError {
    /// Disk trouble may pass; the rest needs a human.
    pub fn class(&self) -> Class {
        match self {
            StateError::Io { .. } => Class::Retry,
            StateError::Damaged { .. } | StateError::OtherCluster { .. } => Class::Permanent,
        }
    }
}

/// The file and its content.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    record: Mutex<Record>,
}

impl StateFile {
    /// Opens `dir/pd.json` or creates it with `cluster_id` (random if none is given).
    pub fn open(dir: &Path, cluster_id: Option<u64>) -> Result<Self, StateError> {
        let path = dir.join("pd.json");
        let io_error = |source| StateError::Io {
            path: path.clone(),
            source,
        };
        let record = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice::<Record>(&bytes).map_err(|source| StateError::Damaged {
                    path: path.clone(),
                    source,
                })?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(dir).map_err(io_error)?;
                let record = Record::new(cluster_id.unwrap_or_else(random_cluster_id));
                durable::replace(&path, &to_bytes(&record)).map_err(io_error)?;
                record
            }
            Err(e) => return Err(io_error(e)),
        };
        match cluster_id {
            Some(wanted) if wanted != record.cluster_id => Err(StateError::OtherCluster {
                path,
                found: record.cluster_id,
                wanted,
            }),
            _ => Ok(StateFile {
                path,
                record: Mutex::new(record),
            }),
        }
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.record.lock().cluster_id
    }

    /// Looks at the content.
    pub fn read<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.record.lock())
    }

    /// Changes the content and makes the change durable before it is visible to anybody.
    pub fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> Result<T, StateError> {
        let mut current = self.record.lock();
        let mut next = current.clone();
        let answer = change(&mut next);
        durable::replace(&self.path, &to_bytes(&next)).map_err(|source| StateError::Io {
            path: self.path.clone(),
            source,
        })?;
        *current = next;
        Ok(answer)
    }

    /// Hands out `count` ids that were never handed out before; returns the largest, as
    /// `pdpb.PD/AllocID` does.
    pub fn alloc_ids(&self, count: u32) -> Result<u64, StateError> {
        self.update(|record| {
            record.next_id += u64::from(count.max(1));
            record.next_id - 1
        })
    }
}

fn to_bytes(record: &Record) -> Vec<u8> {
    // A map with string keys and integers: serialisation cannot fail.
    serde_json::to_vec_pretty(record).unwrap_or_default()
}

fn random_cluster_id() -> u64 {
    // PD's ids are below 2^63: some clients keep them in signed integers.
    rand::random::<u64>() >> 1 | 1 << 62
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_the_cluster_id_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateFile::open(dir.path(), None).unwrap();
        let cluster = first.cluster_id();
        let id = first.alloc_ids(3).unwrap();
        drop(first);
        let second = StateFile::open(dir.path(), None).unwrap();
        assert_eq!(second.cluster_id(), cluster);
        assert_eq!(second.alloc_ids(1).unwrap(), id + 1);
    }

    #[test]
    fn a_file_from_before_the_gc_states_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let old =
            r#"{"cluster_id":7,"tso_until_ms":1,"next_id":1000,"gc_safe_point":5,"services":{}}"#;
        std::fs::write(dir.path().join("pd.json"), old).unwrap();
        let state = StateFile::open(dir.path(), None).unwrap();
        let points = state.read(|r| (r.gc_safe_point, r.txn_safe_point));
        assert_eq!(points, (5, 0));
    }

    #[test]
    fn data_of_another_cluster_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateFile::open(dir.path(), Some(7)).unwrap());
        let error = StateFile::open(dir.path(), Some(8)).unwrap_err();
        assert!(matches!(
            error,
            StateError::OtherCluster {
                found: 7,
                wanted: 8,
                ..
            }
        ));
    }

    #[test]
    fn a_change_that_cannot_be_written_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::open(dir.path(), None).unwrap();
        std::fs::create_dir(dir.path().join("pd.new")).unwrap();
        assert!(state.update(|r| r.gc_safe_point = 9).is_err());
        assert_eq!(state.read(|r| r.gc_safe_point), 0);
    }
}
