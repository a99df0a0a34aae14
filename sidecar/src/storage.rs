//! Opening the storage of an archive, and how its errors end a verb.

use pitr_proto::backup::{StreamBackupTaskInfo, storage_backend::Backend};
use pitr_storage::{SharedStorage, StorageError, StorageErrorKind};

use crate::failure::{Exit, Failure};

/// Opens an archive that exists, for reading.
pub fn open_existing(url: &str) -> Result<SharedStorage, Failure> {
    Ok(pitr_storage::open_existing_url(url)?)
}

/// Opens the storage that a task names.
pub fn open_task(info: &StreamBackupTaskInfo) -> Result<SharedStorage, StorageError> {
    pitr_storage::open_backend(&info.storage.clone().unwrap_or_default())
}

/// The storage of a task for display: kind and place, nothing else.
pub fn uri_of_task(info: &StreamBackupTaskInfo) -> String {
    match info.storage.as_ref().and_then(|s| s.backend.as_ref()) {
        Some(Backend::Local(local)) => format!("local://{}", local.path),
        Some(Backend::S3(s3)) => format!("s3://{}/{}", s3.bucket, s3.prefix),
        Some(Backend::Gcs(gcs)) => format!("gcs://{}/{}", gcs.bucket, gcs.prefix),
        Some(Backend::AzureBlobStorage(azure)) => {
            format!("azure://{}/{}", azure.bucket, azure.prefix)
        }
        Some(Backend::Noop(_)) => "noop://".to_owned(),
        Some(Backend::Hdfs(_)) => "hdfs://".to_owned(),
        Some(Backend::CloudDynamic(_)) => "cloud storage".to_owned(),
        None => "none".to_owned(),
    }
}

/// The exit code that a storage error means.
pub fn exit_of_storage(kind: StorageErrorKind) -> Exit {
    match kind {
        StorageErrorKind::NotFound => Exit::NotFound,
        StorageErrorKind::PermissionDenied => Exit::Auth,
        StorageErrorKind::AlreadyExists => Exit::Conflict,
        StorageErrorKind::InvalidConfig => Exit::Usage,
        StorageErrorKind::OutOfRange => Exit::Damage,
        StorageErrorKind::InvalidPath => Exit::Internal,
        StorageErrorKind::NoSpace | StorageErrorKind::Transient => Exit::TryAgain,
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::from_error(exit_of_storage(error.kind), &error).at(error.uri.clone())
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::{S3, StorageBackend};

    use super::*;

    #[test]
    fn the_storage_of_a_task_is_shown_without_its_keys() {
        let s3 = S3 {
            bucket: "b".to_owned(),
            prefix: "p".to_owned(),
            access_key: "AK".to_owned(),
            secret_access_key: "SK".to_owned(),
            ..S3::default()
        };
        let info = StreamBackupTaskInfo {
            storage: Some(StorageBackend {
                backend: Some(Backend::S3(s3)),
            }),
            ..StreamBackupTaskInfo::default()
        };
        assert_eq!(uri_of_task(&info), "s3://b/p");
    }

    #[test]
    fn a_storage_that_refuses_us_is_an_authorisation_failure() {
        assert_eq!(
            exit_of_storage(StorageErrorKind::PermissionDenied),
            Exit::Auth
        );
        assert_eq!(exit_of_storage(StorageErrorKind::Transient), Exit::TryAgain);
    }
}
