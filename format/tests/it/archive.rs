//! A golden archive in memory: its objects, and the independent decoding of its records.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use pitr_format::meta::{decode_metadata, file_groups};
use pitr_format::object_name::{META_DIR, META_SUFFIX};
use pitr_proto::backup::{DataFileGroup, DataFileInfo, Metadata};

pub const NAMES: [&str; 2] = ["log-basic", "log-splits"];

/// Path relative to the archive's root → content.
pub struct Archive {
    name: &'static str,
    pub objects: BTreeMap<String, Vec<u8>>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

impl Archive {
    pub fn open(name: &'static str) -> Self {
        let root = folder(name).join("archive");
        let mut objects = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let relative = path.strip_prefix(&root).unwrap().to_str().unwrap();
                    objects.insert(relative.to_owned(), fs::read(&path).unwrap());
                }
            }
        }
        assert!(objects.len() >= 5, "{name} is incomplete");
        Archive { name, objects }
    }

    /// Path and content of every metadata object.
    pub fn metas(&self) -> Vec<(&str, Metadata)> {
        self.objects
            .iter()
            .filter(|(path, _)| path.starts_with(META_DIR) && path.ends_with(META_SUFFIX))
            .map(|(path, bytes)| (path.as_str(), decode_metadata(bytes).unwrap()))
            .collect()
    }

    pub fn groups(&self) -> Vec<DataFileGroup> {
        self.metas()
            .into_iter()
            .flat_map(|(_, metadata)| file_groups(metadata))
            .collect()
    }

    /// The stored bytes of a slice.
    pub fn stored(&self, info: &DataFileInfo) -> &[u8] {
        let from = info.range_offset as usize;
        &self.objects[&info.path][from..from + info.range_length as usize]
    }

    /// The lines of `records.tsv.gz`: cf, put or delete, user key, ts, value.
    pub fn expected_records(&self) -> Vec<String> {
        let file = fs::File::open(folder(self.name).join("records.tsv.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }
}
