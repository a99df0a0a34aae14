//! What is taken out of the import directory by age: files whose region is gone or changed, parts
//! of downloads that nobody went on with, records without a file.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pitr_proto::metapb::RegionEpoch;

use super::import_dir::{ImportDir, ImportDirError, RECORD, io_error};

/// How often it happens (TiKV: `raftstore.cleanup-import-sst-interval`).
pub(super) const EVERY: Duration = Duration::from_secs(600);
/// A file younger than this may still be on its way to its ingest.
const YOUNG: Duration = Duration::from_secs(600);
/// No restore leaves a file alone for longer (TiKV: the same for files without an epoch).
const OLD: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a part waits for its download to go on.
const PART_KEPT: Duration = Duration::from_secs(6 * 3600);

impl ImportDir {
    /// Removes what is stale; `epoch_of` tells the current epoch of a region that is here. The
    /// number of files removed.
    pub(super) fn sweep(
        &self,
        now: SystemTime,
        epoch_of: impl Fn(u64) -> Option<RegionEpoch>,
    ) -> Result<u64, ImportDirError> {
        let mut removed = 0;
        for (path, age) in files(self.root(), now)? {
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let stale = match name.strip_suffix(RECORD) {
                Some(_) => !path.with_extension("").exists(),
                None => match parse(name) {
                    Some((region, made_for)) => {
                        age > OLD || epoch_of(region).is_none_or(|now| older(&made_for, &now))
                    }
                    None => false,
                },
            };
            if stale && age > YOUNG {
                removed += self.drop_file(&path);
            }
        }
        for (path, age) in files(&self.parts(), now)? {
            if age > PART_KEPT && self.turns().try_now(&path).is_some() {
                removed += self.drop_file(&path);
            }
        }
        Ok(removed)
    }

    fn drop_file(&self, path: &Path) -> u64 {
        match std::fs::remove_file(path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "stale import file removed");
                1
            }
            Err(e) => {
                tracing::warn!(path = %path.display(), error = %e, "stale import file stays");
                0
            }
        }
    }
}

/// Files of a directory with their age.
fn files(
    dir: &Path,
    now: SystemTime,
) -> Result<Vec<(std::path::PathBuf, Duration)>, ImportDirError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        // A file that vanishes meanwhile was consumed.
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        if meta.is_file() {
            let changed = meta.modified().unwrap_or(now);
            let age = now.duration_since(changed).unwrap_or_default();
            found.push((entry.path(), age));
        }
    }
    Ok(found)
}

/// Region and epoch out of `<uuid>_<region>_<conf_ver>_<version>_<cf>_2.sst`.
fn parse(name: &str) -> Option<(u64, RegionEpoch)> {
    let mut parts = name.strip_suffix(".sst")?.split('_').skip(1);
    let mut number = || parts.next()?.parse().ok();
    let region = number()?;
    let epoch = RegionEpoch {
        conf_ver: number()?,
        version: number()?,
    };
    Some((region, epoch))
}

fn older(file: &RegionEpoch, region: &RegionEpoch) -> bool {
    file.version < region.version || file.conf_ver < region.conf_ver
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pitr_env::SystemRandom;

    use super::*;

    #[test]
    fn stale_files_go_once_they_are_old_enough_and_others_stay() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("import");
        let dir = ImportDir::open(&root, Arc::new(SystemRandom)).unwrap();
        let uuid = "abababab-abab-abab-abab-abababababab";
        let names = [
            format!("{uuid}_4_1_5_write_2.sst"),
            format!("{uuid}_4_1_5_write_2.sst.sum"),
            format!("{uuid}_4_1_4_write_2.sst"),
            format!("{uuid}_9_1_5_write_2.sst"),
            format!("{uuid}_4_1_6_write_2.sst.sum"),
            "somebody else's".to_owned(),
            ".partial/half".to_owned(),
        ];
        let there = |name: &String| dir.root().join(name).exists();
        for name in &names {
            std::fs::write(dir.root().join(name), b"x").unwrap();
        }
        let epoch = RegionEpoch {
            conf_ver: 1,
            version: 5,
        };
        let sweep = |later: u64| {
            let now = SystemTime::now() + Duration::from_secs(later);
            dir.sweep(now, |region| (region == 4).then_some(epoch))
                .unwrap()
        };
        assert_eq!(sweep(60), 0, "all may still be on their way");
        assert_eq!(sweep(1_000), 3);
        let left: Vec<bool> = names.iter().map(there).collect();
        assert_eq!(left, [true, true, false, false, false, true, true]);
        assert_eq!(sweep(7 * 3600), 1, "the part");
        let removed = sweep(8 * 24 * 3600) + sweep(8 * 24 * 3600);
        assert_eq!(
            removed, 2,
            "the file that was never ingested, and its record"
        );
        assert!(there(&names[5]), "what is not ours stays");
    }
}
