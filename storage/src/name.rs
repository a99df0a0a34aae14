//! Which names an object may have. Checked before any I/O by every backend, because names come
//! from metadata that others wrote.
//!
//! Also knows the names of unfinished local writes: the target with its extension replaced by
//! `tmp` and 16 hex digits, as TiKV does (tikv/tikv components/external_storage/src/local.rs), so
//! that one rule hides both programs' leftovers and no reader takes one for a `.log`, `.meta` or `.ts`.

use object_store::path::Path;

use crate::error::{Context, StorageError, StorageErrorKind};

/// Longer names are no object's: the longest one that the archive format knows has 130 bytes.
const MAX_NAME_BYTES: usize = 1024;

/// Accepts the name of an object.
pub(crate) fn object_path(name: &str, context: Context<'_>) -> Result<Path, StorageError> {
    let refuse = |why: &str| Err(context.fail(StorageErrorKind::InvalidPath, why));
    if name.is_empty() || name.ends_with('/') {
        return refuse("an object needs a name that does not end with '/'");
    }
    check_parts(name, context)?;
    let last = name.rsplit('/').next().unwrap_or(name);
    if is_hidden(last) {
        return refuse("names of this form are kept for unfinished writes");
    }
    Path::parse(name).map_err(|error| context.fail(StorageErrorKind::InvalidPath, error))
}

/// Accepts the prefix of a listing: any beginning of a name.
pub(crate) fn check_prefix(prefix: &str, context: Context<'_>) -> Result<(), StorageError> {
    if prefix.is_empty() {
        return Ok(());
    }
    check_parts(prefix.strip_suffix('/').unwrap_or(prefix), context)
}

fn check_parts(name: &str, context: Context<'_>) -> Result<(), StorageError> {
    let refuse = |why: &str| Err(context.fail(StorageErrorKind::InvalidPath, why));
    if name.len() > MAX_NAME_BYTES {
        return refuse("the name is longer than 1024 bytes");
    }
    if name.starts_with('/') {
        return refuse("names are relative to the storage, without a leading '/'");
    }
    for part in name.split('/') {
        if part.is_empty() {
            return refuse("two '/' follow each other");
        }
        if part == "." || part == ".." {
            return refuse("'.' and '..' are not allowed, the name could leave the storage");
        }
        if part.chars().any(char::is_control) || part.contains('\\') {
            return refuse("control characters and backslashes are not allowed");
        }
    }
    Ok(())
}

/// Whether the last part of a name is one that no object has and no listing shows.
pub(crate) fn is_hidden(file_name: &str) -> bool {
    is_leftover(file_name) || is_object_store_temp(file_name)
}

/// Whether the last part of a name is that of an unfinished local write.
pub(crate) fn is_leftover(file_name: &str) -> bool {
    let Some((_, extension)) = file_name.rsplit_once('.') else {
        return false;
    };
    let Some(digits) = extension.strip_prefix("tmp") else {
        return false;
    };
    digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `object_store` hides names that end with `#` and digits: what is written so would not be found.
fn is_object_store_temp(file_name: &str) -> bool {
    file_name
        .split_once('#')
        .is_some_and(|(_, id)| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
}

/// The name of an unfinished write of `file_name`; `nonce` keeps two writers apart.
pub(crate) fn leftover_name(file_name: &str, nonce: u64) -> String {
    let stem = match file_name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => file_name,
    };
    format!("{stem}.tmp{nonce:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READ: Context<'_> = Context {
        action: "read",
        path: "",
        uri: "memory://",
    };

    #[test]
    fn names_of_the_archive_format_are_accepted_unchanged() {
        for name in [
            "backupmeta",
            "backup.lock",
            "v1/20261122/02/1/schema-meta/470630705605902339-96ea2aa4.log",
            "v1/global_checkpoint/1.ts",
            "pitr_id_maps/pitr_id_map.cluster_id:1.restored_ts:2",
            "v1/LOCK.WRIT.INTENT.00ff",
            "a b%41/ü",
        ] {
            assert_eq!(object_path(name, READ).unwrap().as_ref(), name);
        }
    }

    #[test]
    fn names_that_leave_the_storage_are_refused() {
        for name in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../../b",
            "a/./b",
            "a//b",
            "a/",
            "a\\..\\b",
        ] {
            let error = object_path(name, READ).unwrap_err();
            assert_eq!(error.kind, StorageErrorKind::InvalidPath, "{name:?}");
        }
        for prefix in ["/", "/etc", "../", "a/..", "..", "a//", "a/../b"] {
            let error = check_prefix(prefix, READ).unwrap_err();
            assert_eq!(error.kind, StorageErrorKind::InvalidPath, "{prefix:?}");
        }
    }

    #[test]
    fn temp_names_are_recognised_and_never_look_like_archive_objects() {
        for name in ["1-a.log", "backupmeta", "1.ts", ".hidden", "a.b.meta"] {
            let temp = leftover_name(name, 7);
            assert!(is_leftover(&temp), "{temp}");
            for suffix in [".log", ".meta", ".ts", ".lock"] {
                assert!(!temp.ends_with(suffix), "{temp}");
            }
            assert!(object_path(&temp, READ).is_err(), "{temp}");
        }
        assert!(!is_leftover("notes.tmp"));
        assert!(!is_leftover("a.tmp00112233445566zz"));
        assert!(object_path("a.log#12", READ).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn no_accepted_name_ever_leaves_the_root(name in "[./a%#\\\\ \u{1}]{0,12}") {
            if let Ok(path) = object_path(&name, READ) {
                prop_assert_eq!(path.as_ref(), &name);
                prop_assert!(!std::path::Path::new(&name).is_absolute());
                prop_assert!(std::path::Path::new(&name)
                    .components()
                    .all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }
    }
}
