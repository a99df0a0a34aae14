//! The objects at the root of an archive: who owns it, how far it reaches, and how a new one is
//! begun. `log start` writes them as BR does (pingcap/tidb `br/pkg/task/stream.go`), `serve` and
//! `log metadata` read them.

use bytes::Bytes;
use pitr_env::SystemClock;
use pitr_format::backup_meta::{self, BackupMetaError, LogBackupMeta, SCHEMA_VERSION};
use pitr_format::start_probe::{self, StartProbe};
use pitr_format::{lock, object_name};
use pitr_restore_worker::archive::{ArchiveError, ArchiveInfo};
use pitr_storage::{SharedStorage, Storage, StorageErrorKind};

use crate::codes::Code;
use crate::failure::Failure;

/// What stands in a storage that a task wants to write to.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing, or the lock of a start that was interrupted before it did anything else.
    Nothing {
        /// `backup.lock` is there already.
        locked: bool,
    },
    /// The archive of an earlier task.
    Archive(Box<ArchiveInfo>),
}

/// Looks into a storage without changing it.
pub async fn look(storage: &SharedStorage) -> Result<Found, Failure> {
    let locked = head(storage, object_name::BACKUP_LOCK).await?;
    let has_meta = head(storage, object_name::BACKUP_META).await?;
    if has_meta {
        return Ok(Found::Archive(Box::new(info(storage.as_ref()).await?)));
    }
    let objects = match storage.list("v1/").await {
        Ok(objects) => objects,
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    match objects.first() {
        None => Ok(Found::Nothing { locked }),
        Some(object) => Err(Failure::new(
            Code::UnknownLog,
            "the storage holds log files of an unknown task: `backupmeta` is missing",
        )
        .at(format!("{}, for example {}", storage.uri(), object.path))
        .effect("nothing was changed")
        .action("give an empty storage, or bring `backupmeta` back from a copy")),
    }
}

/// Everything the archive says about itself.
pub async fn info(storage: &dyn Storage) -> Result<ArchiveInfo, Failure> {
    Ok(ArchiveInfo::read(storage, &SystemClock::new()).await?)
}

/// The cluster that the archive belongs to. A missing `backupmeta` is a failure: the storage may
/// not be mounted, and writing into the hole would split the log.
pub async fn cluster_of(storage: &SharedStorage) -> Result<u64, Failure> {
    match storage.get(object_name::BACKUP_META).await {
        Ok(bytes) => backup_meta::decode(&bytes)
            .map(|meta| meta.cluster_id)
            .map_err(|error| {
                let code = match error {
                    BackupMetaError::Damaged(_) => Code::ArchiveDamaged,
                    BackupMetaError::Snapshot { .. } | BackupMetaError::TooLarge(_) => {
                        Code::NotALog
                    }
                };
                Failure::from_error(code, &error).at(format!(
                    "{} in {}",
                    object_name::BACKUP_META,
                    storage.uri()
                ))
            }),
        Err(error) if error.is_not_found() => Err(Failure::new(
            Code::NoBackupMeta,
            "the task's storage has no `backupmeta`",
        )
        .at(storage.uri())
        .effect("nothing is written there; the checkpoint stays")
        .action("mount the storage; if the task was not begun by `log start`, begin it so")),
        Err(error) => Err(error.into()),
    }
}

/// The archive belongs to another cluster.
pub fn other_cluster(uri: &str, found: u64, own: u64) -> Failure {
    Failure::new(
        Code::OtherClustersArchive,
        format!("the archive belongs to cluster {found}, this cluster is {own}"),
    )
    .at(uri)
    .effect("nothing was written")
    .action("give each cluster a storage of its own")
}

/// Claims an empty storage: writes `backup.lock` unless an interrupted start of ours did.
pub async fn claim(storage: &SharedStorage, locked: bool) -> Result<(), Failure> {
    if locked {
        return Ok(());
    }
    let text = Bytes::from_static(lock::TEXT.as_bytes());
    match storage.put_new(object_name::BACKUP_LOCK, text.into()).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind == StorageErrorKind::AlreadyExists => Err(Failure::new(
            Code::ArchiveClaimed,
            "another task has just claimed the storage",
        )
        .at(storage.uri())
        .effect("nothing was changed")
        .action("give another storage")),
        Err(error) => Err(error.into()),
    }
}

/// Writes what the start found and then `backupmeta`, whose presence makes it an archive.
pub async fn create(
    storage: &SharedStorage,
    cluster_id: u64,
    cluster_version: &str,
    probe: &StartProbe,
) -> Result<(), Failure> {
    let bytes =
        start_probe::encode(probe).map_err(|error| Failure::from_error(Code::Internal, &error))?;
    storage.put(object_name::START_PROBE, bytes.into()).await?;
    let meta = LogBackupMeta {
        cluster_id,
        cluster_version: cluster_version.to_owned(),
        start_ts: probe.start_ts,
        backup_schema_version: SCHEMA_VERSION,
    };
    let bytes = backup_meta::encode(&meta);
    storage.put(object_name::BACKUP_META, bytes.into()).await?;
    Ok(())
}

async fn head(storage: &SharedStorage, path: &str) -> Result<bool, Failure> {
    match storage.head(path).await {
        Ok(found) => Ok(found.is_some()),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        let code = match &error {
            ArchiveError::NotALog { .. } => Code::NotALog,
            ArchiveError::Damage(_) => Code::ArchiveDamaged,
            ArchiveError::Storage(error) => crate::storage::code_of_storage(error.kind),
        };
        Failure::from_error(code, &error)
    }
}
