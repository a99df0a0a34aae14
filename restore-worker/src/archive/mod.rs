//! An archive opened for reading: what it says about itself, and the metadata of every flush.
//!
//! A missing `backupmeta` or `.ts` is a state, not a failure: the check of an archive works
//! without them, a restore refuses with the reason (see `plan`). A damaged `.meta` is kept as
//! damage, so that the check lists all of them and a plan names the first.

mod info;
mod metas;
mod walk;

use pitr_format::Class;
use pitr_format::backup_meta::BackupMetaError;
use pitr_storage::{SharedStorage, StorageError};

use crate::damage::Damage;
use crate::plan::Slice;
pub use info::ArchiveInfo;
pub use metas::{MetaContent, MetaObject};
pub use walk::{MetaWalk, meta_paths};

/// Attempts of each read.
const ATTEMPTS: u32 = 5;

/// Why an archive cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// `backupmeta` belongs to a snapshot backup.
    #[error("{uri}: {error}; give the storage of the log backup")]
    NotALog {
        /// The archive.
        uri: String,
        /// What lies there.
        error: BackupMetaError,
    },
    /// An object that describes the archive cannot be understood.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ArchiveError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            ArchiveError::Storage(e) => e.class(),
            ArchiveError::NotALog { .. } | ArchiveError::Damage(_) => Class::Permanent,
        }
    }
}

/// An opened archive.
pub struct Archive {
    storage: SharedStorage,
    /// What it says about itself.
    pub info: ArchiveInfo,
    /// Every `.meta` object, by name.
    pub metas: Vec<MetaObject>,
}

impl Archive {
    /// Reads `backupmeta`, checkpoints, safepoint, start probe and all `.meta` objects.
    pub async fn open(storage: SharedStorage) -> Result<Archive, ArchiveError> {
        let mut info = info::read(storage.as_ref()).await?;
        let metas = metas::read_all(storage.as_ref()).await?;
        // A truncation writes its safepoint before it removes anything: whatever was missing from
        // the listing shows now.
        let safepoint = info::read_safepoint(storage.as_ref()).await?;
        info.truncate_safepoint = info.truncate_safepoint.max(safepoint);
        Ok(Archive {
            storage,
            info,
            metas,
        })
    }

    /// Where it lies.
    pub fn storage(&self) -> &SharedStorage {
        &self.storage
    }

    /// Every slice of every `.meta`; the first damaged one is the error.
    pub fn slices(&self) -> Result<Vec<Slice>, Damage> {
        let mut all = Vec::new();
        for meta in &self.metas {
            let content = meta.content.as_ref().map_err(Clone::clone)?;
            all.extend(content.slices.iter().cloned());
        }
        Ok(all)
    }
}
