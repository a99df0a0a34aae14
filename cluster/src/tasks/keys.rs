//! The key map under `/tidb/br-stream`, byte exact.
//!
//! Every prefix ends in `/`: BR's own prefix for storage checkpoints does not, so that its
//! `log stop a` also deletes the keys of a task `ab`; ours never does.
//! Source: tikv/tikv `components/backup-stream/src/metadata/keys.rs`, pingcap/tidb
//! `br/pkg/streamhelper/models.go`.

use bytes::Bytes;

use super::TaskError;

/// All tasks: name → `StreamBackupTaskInfo`.
pub const INFO: &str = "/tidb/br-stream/info/";
/// All ranges: name `/` raw start key → raw end key.
pub const RANGES: &str = "/tidb/br-stream/ranges/";
/// All pauses: name → empty or JSON; the presence is the pause.
pub const PAUSE: &str = "/tidb/br-stream/pause/";
/// Last errors: name `/` store id → `StreamBackupError`.
pub const LAST_ERROR: &str = "/tidb/br-stream/last-error/";
/// Checkpoints: name `/central_global` → u64 big-endian, and older forms.
pub const CHECKPOINT: &str = "/tidb/br-stream/checkpoint/";
/// What each store last wrote into its `.ts` object: name `/` store id → u64 big-endian.
pub const STORAGE_CHECKPOINT: &str = "/tidb/br-stream/storage-checkpoint/";

/// Checks that a name can be part of a key.
pub fn check_name(name: &str) -> Result<(), TaskError> {
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(TaskError::BadName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// `info/<t>`.
pub fn info(task: &str) -> String {
    format!("{INFO}{task}")
}

/// `ranges/<t>/`.
pub fn ranges_of(task: &str) -> String {
    format!("{RANGES}{task}/")
}

/// `ranges/<t>/<raw start key>`, byte for byte, not normalised.
pub fn range(task: &str, start: &[u8]) -> Bytes {
    [ranges_of(task).as_bytes(), start].concat().into()
}

/// `pause/<t>`.
pub fn pause(task: &str) -> String {
    format!("{PAUSE}{task}")
}

/// `last-error/<t>/`.
pub fn last_errors_of(task: &str) -> String {
    format!("{LAST_ERROR}{task}/")
}

/// `checkpoint/<t>/`.
pub fn checkpoints_of(task: &str) -> String {
    format!("{CHECKPOINT}{task}/")
}

/// `checkpoint/<t>/central_global`.
pub fn global_checkpoint(task: &str) -> String {
    format!("{CHECKPOINT}{task}/central_global")
}

/// `storage-checkpoint/<t>/`.
pub fn storage_checkpoints_of(task: &str) -> String {
    format!("{STORAGE_CHECKPOINT}{task}/")
}

/// `storage-checkpoint/<t>/<s>`.
pub fn storage_checkpoint(task: &str, store_id: u64) -> String {
    format!("{STORAGE_CHECKPOINT}{task}/{store_id}")
}

/// Task and raw start key of a key under [`RANGES`].
pub fn split_range(key: &[u8]) -> Option<(&str, &[u8])> {
    let rest = key.strip_prefix(RANGES.as_bytes())?;
    let slash = rest.iter().position(|b| *b == b'/')?;
    let name = std::str::from_utf8(&rest[..slash]).ok()?;
    Some((name, &rest[slash + 1..]))
}

/// The name behind a prefix such as [`INFO`] or [`PAUSE`].
pub fn name_behind<'a>(prefix: &str, key: &'a [u8]) -> Option<&'a str> {
    let name = std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?).ok()?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// The store id behind a prefix such as [`storage_checkpoints_of`].
pub fn store_behind(prefix: &str, key: &[u8]) -> Option<u64> {
    std::str::from_utf8(key.strip_prefix(prefix.as_bytes())?)
        .ok()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_key_holds_the_start_key_byte_for_byte() {
        assert_eq!(range("t1", b"m"), &b"/tidb/br-stream/ranges/t1/m"[..]);
        for start in [&b""[..], b"a/b//c", b"\x00\xFF/"] {
            let key = range("t-1", start);
            assert_eq!(split_range(&key), Some(("t-1", start)));
        }
        assert_eq!(split_range(b"/tidb/br-stream/ranges/t1"), None);
        assert_eq!(split_range(b"/tidb/br-stream/info/t1/a"), None);
    }

    #[test]
    fn a_task_name_never_reaches_into_the_keys_of_a_longer_name() {
        for prefix in [
            ranges_of("a"),
            checkpoints_of("a"),
            last_errors_of("a"),
            storage_checkpoints_of("a"),
        ] {
            assert!(prefix.ends_with("/a/"), "{prefix}");
        }
        assert!(check_name("a/b").is_err() && check_name("").is_err());
        assert!(check_name("a\0").is_err() && check_name("pitr-1").is_ok());
    }
}
