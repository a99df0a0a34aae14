//! The archive of a round, seen from outside: its files, what the verbs say of it, and what the
//! independent checker says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use pitr_format::meta;
use tempfile::TempDir;

use super::TASK;
use super::source::Source;
use crate::command::tikv_pitr;

/// A local archive that goes away with this.
pub struct Archive {
    dir: TempDir,
}

impl Archive {
    /// Registers the task of a source whose log goes here. The source must be empty.
    pub fn start(source: &Source) -> Self {
        let archive = Archive {
            dir: tempfile::tempdir().unwrap(),
        };
        let (pd, url) = (source.pd(), archive.url());
        let start = ["log", "start", "--task-name", TASK, "-u", &pd, "-s", &url];
        let mut args = start.to_vec();
        args.push("--json");
        let started = tokio::task::block_in_place(|| tikv_pitr(&args)).json();
        assert_eq!(started["ranges_were_empty"], true);
        archive
    }

    /// The same bytes in another place.
    pub fn copy(&self) -> Self {
        let copy = Archive {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in self.names() {
            let file = copy.file(&name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::copy(self.file(&name), file).unwrap();
        }
        copy
    }

    /// As the verbs take it.
    pub fn url(&self) -> String {
        format!("local://{}", self.dir.path().display())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file of an object.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All files.
    pub fn names(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            // Both may vanish between the listing and the look: temp files are renamed.
            let Ok(entries) = std::fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(self.path()).unwrap();
                    found.insert(name.to_str().unwrap().to_owned());
                }
            }
        }
        found
    }

    /// The objects whose names end so.
    pub fn ending(&self, ending: &str) -> Vec<String> {
        let names = self.names().into_iter();
        names.filter(|name| name.ends_with(ending)).collect()
    }

    /// The largest `.ts`: what readers take as the end of the archive.
    pub fn latest(&self) -> Option<u64> {
        let names = self.ending(".ts").into_iter();
        names
            .map(|name| {
                let bytes = std::fs::read(self.file(&name)).unwrap();
                u64::from_le_bytes(bytes.try_into().unwrap())
            })
            .max()
    }

    /// The most log objects that one flush wrote.
    pub fn largest_generation(&self) -> usize {
        let metas = self.ending(".meta").into_iter();
        let objects = metas.map(|name| {
            let bytes = std::fs::read(self.file(&name)).unwrap();
            let groups = meta::file_groups(meta::decode_metadata(&bytes).unwrap());
            let paths: BTreeSet<String> = groups.into_iter().map(|group| group.path).collect();
            paths.len()
        });
        objects.max().unwrap_or(0)
    }

    /// `verify data` must find it sound; the objects that nothing refers to.
    #[track_caller]
    pub fn sound(&self) -> Vec<String> {
        let url = self.url();
        let ran =
            tokio::task::block_in_place(|| tikv_pitr(&["verify", "data", "-s", &url, "--json"]));
        let report = ran.json();
        assert_eq!(
            report["problems"].as_array().map(Vec::len),
            Some(0),
            "{report}"
        );
        let listed = report["unreferenced"].as_array().unwrap().iter();
        listed
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    /// `tests/check_archive.py` must find it sound.
    #[track_caller]
    pub fn passes_the_independent_checker(&self, unreferenced: usize) {
        let Ok(venv) = std::env::var("PITR_VENV") else {
            assert!(std::env::var("CI").is_err(), "PITR_VENV is not set in CI");
            println!("PITR_VENV is not set: the independent checker is left out");
            return;
        };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/check_archive.py");
        let ran = Command::new(Path::new(&venv).join("bin/python"))
            .arg(script)
            .arg("--allow-unreferenced")
            .arg(unreferenced.to_string())
            .arg(self.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        let lines: Vec<&str> = said.lines().take(20).collect();
        assert!(ran.status.success(), "{}", lines.join("\n"));
    }
}
