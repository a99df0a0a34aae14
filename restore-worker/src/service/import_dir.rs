//! The directory of uploaded files.
//!
//! A finished file is `<uuid>_<region>_<conf_ver>_<version>_<cf>_2.sst` in the root, one being
//! written has the same name under `.temp` (tikv/tikv `components/sst_importer/src/import_file.rs`).

use std::io;
use std::path::{Component, Path, PathBuf};

use pitr_format::Cf;
use pitr_proto::import_sstpb::SstMeta;
use uuid::Uuid;

const TEMP: &str = ".temp";

/// Errors of files in the directory. The text begins with TiKV's name of the error, which clients
/// look for.
#[derive(Debug, thiserror::Error)]
pub enum ImportDirError {
    /// A file of that identity was uploaded before.
    #[error("FileExists({0:?})")]
    FileExists(PathBuf),
    /// CRC-32 or length differ from the metadata.
    #[error("FileCorrupted {{ path: {path:?}, reason: {reason:?} }}")]
    FileCorrupted {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A name that would leave the directory, or metadata without a usable identity.
    #[error("Invalid SST path {0:?}")]
    InvalidSstPath(String),
    /// Messages of an upload in the wrong order.
    #[error("InvalidChunk")]
    InvalidChunk,
    /// The disk.
    #[error("Io({action} {path:?}: {source})")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Wraps an I/O error with its place.
pub(super) fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ImportDirError + 'a {
    move |source| ImportDirError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// An opened import directory.
#[derive(Debug)]
pub struct ImportDir {
    root: PathBuf,
}

impl ImportDir {
    /// Creates the directory if missing and drops uploads that a former process did not finish.
    pub fn open(root: &Path) -> Result<Self, ImportDirError> {
        let temp = root.join(TEMP);
        match std::fs::remove_dir_all(&temp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear", &temp)(e));
            }
            _ => {}
        }
        std::fs::create_dir_all(&temp).map_err(io_error("create", &temp))?;
        let root = root.canonicalize().map_err(io_error("resolve", root))?;
        Ok(ImportDir { root })
    }

    /// Where the finished file of `meta` lies.
    pub fn path(&self, meta: &SstMeta) -> Result<PathBuf, ImportDirError> {
        Ok(self.root.join(file_name(meta)?))
    }

    /// Where it lies while it is written.
    pub fn temp_path(&self, meta: &SstMeta) -> Result<PathBuf, ImportDirError> {
        Ok(self.root.join(TEMP).join(file_name(meta)?))
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes `<root>/<prefix>` with everything in it; it is no error if it does not exist.
    pub fn remove(&self, prefix: &str) -> Result<(), ImportDirError> {
        let invalid = || ImportDirError::InvalidSstPath(prefix.to_owned());
        let mut names = Vec::new();
        for part in Path::new(prefix).components() {
            match part {
                Component::Normal(name) => names.push(name),
                Component::CurDir => {}
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(invalid());
                }
            }
        }
        if names.is_empty() {
            return Err(invalid());
        }
        let path = self.root.join(names.iter().collect::<PathBuf>());
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io_error("resolve", &path)(e)),
        };
        if real == self.root || !real.starts_with(&self.root) {
            return Err(invalid());
        }
        let removed = if real.is_dir() {
            std::fs::remove_dir_all(&real)
        } else {
            std::fs::remove_file(&real)
        };
        removed.map_err(io_error("remove", &real))
    }
}

fn file_name(meta: &SstMeta) -> Result<String, ImportDirError> {
    let invalid = |what: String| ImportDirError::InvalidSstPath(what);
    let uuid = Uuid::from_slice(&meta.uuid)
        .map_err(|_| invalid(format!("uuid {}", hex::encode(&meta.uuid))))?;
    let cf = Cf::parse(&meta.cf_name).ok_or_else(|| invalid(format!("cf {:?}", meta.cf_name)))?;
    let epoch = meta.region_epoch.unwrap_or_default();
    let (region, conf_ver, version) = (meta.region_id, epoch.conf_ver, epoch.version);
    Ok(format!("{uuid}_{region}_{conf_ver}_{version}_{cf}_2.sst"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_the_root_can_be_removed() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("import");
        let dir = ImportDir::open(&root).unwrap();
        let outside = outer.path().join("outside");
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        for bad in [
            "",
            ".",
            "./.",
            "/",
            "/etc",
            "..",
            "v1/..",
            "v1/../../outside",
            "link",
            "link/kept",
        ] {
            let error = dir.remove(bad).unwrap_err().to_string();
            assert!(error.starts_with("Invalid SST path"), "{bad}: {error}");
        }
        assert!(outside.join("kept").is_dir());
        std::fs::create_dir_all(root.join("v1/20260101")).unwrap();
        dir.remove("v1").unwrap();
        assert!(!root.join("v1").exists());
        dir.remove("v1").unwrap();
        dir.remove("absent/below").unwrap();
    }

    #[test]
    fn a_file_is_named_by_identity_region_epoch_and_column_family() {
        let dir = tempfile::tempdir().unwrap();
        let dir = ImportDir::open(&dir.path().join("import")).unwrap();
        let meta = SstMeta {
            uuid: vec![0xAB; 16].into(),
            region_id: 8,
            region_epoch: Some(pitr_proto::metapb::RegionEpoch {
                conf_ver: 1,
                version: 5,
            }),
            cf_name: "write".to_owned(),
            ..SstMeta::default()
        };
        let name = "abababab-abab-abab-abab-abababababab_8_1_5_write_2.sst";
        assert!(dir.path(&meta).unwrap().ends_with(name));
        let bad_uuid = SstMeta {
            uuid: vec![1; 15].into(),
            ..meta.clone()
        };
        assert!(dir.path(&bad_uuid).is_err());
        let bad_cf = SstMeta {
            cf_name: "../x".to_owned(),
            ..meta
        };
        assert!(dir.path(&bad_cf).is_err());
    }

    #[test]
    fn opening_again_drops_unfinished_uploads_and_keeps_finished_ones() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("import");
        ImportDir::open(&root).unwrap();
        std::fs::write(root.join(".temp/half.sst"), b"x").unwrap();
        std::fs::write(root.join("whole.sst"), b"x").unwrap();
        ImportDir::open(&root).unwrap();
        assert!(!root.join(".temp/half.sst").exists());
        assert!(root.join("whole.sst").exists());
    }
}
