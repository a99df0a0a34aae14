//! One file written whole and durably: temp name, write, fsync, rename, fsync of the directory.
//!
//! Blocking code without state but the set of directories known to be durable; called by
//! [`crate::local`] on tokio's blocking threads.
//!
//! `object_store`'s `LocalFileSystem::with_fsync` comes close, but syncs a directory's own entry
//! only in the call that creates it: a second writer that finds the fresh directory returns before
//! that sync happened, and one that finds a directory left by a killed process never syncs it. An
//! acknowledged object could vanish with its directory when the machine loses power, so the write
//! half is ours.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Payload, name};

/// Writes files below one root directory, which is created by the first write.
pub(crate) struct DurableWriter {
    root: PathBuf,
    /// Directories whose entries, up to the root, this process has synced.
    durable: Mutex<BTreeSet<PathBuf>>,
}

/// What to do when the target exists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Replace,
    Refuse,
}

impl DurableWriter {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            durable: Mutex::default(),
        }
    }

    /// Writes `data` as `root/name`. After an error the target is the old file or the new one,
    /// never a part of one. `name` must have been checked by [`name::object_path`].
    pub(crate) fn write(&self, name: &str, data: &Payload, existing: Existing) -> io::Result<()> {
        let target = self.root.join(name);
        let directory = target.parent().unwrap_or(&self.root);
        self.ensure_directory(directory)?;
        let (mut file, temp) = match create_temp(directory, name) {
            // Someone removed the directory since we synced it: make it again, once.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(directory);
                self.ensure_directory(directory)?;
                create_temp(directory, name)?
            }
            other => other?,
        };
        let written = write_all(&mut file, data)
            .and_then(|()| file.sync_all())
            .and_then(|()| data.check_permit())
            .and_then(|()| publish(&temp, &target, existing));
        if let Err(error) = written {
            if error.kind() == io::ErrorKind::AlreadyExists {
                // Whoever made it may not have come to this; the caller may take it for durable.
                sync_directory(directory)?;
            }
            // The first error is the one to tell; a leftover is hidden from readers anyway.
            let _ = fs::remove_file(&temp);
            return Err(error);
        }
        sync_directory(directory)
    }

    /// Removes `root/name` durably; a missing file is no error.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let target = self.root.join(name);
        match fs::remove_file(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_directory(target.parent().unwrap_or(&self.root)),
        }
    }

    /// Creates the directory where needed and makes its entry, and those of its ancestors up to
    /// the root, survive a power cut. A root that existed before is taken as durable.
    fn ensure_directory(&self, directory: &Path) -> io::Result<()> {
        // Held across the syncs: a second writer must not pass before they are done.
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.contains(directory) {
            return Ok(());
        }
        let old = directory
            .ancestors()
            .find(|a| a.exists())
            .unwrap_or(&self.root)
            .to_path_buf();
        // A root that is made here needs its own entry synced too.
        let last = if old.starts_with(&self.root) {
            &self.root
        } else {
            &old
        };
        fs::create_dir_all(directory).map_err(|error| match error.kind() {
            // A plain file in the way must not look like an object that exists already.
            io::ErrorKind::AlreadyExists => io::Error::new(io::ErrorKind::NotADirectory, error),
            _ => error,
        })?;
        for ancestor in directory.ancestors() {
            sync_directory(ancestor)?;
            if ancestor == last {
                break;
            }
        }
        durable.insert(directory.to_path_buf());
        Ok(())
    }

    fn forget(&self, directory: &Path) {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        durable.retain(|known| !known.starts_with(directory) && !directory.starts_with(known));
    }
}

fn write_all(file: &mut File, data: &Payload) -> io::Result<()> {
    for piece in data.pieces(0..data.len()) {
        file.write_all(&piece?)?;
    }
    Ok(())
}

fn create_temp(directory: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let file_name = name.rsplit('/').next().unwrap_or(name);
    let nonce = uuid::Uuid::new_v4().as_u64_pair().0;
    let temp = directory.join(name::leftover_name(file_name, nonce));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temp)?;
    Ok((file, temp))
}

fn publish(temp: &Path, target: &Path, existing: Existing) -> io::Result<()> {
    match existing {
        Existing::Replace => fs::rename(temp, target),
        // A rename replaces silently; a hard link is the portable "create if absent".
        Existing::Refuse => fs::hard_link(temp, target).and_then(|()| fs::remove_file(temp)),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some network and kernel file systems know no sync of directories: EINVAL, ENOTSUP.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files_below(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_leaves_the_target_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DurableWriter::new(dir.path().join("not/yet/there"));
        writer
            .write("v1/a.log", &"one".into(), Existing::Replace)
            .unwrap();
        writer
            .write("v1/a.log", &"two".into(), Existing::Replace)
            .unwrap();
        let parent = dir.path().join("not/yet/there/v1");
        assert_eq!(files_below(&parent), ["a.log"]);
        assert_eq!(fs::read(parent.join("a.log")).unwrap(), b"two");
    }

    #[test]
    fn a_refused_write_keeps_the_old_file_and_leaves_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DurableWriter::new(dir.path().to_path_buf());
        writer
            .write("a.ts", &"old".into(), Existing::Refuse)
            .unwrap();
        let error = writer
            .write("a.ts", &"new".into(), Existing::Refuse)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(files_below(dir.path()), ["a.ts"]);
        assert_eq!(fs::read(dir.path().join("a.ts")).unwrap(), b"old");
    }

    #[test]
    fn a_failed_publication_leaves_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a.log")).unwrap();
        let writer = DurableWriter::new(dir.path().to_path_buf());
        writer
            .write("a.log", &"data".into(), Existing::Replace)
            .unwrap_err();
        assert_eq!(files_below(dir.path()), ["a.log"]);
    }

    #[test]
    fn the_permit_is_asked_when_only_the_publication_is_left_and_its_no_leaves_nothing() {
        for (existing, old) in [(Existing::Refuse, None), (Existing::Replace, Some("old"))] {
            let dir = tempfile::tempdir().unwrap();
            let writer = DurableWriter::new(dir.path().to_path_buf());
            if let Some(old) = old {
                writer.write("a.meta", &old.into(), existing).unwrap();
            }
            let (seen, place) = (
                std::sync::Arc::new(Mutex::new(Vec::new())),
                dir.path().to_path_buf(),
            );
            let look = seen.clone();
            let data = Payload::from("new").only_while(move || {
                let whole = |name: &String| fs::read(place.join(name)).unwrap() == b"new";
                *look.lock().unwrap() = files_below(&place).into_iter().filter(whole).collect();
                false
            });
            let error = writer.write("a.meta", &data, existing).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let whole = seen.lock().unwrap().clone();
            assert!(whole.len() == 1 && whole[0] != "a.meta", "{whole:?}");
            let left: Vec<_> = old.iter().map(|_| "a.meta".to_owned()).collect();
            assert_eq!(files_below(dir.path()), left);
            if let Some(old) = old {
                assert_eq!(fs::read(dir.path().join("a.meta")).unwrap(), old.as_bytes());
            }
        }
    }

    #[test]
    fn a_directory_that_was_removed_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let writer = DurableWriter::new(dir.path().join("archive"));
        writer
            .write("v1/d/a.log", &"1".into(), Existing::Replace)
            .unwrap();
        fs::remove_dir_all(dir.path().join("archive")).unwrap();
        writer
            .write("v1/d/a.log", &"2".into(), Existing::Replace)
            .unwrap();
        assert_eq!(
            fs::read(dir.path().join("archive/v1/d/a.log")).unwrap(),
            b"2"
        );
    }
}
