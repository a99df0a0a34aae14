//! What an archive says about itself, apart from its metas.

use pitr_env::Clock;
use pitr_format::Ts;
use pitr_format::backup_meta::{self, BackupMetaError, LogBackupMeta};
use pitr_format::start_probe::StartProbe;
use pitr_format::{checkpoint_ts, object_name, start_probe, truncate_safepoint};
use pitr_storage::{Storage, StorageError};

use super::{ATTEMPTS, ArchiveError};
use crate::damage::Damage;
use crate::fetch::get;

/// Facts about the archive as a whole.
#[derive(Clone, Debug)]
pub struct ArchiveInfo {
    /// Where it lies.
    pub uri: String,
    /// `backupmeta`, unless it is missing.
    pub backup_meta: Option<LogBackupMeta>,
    /// Content of the truncate safepoint's object; zero if there is none.
    pub truncate_safepoint: Ts,
    /// Largest global checkpoint.
    pub log_max: Option<Ts>,
    /// What the first `log start` found in the ranges, if it looked.
    pub start_probe: Option<StartProbe>,
    /// Objects beside the checkpoints that are not 8 bytes long.
    pub bad_checkpoints: Vec<String>,
    /// Migrations of other tools: they truncated metas without a trace in them, moved records into
    /// SST files, or registered data that never was in the log.
    pub migrations: Vec<String>,
}

impl ArchiveInfo {
    /// Reads the objects at the root and the checkpoints, no `.meta`.
    pub async fn read(
        storage: &dyn Storage,
        clock: &dyn Clock,
    ) -> Result<ArchiveInfo, ArchiveError> {
        let root = Root { storage, clock };
        let (log_max, bad_checkpoints) = root.checkpoints().await?;
        Ok(ArchiveInfo {
            uri: storage.uri(),
            backup_meta: root.backup_meta().await?,
            truncate_safepoint: root.safepoint().await?,
            log_max,
            start_probe: root.start_probe().await?,
            bad_checkpoints,
            migrations: root.migrations().await?,
        })
    }

    /// The earliest start of a restore: the later of the log's start and the truncate safepoint.
    pub fn log_min(&self) -> Ts {
        let start = self.backup_meta.as_ref().map_or(Ts::ZERO, |m| m.start_ts);
        start.max(self.truncate_safepoint)
    }

    /// Whether the ranges were empty when the log began, so that the log alone is everything.
    pub fn proven_empty(&self) -> bool {
        let (Some(probe), Some(meta)) = (&self.start_probe, &self.backup_meta) else {
            return false;
        };
        // After a truncation the log no longer reaches back to that beginning.
        probe.empty && probe.start_ts == meta.start_ts && self.log_min() == meta.start_ts
    }

    /// What a restore would miss.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.backup_meta.is_none() {
            out.push(
                "no `backupmeta`: the start of the log and its cluster are unknown".to_owned(),
            );
        }
        if self.log_max.is_none() {
            out.push(
                "no `.ts` object: nothing says up to which time the log is complete".to_owned(),
            );
        }
        if let Some(first) = self.migrations.first() {
            out.push(format!(
                "{first}: another tool changed the archive by migrations, which are not read: \
                 records may be missing from the log, and a restore is refused"
            ));
        }
        let ignored = |path: &String| format!("{path} is not a checkpoint of 8 bytes; ignored");
        out.extend(self.bad_checkpoints.iter().map(ignored));
        out
    }
}

/// Objects that describe an archive as a whole.
pub(super) struct Root<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) clock: &'a dyn Clock,
}

impl Root<'_> {
    /// The object, or `None` when it does not exist.
    async fn optional(&self, path: &str) -> Result<Option<bytes::Bytes>, StorageError> {
        match get(self.storage, self.clock, path, ATTEMPTS).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn migrations(&self) -> Result<Vec<String>, StorageError> {
        let listed = self.storage.list(object_name::MIGRATION_DIR).await?;
        Ok(listed.into_iter().map(|object| object.path).collect())
    }

    async fn backup_meta(&self) -> Result<Option<LogBackupMeta>, ArchiveError> {
        let path = object_name::BACKUP_META;
        let Some(bytes) = self.optional(path).await? else {
            return Ok(None);
        };
        match backup_meta::decode(&bytes) {
            Ok(meta) => Ok(Some(meta)),
            Err(error @ BackupMetaError::Snapshot { .. }) => Err(ArchiveError::NotALog {
                uri: self.storage.uri(),
                error,
            }),
            Err(error) => Err(Damage::new(path, error).into()),
        }
    }

    async fn checkpoints(&self) -> Result<(Option<Ts>, Vec<String>), StorageError> {
        let (mut max, mut bad) = (None, Vec::new());
        for object in self.storage.list(object_name::CHECKPOINT_DIR).await? {
            if !object.path.ends_with(object_name::CHECKPOINT_SUFFIX) {
                continue;
            }
            // Its writer may replace or remove it meanwhile.
            let Some(bytes) = self.optional(&object.path).await? else {
                continue;
            };
            match checkpoint_ts::decode(&bytes) {
                Ok(ts) => max = max.max(Some(ts)),
                Err(_) => bad.push(object.path),
            }
        }
        Ok((max, bad))
    }

    pub(super) async fn safepoint(&self) -> Result<Ts, ArchiveError> {
        let mut max = Ts::ZERO;
        let spellings = [
            object_name::TRUNCATE_SAFEPOINT,
            object_name::TRUNCATE_SAFEPOINT_AS_DOCUMENTED,
        ];
        for path in spellings {
            let Some(bytes) = self.optional(path).await? else {
                continue;
            };
            let safepoint = truncate_safepoint::decode(&bytes).map_err(|e| Damage::new(path, e))?;
            max = max.max(safepoint);
        }
        Ok(max)
    }

    async fn start_probe(&self) -> Result<Option<StartProbe>, ArchiveError> {
        let path = object_name::START_PROBE;
        let Some(bytes) = self.optional(path).await? else {
            return Ok(None);
        };
        Ok(Some(
            start_probe::decode(&bytes).map_err(|e| Damage::new(path, e))?,
        ))
    }
}
