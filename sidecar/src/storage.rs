//! Opening the storage of an archive, and how its errors end a verb.

use std::error::Error;

use pitr_format::Class;
use pitr_proto::backup::{StreamBackupTaskInfo, storage_backend::Backend};
use pitr_storage::cloud::Secret;
use pitr_storage::{CloudOptions, Location, SharedStorage, StorageError, StorageErrorKind};

use crate::codes::Code;
use crate::failure::{Failure, code_of};

/// Opens an archive that exists, for reading.
pub fn open_existing(url: &str) -> Result<SharedStorage, Failure> {
    Ok(Location::parse(url)?.open_existing(&environment())?)
}

/// Opens a storage for writing; a directory is made by the first write.
pub fn open(url: &str) -> Result<SharedStorage, Failure> {
    Ok(Location::parse(url)?.open(&environment())?)
}

/// Opens the storage that a task names.
pub fn open_task(info: &StreamBackupTaskInfo) -> Result<SharedStorage, StorageError> {
    let backend = info.storage.clone().unwrap_or_default();
    Location::from_backend(&backend)?.open(&environment())
}

/// Credentials of clouds in the variables that the clouds' own tools read; for storages that bring
/// none of their own.
fn environment() -> CloudOptions {
    options_from(&|name| std::env::var(name).ok())
}

fn options_from(read: &dyn Fn(&str) -> Option<String>) -> CloudOptions {
    let text = |name| read(name).filter(|value| !value.is_empty());
    let secret = |name| text(name).map(Secret::new);
    // A file that cannot be read shows as missing credentials at the first call.
    let google = text("GOOGLE_APPLICATION_CREDENTIALS");
    let google = google.and_then(|file| std::fs::read_to_string(file).ok());
    CloudOptions {
        s3_access_key: secret("AWS_ACCESS_KEY_ID"),
        s3_secret_access_key: secret("AWS_SECRET_ACCESS_KEY"),
        s3_session_token: secret("AWS_SESSION_TOKEN"),
        s3_region: text("AWS_REGION").or_else(|| text("AWS_DEFAULT_REGION")),
        gcs_credentials: google.map(Secret::new),
        azure_account: text("AZURE_STORAGE_ACCOUNT"),
        azure_key: secret("AZURE_STORAGE_KEY"),
        azure_sas: secret("AZURE_STORAGE_SAS_TOKEN"),
        ..CloudOptions::default()
    }
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

/// The code that a storage error means.
pub fn code_of_storage(kind: StorageErrorKind) -> Code {
    match kind {
        StorageErrorKind::NotFound => Code::ObjectNotFound,
        StorageErrorKind::PermissionDenied => Code::StorageDenied,
        StorageErrorKind::AlreadyExists => Code::ObjectExists,
        StorageErrorKind::InvalidConfig => Code::BadStorageUrl,
        StorageErrorKind::OutOfRange => Code::ArchiveDamaged,
        StorageErrorKind::InvalidPath => Code::Internal,
        StorageErrorKind::NoSpace => Code::StorageFull,
        StorageErrorKind::Transient => Code::StorageUnreachable,
    }
}

/// The code of an error that may come from a storage, however deep: a refused credential is no fault
/// of ours because a flush met it.
pub fn code_of_cause(error: &(dyn Error + 'static), class: Class) -> Code {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(storage) = error.downcast_ref::<StorageError>() {
            return code_of_storage(storage.kind);
        }
        next = error.source();
    }
    code_of(class)
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::from_error(code_of_storage(error.kind), &error).at(error.uri.clone())
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::{S3, StorageBackend};

    use super::*;
    use crate::failure::Exit;

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
    fn credentials_come_from_the_variables_that_the_clouds_tools_read() {
        let variables = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("id".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("canary42".to_owned()),
            "AWS_SESSION_TOKEN" => Some(String::new()),
            "AWS_DEFAULT_REGION" => Some("eu-west-1".to_owned()),
            _ => None,
        };
        let options = options_from(&variables);
        let shown = |secret: &Option<Secret>| secret.as_ref().map(|s| s.reveal().to_owned());
        assert_eq!(
            shown(&options.s3_secret_access_key).as_deref(),
            Some("canary42")
        );
        assert_eq!(options.s3_session_token, None);
        assert_eq!(options.s3_region.as_deref(), Some("eu-west-1"));
        assert!(!format!("{options:?}").contains("canary42"));
    }

    #[test]
    fn a_storage_that_refuses_us_is_an_authorisation_failure() {
        assert_eq!(
            code_of_storage(StorageErrorKind::PermissionDenied).exit(),
            Exit::Auth
        );
        assert_eq!(
            code_of_storage(StorageErrorKind::Transient).exit(),
            Exit::TryAgain
        );
    }
}
