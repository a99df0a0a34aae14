//! The one error of all storage calls: what was tried, on which object, where, why it failed and
//! what to do. Used by every crate above; the binary maps [`StorageErrorKind`] to exit codes.

use std::error::Error as StdError;
use std::io;

use pitr_format::Class;

/// Why a storage call failed, as far as a caller has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageErrorKind {
    /// No such object, or the archive's root does not exist.
    #[error("not found")]
    NotFound,
    /// The backend refuses this user: mode bits, read-only file system, credentials.
    #[error(
        "permission denied (check the credentials, or the owner, mode and mount of the storage)"
    )]
    PermissionDenied,
    /// `put_new` found an object of that name.
    #[error("an object of that name exists already")]
    AlreadyExists,
    /// The URL or `StorageBackend` cannot be used.
    #[error("invalid storage configuration")]
    InvalidConfig,
    /// The name is none an archive may hold, or a directory stands where the object should.
    #[error("invalid object name")]
    InvalidPath,
    /// The object ends before the wanted range does.
    #[error("the object is shorter than the wanted range")]
    OutOfRange,
    /// The device or a quota is full.
    #[error("no space left (free some or raise the quota; the write is repeated)")]
    NoSpace,
    /// Anything that may go away by itself: I/O errors, timeouts, throttling.
    #[error("the storage failed (the call may be repeated)")]
    Transient,
}

/// A failed storage call. `Clone`, so that one failure can be told to several waiters.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {action} {} in {uri}: {kind}: {detail}", shown(path))]
pub struct StorageError {
    /// What a caller may want to tell apart.
    pub kind: StorageErrorKind,
    /// The verb: "write", "read", "list", "delete", "open".
    pub action: &'static str,
    /// The object's name, or the prefix of a listing; empty when the storage as a whole is meant.
    pub path: String,
    /// The storage, without secrets.
    pub uri: String,
    /// The backend's own words.
    pub detail: String,
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "the storage" } else { path }
}

impl StorageError {
    /// What the caller can do about it.
    pub fn class(&self) -> Class {
        match self.kind {
            StorageErrorKind::NoSpace | StorageErrorKind::Transient => Class::Retry,
            StorageErrorKind::NotFound
            | StorageErrorKind::PermissionDenied
            | StorageErrorKind::AlreadyExists
            | StorageErrorKind::InvalidConfig
            | StorageErrorKind::InvalidPath
            | StorageErrorKind::OutOfRange => Class::Permanent,
        }
    }

    /// Whether this is [`StorageErrorKind::NotFound`].
    pub fn is_not_found(&self) -> bool {
        self.kind == StorageErrorKind::NotFound
    }
}

/// Builds errors of one storage call: the parts that are known before anything fails.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) action: &'static str,
    pub(crate) path: &'a str,
    pub(crate) uri: &'a str,
}

impl Context<'_> {
    pub(crate) fn fail(self, kind: StorageErrorKind, detail: impl ToString) -> StorageError {
        StorageError {
            kind,
            action: self.action,
            path: self.path.to_owned(),
            uri: self.uri.to_owned(),
            detail: detail.to_string(),
        }
    }

    pub(crate) fn io(self, error: &io::Error) -> StorageError {
        self.fail(self.kind_of_io(error.kind()), error)
    }

    pub(crate) fn object_store(self, error: &object_store::Error) -> StorageError {
        use object_store::Error as E;
        let kind = match error {
            E::NotFound { .. } => StorageErrorKind::NotFound,
            E::AlreadyExists { .. } | E::Precondition { .. } => StorageErrorKind::AlreadyExists,
            E::InvalidPath { .. } => StorageErrorKind::InvalidPath,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                StorageErrorKind::PermissionDenied
            }
            other => match io_cause(other) {
                Some(cause) => self.kind_of_io(cause.kind()),
                None => kind_of_answer(&with_causes(other)),
            },
        };
        self.fail(kind, with_causes(error))
    }

    fn kind_of_io(self, kind: io::ErrorKind) -> StorageErrorKind {
        use io::ErrorKind as K;
        match kind {
            K::NotFound => StorageErrorKind::NotFound,
            K::PermissionDenied | K::ReadOnlyFilesystem => StorageErrorKind::PermissionDenied,
            K::AlreadyExists => StorageErrorKind::AlreadyExists,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => StorageErrorKind::NoSpace,
            K::InvalidFilename => StorageErrorKind::InvalidPath,
            // A name of which a part is a plain file, or that is itself a directory: no object of
            // that name exists, and none can be written.
            K::NotADirectory | K::IsADirectory if self.action == "read" => {
                StorageErrorKind::NotFound
            }
            K::NotADirectory | K::IsADirectory | K::DirectoryNotEmpty => {
                StorageErrorKind::InvalidPath
            }
            _ => StorageErrorKind::Transient,
        }
    }
}

/// What a server's answer means where `object_store` has no kind of its own for it, as for listings:
/// only the text has the status. What is not known here may go away by itself.
fn kind_of_answer(text: &str) -> StorageErrorKind {
    const STATUS: &str = "status code: ";
    if text.contains("incorrectly configured region") {
        return StorageErrorKind::InvalidConfig;
    }
    let status = text.split_once(STATUS).and_then(|(_, rest)| rest.get(..3));
    // What became of one deletion in Azure's answer to a batch; the object's name stands before it.
    let in_batch = || {
        text.rsplit_once("(code: ")
            .and_then(|(_, rest)| rest.get(..3))
    };
    let status = status.or_else(in_batch);
    match status {
        Some("401" | "403") => StorageErrorKind::PermissionDenied,
        // S3 answers so to keys that have expired.
        Some("400") if text.contains("ExpiredToken") || text.contains("InvalidToken") => {
            StorageErrorKind::PermissionDenied
        }
        Some("404") => StorageErrorKind::NotFound,
        Some("501") => StorageErrorKind::InvalidConfig,
        _ => StorageErrorKind::Transient,
    }
}

/// `object_store` wraps the operating system's answer several times.
fn io_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        // Many messages quote their cause already.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Context<'_> = Context {
        action: "write",
        path: "v1/a.log",
        uri: "local:///archive",
    };

    #[test]
    fn the_message_names_object_place_cause_and_remedy() {
        let error = WRITE.io(&io::Error::from_raw_os_error(13));
        assert_eq!(
            error.to_string(),
            "cannot write v1/a.log in local:///archive: permission denied (check the credentials, \
             or the owner, mode and mount of the storage): Permission denied (os error 13)"
        );
        assert_eq!(error.class(), Class::Permanent);
    }

    #[test]
    fn refusals_of_the_operating_system_are_permission_denied() {
        // EPERM, EACCES, EROFS
        for code in [1, 13, 30] {
            let error = WRITE.io(&io::Error::from_raw_os_error(code));
            assert_eq!(
                error.kind,
                StorageErrorKind::PermissionDenied,
                "errno {code}"
            );
        }
    }

    #[test]
    fn a_full_disk_and_an_io_error_may_be_repeated() {
        // ENOSPC, EDQUOT, EIO, ETIMEDOUT
        for code in [28, 122, 5, 110] {
            let error = WRITE.io(&io::Error::from_raw_os_error(code));
            assert_eq!(error.class(), Class::Retry, "errno {code}");
        }
    }

    #[test]
    fn the_status_of_an_answer_tells_what_can_be_done() {
        use StorageErrorKind as K;
        for (text, kind) in [
            ("non-2xx status code: 403 Forbidden: x", K::PermissionDenied),
            (
                "status code: 400 Bad Request: <Code>ExpiredToken",
                K::PermissionDenied,
            ),
            (
                "status code: 400 Bad Request: <Code>RequestTimeout",
                K::Transient,
            ),
            ("status code: 404 Not Found", K::NotFound),
            ("status code: 501 Not Implemented", K::InvalidConfig),
            ("status code: 503 Slow Down", K::Transient),
            ("status code: 4", K::Transient),
            (
                "failed for key a (code: 503): Forbidden (code: 403)",
                K::PermissionDenied,
            ),
            ("failed for key a: Busy (code: 503)", K::Transient),
            ("connection reset", K::Transient),
            (
                "redirect, an incorrectly configured region",
                K::InvalidConfig,
            ),
        ] {
            assert_eq!(kind_of_answer(text), kind, "{text}");
        }
    }

    #[test]
    fn the_operating_systems_answer_is_found_below_the_wrappers() {
        let wrapped = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(object_store::Error::Generic {
                store: "inner",
                source: Box::new(io::Error::from_raw_os_error(30)),
            }),
        };
        let error = WRITE.object_store(&wrapped);
        assert_eq!(error.kind, StorageErrorKind::PermissionDenied);
        assert!(error.detail.contains("os error 30"), "{}", error.detail);
    }
}
