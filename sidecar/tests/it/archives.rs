//! Archives for tests: copies of what a real TiKV wrote, with the head that `log start` adds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pitr_format::backup_meta::{self, LogBackupMeta, SCHEMA_VERSION};
use pitr_format::digest::ScanDigest;
use pitr_format::start_probe::{self, StartProbe};
use pitr_format::{Ts, checkpoint_ts, lock, object_name};

/// A copy of a golden archive in a directory that goes away with it.
pub struct GoldenArchive {
    dir: tempfile::TempDir,
    /// Begin of the log.
    pub start_ts: u64,
    /// End of the log.
    pub end_ts: u64,
}

impl GoldenArchive {
    /// As TiKV alone leaves it: no `backupmeta`, no `.ts`.
    pub fn bare(name: &str) -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/golden")
            .join(name);
        let dir = tempfile::tempdir().unwrap();
        copy(&golden.join("archive"), dir.path());
        let times = fs::read(golden.join("times-and-regions.json")).unwrap();
        let times: serde_json::Value = serde_json::from_slice(&times).unwrap();
        let ts = |name: &str| times[name].as_u64().unwrap();
        GoldenArchive {
            dir,
            start_ts: ts("start_ts"),
            end_ts: ts("end_ts"),
        }
    }

    /// With `backup.lock`, `backupmeta` and `1.ts`.
    pub fn with_head(name: &str) -> Self {
        let archive = Self::bare(name);
        let meta = LogBackupMeta {
            cluster_id: 77,
            cluster_version: "8.5.6".to_owned(),
            start_ts: Ts::new(archive.start_ts),
            backup_schema_version: SCHEMA_VERSION,
        };
        archive.write(object_name::BACKUP_LOCK, lock::TEXT.as_bytes());
        archive.write(object_name::BACKUP_META, &backup_meta::encode(&meta));
        let end = checkpoint_ts::encode(Ts::new(archive.end_ts));
        archive.write(&object_name::checkpoint_path(1), &end);
        archive
    }

    /// Adds the proof that the ranges were empty at the start.
    pub fn proven_empty(self) -> Self {
        let probe = StartProbe {
            task: "t".to_owned(),
            start_ts: Ts::new(self.start_ts),
            ranges: vec![(Bytes::new(), Bytes::from_static(&[0xFF; 32]))],
            empty: true,
        };
        self.write(
            object_name::START_PROBE,
            &start_probe::encode(&probe).unwrap(),
        );
        self
    }

    /// Digest and number of keys of one of the scans that were recorded with the archive.
    pub fn scan_digest(&self, scan: &str) -> (String, u64) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        let file = fs::File::open(golden.join("log-basic").join(scan)).unwrap();
        let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
        let mut digest = ScanDigest::default();
        for line in lines {
            let line = line.unwrap();
            let (key, value) = line.split_once('\t').unwrap();
            digest.add(&hex::decode(key).unwrap(), &hex::decode(value).unwrap());
        }
        (digest.to_string(), digest.count())
    }

    /// The archive as a URL.
    pub fn url(&self) -> String {
        format!("local://{}", self.dir.path().display())
    }

    /// The file of an object.
    pub fn file(&self, object: &str) -> PathBuf {
        self.dir.path().join(object)
    }

    /// Writes an object.
    pub fn write(&self, object: &str, bytes: &[u8]) {
        let file = self.file(object);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }

    /// Names of all objects that end so, sorted.
    pub fn objects(&self, ending: &str) -> Vec<String> {
        let mut found = Vec::new();
        walk(self.dir.path(), &mut found);
        let root = self.dir.path();
        let mut names: Vec<String> = found
            .iter()
            .map(|file| {
                file.strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .filter(|name| name.ends_with(ending))
            .collect();
        names.sort();
        names
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let mut files = Vec::new();
    walk(from, &mut files);
    for file in files {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        // Read and write, not copy: golden files may be read-only.
        fs::write(target, fs::read(&file).unwrap()).unwrap();
    }
}
