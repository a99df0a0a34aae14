//! Memory and temporary files of the daemon: one budget and one directory for all tasks.
//!
//! Without `temp-path` the directory is `tikv-pitr-store-ID.N` in the system's temporary directory,
//! with the first number N that no other process uses, so that several sidecars on one machine
//! start without being told about each other.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use pitr_budget::MemoryBudget;
use pitr_budget::spill::{SpillDir, SpillError};
use pitr_observer::{Env, Metrics};

use crate::codes::Code;
use crate::config::Config;
use crate::failure::Failure;

/// Sidecars of one store id on one machine at most; above one it is tests or a mistake.
const NUMBERS: u32 = 64;

/// What observers and change streams of this process use.
pub(super) fn environment(
    config: &Config,
    store_id: u64,
    metrics: Metrics,
) -> Result<Env, Failure> {
    let quota = config.temp_file_quota.get();
    let opened = match &config.temp_path {
        Some(path) => SpillDir::open(path, quota),
        None => open_default(&std::env::temp_dir(), store_id, quota),
    };
    let dir = opened.map_err(|error| refused(&error))?;
    tracing::info!(path = %dir.path().display(), "temporary files go here");
    let budget = MemoryBudget::new(config.memory_budget.get());
    Ok(Env::system(metrics, budget).with_spill(dir))
}

fn refused(error: &SpillError) -> Failure {
    Failure::from_error(Code::BadConfig, error)
        .effect("nothing is tailed; the checkpoint stays")
        .action("set `temp-path` to a directory that only this sidecar uses")
}

/// The first directory of the name that is free and ours.
fn open_default(base: &Path, store_id: u64, quota: u64) -> Result<Arc<SpillDir>, SpillError> {
    let mut number = 0;
    loop {
        let path = base.join(format!("tikv-pitr-store-{store_id}.{number}"));
        number += 1;
        if is_foreign(&path) && number < NUMBERS {
            continue;
        }
        match SpillDir::open(&path, quota) {
            Err(SpillError::Locked { .. }) if number < NUMBERS => {}
            opened => return opened,
        }
    }
}

/// Whether something of this name belongs to another user, or is no directory: the base is open to
/// everybody.
fn is_foreign(path: &Path) -> bool {
    let Ok(found) = path.symlink_metadata() else {
        return false;
    };
    !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sidecars_of_one_store_get_directories_of_their_own() {
        let base = tempfile::tempdir().unwrap();
        let first = open_default(base.path(), 7, 10).unwrap();
        let second = open_default(base.path(), 7, 10).unwrap();
        assert!(first.path().ends_with("tikv-pitr-store-7.0"));
        assert!(second.path().ends_with("tikv-pitr-store-7.1"));
        drop(first);
        let third = open_default(base.path(), 7, 10).unwrap();
        assert!(third.path().ends_with("tikv-pitr-store-7.0"));
    }

    #[test]
    fn what_is_no_directory_of_ours_is_passed_over() {
        let base = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = base.path().join("tikv-pitr-store-7.0");
        std::os::unix::fs::symlink(elsewhere.path(), link).unwrap();
        std::fs::write(base.path().join("tikv-pitr-store-7.1"), b"").unwrap();
        let dir = open_default(base.path(), 7, 10).unwrap();
        assert!(dir.path().ends_with("tikv-pitr-store-7.2"));
    }

    #[test]
    fn a_directory_in_use_is_told_with_the_key_that_changes_it() {
        let temp = tempfile::tempdir().unwrap();
        let _held = SpillDir::open(temp.path(), 10).unwrap();
        let failure = refused(&SpillDir::open(temp.path(), 10).unwrap_err());
        assert_eq!(failure.code, Code::BadConfig);
        assert!(failure.action.contains("temp-path"));
    }
}
