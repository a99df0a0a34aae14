//! The directory of uploaded and downloaded files.
//!
//! | name | what |
//! |---|---|
//! | `<uuid>_<region>_<conf_ver>_<version>_<cf>_2.sst` | a finished file, named as in TiKV (tikv/tikv `components/sst_importer/src/import_file.rs`) |
//! | the same + `.sum` | its record: what it was made from, crc32, length, range |
//! | `.temp/…` | being made; emptied at start |
//! | `.partial/…` | objects fetched in part; a download goes on with them |
//!
//! Invariant: a finished file has its record, so that it can be proven again before its ingest.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use pitr_env::Random;
use pitr_format::{Cf, Class};
use pitr_proto::import_sstpb::{DownloadResponse, SstMeta};
use prost::Message;
use uuid::Uuid;

use super::turns::Turns;

const TEMP: &str = ".temp";
const PARTIAL: &str = ".partial";
/// Added to the name of a file.
pub(super) const RECORD: &str = ".sum";
/// Bytes read at a time for a checksum.
const BLOCK: usize = 1 << 20;

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
    /// A table could not be written.
    #[error("RocksDb({0})")]
    Engine(String),
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

impl ImportDirError {
    /// What a driver can do about it.
    pub fn class(&self) -> Class {
        match self {
            // What is damaged is gone, so that the next try makes it anew.
            ImportDirError::FileCorrupted { .. } => Class::Retry,
            ImportDirError::FileExists(_)
            | ImportDirError::InvalidSstPath(_)
            | ImportDirError::InvalidChunk
            | ImportDirError::Engine(_)
            | ImportDirError::Io { .. } => Class::Permanent,
        }
    }
}

/// What is known of a finished file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Digest of the request that made it; zeros for an upload.
    pub(super) identity: [u8; 32],
    /// The answer to that request; of an upload, crc32 and length.
    pub(super) response: DownloadResponse,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.identity.to_vec();
        bytes.extend_from_slice(&self.response.encode_to_vec());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        let (identity, response) = bytes.split_first_chunk()?;
        Some(Record {
            identity: *identity,
            response: DownloadResponse::decode(response).ok()?,
        })
    }
}

/// CRC-32 and length of a file.
pub(super) fn checksum_of(path: &Path) -> Result<(u32, u64), ImportDirError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let (mut hasher, mut length) = (crc32fast::Hasher::new(), 0);
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block).map_err(io_error("read", path))? {
            0 => return Ok((hasher.finalize(), length)),
            read => {
                hasher.update(&block[..read]);
                length += read as u64;
            }
        }
    }
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
pub struct ImportDir {
    root: PathBuf,
    random: Arc<dyn Random>,
    turns: Turns,
}

impl ImportDir {
    /// Creates the directory if missing and drops what a former process did not finish, except
    /// for parts of downloads, which can be gone on with. `random` names what is being made.
    pub fn open(root: &Path, random: Arc<dyn Random>) -> Result<Self, ImportDirError> {
        let temp = root.join(TEMP);
        match std::fs::remove_dir_all(&temp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear", &temp)(e));
            }
            _ => {}
        }
        std::fs::create_dir_all(&temp).map_err(io_error("create", &temp))?;
        let partial = root.join(PARTIAL);
        std::fs::create_dir_all(&partial).map_err(io_error("create", &partial))?;
        let root = root.canonicalize().map_err(io_error("resolve", root))?;
        let dir = ImportDir {
            root,
            random,
            turns: Turns::default(),
        };
        dir.drop_lone_records()?;
        Ok(dir)
    }

    /// A crash between the two renames of [`ImportDir::finish`] leaves a record without a file.
    fn drop_lone_records(&self) -> Result<(), ImportDirError> {
        let list = io_error("list", &self.root);
        for entry in std::fs::read_dir(&self.root).map_err(list)? {
            let path = entry.map_err(io_error("list", &self.root))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let lone = name.is_some_and(|name| name.ends_with(RECORD));
            if lone && !path.with_extension("").exists() {
                std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Where the finished file of `meta` lies.
    pub fn path(&self, meta: &SstMeta) -> Result<PathBuf, ImportDirError> {
        Ok(self.root.join(file_name(meta)?))
    }

    /// Where it lies while it is written.
    pub fn temp_path(&self, meta: &SstMeta) -> Result<PathBuf, ImportDirError> {
        Ok(self.root.join(TEMP).join(file_name(meta)?))
    }

    /// A name below `.temp` that nobody else has.
    pub(super) fn scratch(&self, kind: &str) -> PathBuf {
        self.root
            .join(TEMP)
            .join(format!("{}.{kind}", self.random.uuid()))
    }

    /// Where the part of an object lies; `name` is hex.
    pub(super) fn part(&self, name: &str) -> PathBuf {
        self.parts().join(name)
    }

    pub(super) fn parts(&self) -> PathBuf {
        self.root.join(PARTIAL)
    }

    /// Who works on which path.
    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Gives the synced file `temp` its final name, durably, after its record.
    pub(super) fn finish(
        &self,
        temp: &Path,
        path: &Path,
        record: &Record,
    ) -> Result<(), ImportDirError> {
        let scratch = self.scratch("sum");
        let mut file = File::create_new(&scratch).map_err(io_error("create", &scratch))?;
        file.write_all(&record.encode())
            .and_then(|()| file.sync_all())
            .map_err(io_error("write", &scratch))?;
        std::fs::rename(&scratch, record_path(path)).map_err(io_error("rename", &scratch))?;
        std::fs::rename(temp, path).map_err(io_error("rename", temp))?;
        let root = File::open(&self.root).map_err(io_error("open", &self.root))?;
        root.sync_all().map_err(io_error("sync", &self.root))
    }

    /// The record of a finished file, whose bytes are compared with it; `None` if it is not there.
    /// A file that is damaged is dropped with the error.
    pub(super) fn intact(&self, path: &Path) -> Result<Option<Record>, ImportDirError> {
        if !path.is_file() {
            return Ok(None);
        }
        let corrupted = |reason: String| {
            self.discard(path);
            ImportDirError::FileCorrupted {
                path: path.to_owned(),
                reason,
            }
        };
        let bytes = std::fs::read(record_path(path));
        let record = bytes.ok().as_deref().and_then(Record::decode);
        let Some(record) = record else {
            return Err(corrupted("its record is missing or damaged".to_owned()));
        };
        let (crc32, length) = checksum_of(path)?;
        let expected = (record.response.crc32, record.response.length);
        if (crc32, length) != expected {
            let reason = format!(
                "(crc32, length) {:?}, expected {expected:?}",
                (crc32, length)
            );
            return Err(corrupted(reason));
        }
        Ok(Some(record))
    }

    /// Removes a file and its record.
    pub(super) fn discard(&self, path: &Path) {
        for path in [path, &record_path(path)] {
            if let Err(e) = std::fs::remove_file(path)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), error = %e, "file stays until the sweep");
            }
        }
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

fn record_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(RECORD);
    name.into()
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
    use pitr_env::SystemRandom;

    use super::*;

    fn open(root: &Path) -> Result<ImportDir, ImportDirError> {
        ImportDir::open(root, Arc::new(SystemRandom))
    }

    #[test]
    fn only_what_lies_below_the_root_can_be_removed() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("import");
        let dir = open(&root).unwrap();
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
        let dir = open(&dir.path().join("import")).unwrap();
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
        open(&root).unwrap();
        let there = |name: &str| root.join(name).exists();
        for name in [
            ".temp/half.sst",
            "whole.sst",
            "whole.sst.sum",
            "lone.sst.sum",
            ".partial/x",
        ] {
            std::fs::write(root.join(name), b"x").unwrap();
        }
        open(&root).unwrap();
        assert!(!there(".temp/half.sst") && !there("lone.sst.sum"));
        assert!(there("whole.sst") && there("whole.sst.sum"));
        assert!(there(".partial/x"), "a download can go on with it");
    }

    #[test]
    fn a_finished_file_is_proven_against_its_record_and_dropped_when_damaged() {
        let outer = tempfile::tempdir().unwrap();
        let dir = open(&outer.path().join("import")).unwrap();
        let path = dir.root().join("a.sst");
        let record = Record {
            identity: [7; 32],
            response: DownloadResponse {
                crc32: crc32fast::hash(b"content"),
                length: 7,
                ..DownloadResponse::default()
            },
        };
        let make = || {
            let temp = dir.scratch("sst");
            std::fs::write(&temp, b"content").unwrap();
            dir.finish(&temp, &path, &record).unwrap();
        };
        assert_eq!(dir.intact(&path).unwrap(), None);
        make();
        assert_eq!(dir.intact(&path).unwrap().as_ref(), Some(&record));
        type Harm = fn(&Path);
        let harms: [Harm; 3] = [
            |path| std::fs::write(path, b"c0ntent").unwrap(),
            |path| std::fs::write(path, b"conten").unwrap(),
            |path| std::fs::remove_file(record_path(path)).unwrap(),
        ];
        for harm in harms {
            make();
            harm(&path);
            let error = dir.intact(&path).unwrap_err();
            assert!(error.to_string().starts_with("FileCorrupted"), "{error}");
            assert!(!path.exists() && !record_path(&path).exists());
        }
    }
}
