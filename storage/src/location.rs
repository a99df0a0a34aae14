//! Where an archive is: from the URL of a command line, or from the `StorageBackend` message that
//! `log start` puts into the task, to an opened storage.
//!
//! | URL | meaning |
//! |---|---|
//! | `local:///abs/dir`, `file:///abs/dir`, `/abs/dir` | a directory of this machine |
//! | `memory://NAME`, `memory://` | memory of this process; one storage a name |
//! | `s3://BUCKET/PREFIX?…`, `gcs://`, `gs://`, `azure://`, `azblob://` | object stores, with BR's options: [`crate::cloud`] |
//! | `hdfs://`, `ks3://`, `oss://` | known, refused |

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use pitr_proto::backup::{Local, StorageBackend, storage_backend::Backend};

use crate::cloud::{CloudLocation, CloudOptions};
use crate::error::{Context, StorageErrorKind};
use crate::local::LocalStorage;
use crate::memory::MemoryStorage;
use crate::redact::redact_url;
use crate::{Result, SharedStorage, cloud};

/// What a path must hide to be read back from a URL unchanged.
pub(crate) const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%').add(b'?').add(b'#');

/// Kinds of storage that archives of other tools may lie on.
const NOT_IN_THIS_BUILD: [&str; 3] = ["hdfs", "ks3", "oss"];

/// A place for an archive that this build can open.
#[derive(Clone, Debug, PartialEq)]
pub enum Location {
    /// An absolute directory without `.` and `..`.
    Local(PathBuf),
    /// A named storage in this process's memory; the empty name is a new one each time.
    Memory(String),
    /// A prefix of a bucket.
    Cloud(Box<CloudLocation>),
}

impl Location {
    /// Reads a URL or an absolute path.
    pub fn parse(url: &str) -> Result<Self> {
        let shown = redact_url(url);
        let context = Context {
            action: "open",
            path: "",
            uri: &shown,
        };
        let invalid = |why: &str| Err(context.fail(StorageErrorKind::InvalidConfig, why));
        let Some((scheme, rest)) = url.split_once("://") else {
            return local_directory(url, context);
        };
        let scheme = scheme.to_ascii_lowercase();
        if let Some(place) = cloud::parse(&scheme, rest, context) {
            return Ok(Self::Cloud(Box::new(place?)));
        }
        match scheme.as_str() {
            "local" | "file" => {
                if rest.contains(['?', '#']) {
                    return invalid("a local storage takes no options; write '?' as %3F");
                }
                let Ok(path) = percent_decode_str(rest).decode_utf8() else {
                    return invalid("the path is not UTF-8");
                };
                local_directory(&path, context)
            }
            "memory" if rest.contains(['/', '?', '#']) => {
                invalid("a memory storage has a plain name: memory://NAME")
            }
            "memory" => Ok(Self::Memory(rest.to_owned())),
            known if NOT_IN_THIS_BUILD.contains(&known) => not_in_this_build(known, context),
            _ => invalid(
                "unknown scheme; use local:///absolute/directory, s3://, gcs:// or azure://",
            ),
        }
    }

    /// Reads the message that a task carries.
    pub fn from_backend(backend: &StorageBackend) -> Result<Self> {
        let at = |uri| Context {
            action: "open",
            path: "",
            uri,
        };
        match &backend.backend {
            Some(Backend::Local(local)) => local_directory(&local.path, at(&local.path)),
            Some(cloud @ (Backend::S3(_) | Backend::Gcs(_) | Backend::AzureBlobStorage(_))) => {
                Ok(Self::Cloud(Box::new(CloudLocation::from_backend(cloud)?)))
            }
            Some(Backend::Hdfs(_)) => not_in_this_build("hdfs", at("hdfs://")),
            Some(Backend::CloudDynamic(_)) => {
                not_in_this_build("cloud_dynamic", at("(a cloud_dynamic backend)"))
            }
            Some(Backend::Noop(_)) => Err(at("noop://").fail(
                StorageErrorKind::InvalidConfig,
                "a noop storage keeps nothing, so nothing could be restored",
            )),
            None => Err(at("(no backend)").fail(
                StorageErrorKind::InvalidConfig,
                "the task names no storage; start it again with a storage",
            )),
        }
    }

    /// The message for a task, with the credentials that the URL names, as BR registers it; those
    /// of the environment stay where they are. Memory of one process means nothing to another one.
    pub fn to_backend(&self) -> Result<StorageBackend> {
        let path = match self {
            Self::Local(path) => path.to_string_lossy().into_owned(),
            Self::Cloud(place) => return Ok(place.to_backend()),
            Self::Memory(_) => {
                let uri = self.uri();
                let context = Context {
                    action: "open",
                    path: "",
                    uri: &uri,
                };
                let why = "memory of this process cannot be named in a task";
                return Err(context.fail(StorageErrorKind::InvalidConfig, why));
            }
        };
        Ok(StorageBackend {
            backend: Some(Backend::Local(Local { path })),
        })
    }

    /// The URL that [`Location::parse`] reads back; a cloud's has its place, not its secrets.
    pub fn uri(&self) -> String {
        match self {
            Self::Local(path) => {
                format!(
                    "local://{}",
                    utf8_percent_encode(&path.to_string_lossy(), IN_PATH)
                )
            }
            Self::Memory(name) => format!("memory://{name}"),
            Self::Cloud(place) => place.uri(),
        }
    }

    /// Opens it for reading and writing. A missing directory is no error: a write creates it.
    /// `options` matter to clouds only.
    pub fn open(&self, options: &CloudOptions) -> Result<SharedStorage> {
        Ok(match self {
            Self::Local(root) => Arc::new(LocalStorage::open(root.clone(), self.uri())?),
            Self::Memory(name) => Arc::new(MemoryStorage::open(name)),
            Self::Cloud(place) => place.open(options)?,
        })
    }

    /// Opens it for reading: a directory that does not exist is
    /// [`StorageErrorKind::NotFound`], one that is none is [`StorageErrorKind::InvalidConfig`].
    /// A cloud tells at the first call.
    pub fn open_existing(&self, options: &CloudOptions) -> Result<SharedStorage> {
        if let Self::Local(root) = self {
            LocalStorage::open(root.clone(), self.uri())?.check_root("open")?;
        }
        self.open(options)
    }
}

/// Opens the storage at a URL for reading and writing, see [`Location::open`].
pub fn open_url(url: &str) -> Result<SharedStorage> {
    Location::parse(url)?.open(&CloudOptions::default())
}

/// Opens the storage at a URL for reading, see [`Location::open_existing`].
pub fn open_existing_url(url: &str) -> Result<SharedStorage> {
    Location::parse(url)?.open_existing(&CloudOptions::default())
}

/// Opens the storage of a task for reading and writing.
pub fn open_backend(backend: &StorageBackend) -> Result<SharedStorage> {
    Location::from_backend(backend)?.open(&CloudOptions::default())
}

/// The message that a task carries for the storage at a URL.
pub fn backend_of_url(url: &str) -> Result<StorageBackend> {
    Location::parse(url)?.to_backend()
}

fn local_directory(path: &str, context: Context<'_>) -> Result<Location> {
    let invalid = |why: &str| Err(context.fail(StorageErrorKind::InvalidConfig, why));
    if !path.starts_with('/') {
        // `local://dir/sub` would mean a host `dir`, which is never what was meant.
        return invalid("use an absolute path: local:///directory or /directory");
    }
    if path.chars().any(char::is_control) {
        return invalid("control characters in a path");
    }
    let path = Path::new(path);
    if path.components().any(|part| part == Component::ParentDir) {
        return invalid("'..' is not allowed in the path of a storage");
    }
    // Collecting drops `.` parts and doubled or trailing slashes.
    Ok(Location::Local(path.components().collect()))
}

fn not_in_this_build<T>(scheme: &str, context: Context<'_>) -> Result<T> {
    let why =
        format!("{scheme} storage is not supported by this build; use s3, gcs, azure or local");
    Err(context.fail(StorageErrorKind::InvalidConfig, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pitr_proto::backup::{CloudDynamic, Hdfs, Noop};

    fn kind_of(url: &str) -> StorageErrorKind {
        Location::parse(url).unwrap_err().kind
    }

    #[test]
    fn a_directory_has_three_spellings() {
        let expected = Location::Local(PathBuf::from("/data/archive"));
        for url in [
            "local:///data/archive",
            "file:///data/archive/",
            "/data/archive",
            "/data/./archive//",
            "LOCAL:///data/%61rchive",
        ] {
            assert_eq!(Location::parse(url).unwrap(), expected, "{url}");
        }
    }

    #[test]
    fn a_uri_reads_back_whatever_the_directory_is_called() {
        for path in ["/a b/100%/ü?#\"", "/%41", "/plain"] {
            let location = Location::Local(PathBuf::from(path));
            assert_eq!(
                Location::parse(&location.uri()).unwrap(),
                location,
                "{path}"
            );
            let backend = location.to_backend().unwrap();
            assert_eq!(
                Location::from_backend(&backend).unwrap(),
                location,
                "{path}"
            );
        }
    }

    #[test]
    fn paths_that_are_relative_or_climb_are_refused() {
        for url in [
            "",
            "archive",
            "./archive",
            "local://archive/sub",
            "local://",
            "/data/../etc",
            "local:///data/%2e%2e/etc",
            "local:///a?b=c",
            "memory://a/b",
            "ftp://host/dir",
        ] {
            assert_eq!(kind_of(url), StorageErrorKind::InvalidConfig, "{url:?}");
        }
    }

    #[test]
    fn storages_of_other_kinds_are_refused_without_showing_their_secrets() {
        for scheme in NOT_IN_THIS_BUILD {
            let url = format!("{scheme}://bucket/p?secret-access-key=canary42");
            let error = Location::parse(&url).unwrap_err();
            assert_eq!(error.kind, StorageErrorKind::InvalidConfig);
            let text = format!("{error} {error:?}");
            assert!(text.contains("not supported by this build"), "{text}");
            assert!(
                text.contains("bucket") && !text.contains("canary42"),
                "{text}"
            );
        }
        let hdfs = Hdfs {
            remote: "hdfs://canary42".into(),
        };
        let dynamic = CloudDynamic::default();
        for backend in [Backend::Hdfs(hdfs), Backend::CloudDynamic(dynamic)] {
            let backend = Some(backend);
            let error = Location::from_backend(&StorageBackend { backend }).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("not supported by this build"), "{text}");
            assert!(!text.contains("canary42"), "{text}");
        }
    }

    #[test]
    fn a_task_without_a_storage_that_keeps_data_is_refused() {
        for backend in [None, Some(Backend::Noop(Noop {}))] {
            let error = Location::from_backend(&StorageBackend { backend }).unwrap_err();
            assert_eq!(error.kind, StorageErrorKind::InvalidConfig);
        }
        assert_eq!(
            backend_of_url("memory://x").unwrap_err().kind,
            StorageErrorKind::InvalidConfig
        );
    }
}
