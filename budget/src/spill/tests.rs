//! Spill files: round trip, quota, damage, owners.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "spill"))
        .collect();
    files.sort();
    files
}

#[test]
fn extents_come_back_and_the_last_one_takes_the_file_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SpillDir::open(temp.path().join("a/b"), 1000).unwrap();
    let mut file = dir.create().unwrap();
    assert!(file.is_empty());
    let one = file.append(b"first").unwrap();
    let two = file.append_parts([&b"sec"[..], b"", b"ond"]).unwrap();
    let none = file.append(b"").unwrap();
    assert_eq!((file.len(), dir.used()), (11, 11));
    assert_eq!((one.range(), two.range()), (0..5, 5..11));
    drop(file);
    assert_eq!(&one.read().unwrap()[..], b"first");
    assert_eq!(&two.read().unwrap()[..], b"second");
    assert!(none.read().unwrap().is_empty() && none.is_empty());
    for extent in [&one, &two, &none] {
        extent.verify().unwrap();
    }
    drop((one, none));
    assert_eq!((files(dir.path()).len(), dir.used()), (1, 11));
    drop(two);
    assert_eq!((files(dir.path()).len(), dir.used()), (0, 0));
}

#[test]
fn a_full_quota_refuses_and_takes_again_what_was_given_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SpillDir::open(temp.path(), 10).unwrap();
    let mut file = dir.create().unwrap();
    let held = file.append(b"12345678").unwrap();
    let error = file.append(b"abc").unwrap_err();
    assert!(error.is_full());
    assert!(error.to_string().contains("8 of 10 bytes"), "{error}");
    let small = file.append(b"ab").unwrap();
    assert_eq!(small.range(), 8..10);
    drop((file, held, small));
    let mut file = dir.create().unwrap();
    assert_eq!(&file.append(b"abc").unwrap().read().unwrap()[..], b"abc");
}

#[test]
fn changed_and_cut_files_are_found_by_both_ways_of_reading() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SpillDir::open(temp.path(), 10 << 20).unwrap();
    let mut file = dir.create().unwrap();
    let head = file.append(&[7; 100]).unwrap();
    let body: Vec<u8> = (0..700_000u32).map(|i| (i % 251) as u8).collect();
    let extent = file.append(&body).unwrap();
    extent.verify().unwrap();
    let path = files(dir.path()).remove(0);
    let good = fs::read(&path).unwrap();
    for at in [100, 100 + 262_144, 700_099] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        for result in [extent.verify(), extent.read().map(drop)] {
            assert!(matches!(result, Err(SpillError::Damaged { .. })), "at {at}");
        }
        head.verify().unwrap();
    }
    fs::write(&path, &good[..700_000]).unwrap();
    for result in [extent.verify(), extent.read().map(drop)] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("offset 100"), "{error}");
    }
    fs::write(&path, &good).unwrap();
    extent.verify().unwrap();
    assert_eq!(extent.read().unwrap(), body);
}

#[test]
fn a_directory_has_one_owner_and_forgets_what_a_dead_one_left() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SpillDir::open(temp.path(), 100).unwrap();
    let mut file = dir.create().unwrap();
    let extent = file.append(b"x").unwrap();
    let error = SpillDir::open(temp.path(), 100).unwrap_err();
    assert!(matches!(error, SpillError::Locked { .. }), "{error}");
    drop(dir);
    // The extent still needs the directory.
    SpillDir::open(temp.path(), 100).unwrap_err();
    drop((file, extent));
    fs::write(temp.path().join("0000000007.spill"), b"left by a crash").unwrap();
    fs::write(temp.path().join("notes.txt"), b"not ours").unwrap();
    let dir = SpillDir::open(temp.path(), 100).unwrap();
    assert!(files(dir.path()).is_empty());
    assert!(temp.path().join("notes.txt").exists());
    assert_eq!(dir.used(), 0);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let taken = temp.path().join("file");
    fs::write(&taken, b"").unwrap();
    let error = SpillDir::open(taken.join("dir"), 1).unwrap_err();
    assert!(error.to_string().contains("file/dir"), "{error}");
    assert!(!error.is_full());
}

#[test]
fn files_of_several_owners_share_the_quota() {
    let temp = tempfile::tempdir().unwrap();
    let dir = SpillDir::open(temp.path(), 100_000).unwrap();
    let kept: Vec<Extent> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n: u8| {
                let dir = Arc::clone(&dir);
                scope.spawn(move || {
                    let mut file = dir.create().unwrap();
                    let mut kept = Vec::new();
                    while let Ok(extent) = file.append(&[n; 999]) {
                        kept.push(extent);
                    }
                    for extent in &kept {
                        assert_eq!(&extent.read().unwrap()[..], [n; 999]);
                    }
                    kept
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    assert_eq!((kept.len(), dir.used()), (100, 99_900));
    drop(kept);
    assert_eq!((dir.used(), files(dir.path()).len()), (0, 0));
}
