//! An archive opened for reading: what it says about itself, and the metadata of every flush, which
//! is read meta by meta and never held as a whole.
//!
//! A missing `backupmeta` or `.ts` is a state, not a failure: the check of an archive works
//! without them, a restore refuses with the reason (see `plan`). A damaged `.meta` is
//! found as damage, so that the check lists all of them and a plan names the first.

mod info;
mod metas;
mod walk;

use std::sync::Arc;

use pitr_format::Class;
use pitr_format::backup_meta::BackupMetaError;
use pitr_storage::{SharedStorage, StorageError};

use crate::damage::Damage;
use crate::env::Env;
pub use info::ArchiveInfo;
pub(crate) use metas::read_one;
pub use metas::{MetaContent, MetaObject};
pub(crate) use walk::list;
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
#[derive(Clone)]
pub struct Archive {
    storage: SharedStorage,
    env: Env,
    /// What it says about itself.
    pub info: ArchiveInfo,
}

impl Archive {
    /// Reads `backupmeta`, checkpoints, safepoint and start probe, no `.meta`.
    pub async fn open(storage: SharedStorage, env: Env) -> Result<Archive, ArchiveError> {
        let info = ArchiveInfo::read(storage.as_ref(), env.clock.as_ref()).await?;
        Ok(Archive { storage, env, info })
    }

    /// Where it lies.
    pub fn storage(&self) -> &SharedStorage {
        &self.storage
    }

    /// What it was opened with.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Walks over every `.meta` that there is now.
    pub async fn walk(&self) -> Result<MetaWalk, StorageError> {
        let paths = meta_paths(&self.storage).await?;
        let (storage, clock) = (self.storage.clone(), Arc::clone(&self.env.clock));
        Ok(MetaWalk::over(storage, clock, paths))
    }

    /// Raises the truncate safepoint to the one that is there by now; whether it was lower. A
    /// truncation writes it before it removes anything: what was missing since the archive was
    /// opened shows here.
    pub(crate) async fn raise_safepoint(&mut self) -> Result<bool, ArchiveError> {
        let (storage, clock) = (self.storage.as_ref(), self.env.clock.as_ref());
        let safepoint = info::Root { storage, clock }.safepoint().await?;
        let raised = safepoint > self.info.truncate_safepoint;
        if raised {
            self.info.truncate_safepoint = safepoint;
        }
        Ok(raised)
    }
}
