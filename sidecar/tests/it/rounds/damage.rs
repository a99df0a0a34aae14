//! Damage to an archive that the sidecar wrote: found, named, and nothing is restored from it.

use std::fs;
use std::path::Path;

use super::archive::Archive;
use super::compare::restored_equals_source;
use super::kill::log_status;
use super::load::Load;
use super::sidecar::Sidecar;
use super::source::Source;
use super::target::Target;
use super::{seed, wait_until};
use crate::command::tikv_pitr;

fn cut(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(file, bytes).unwrap();
}

fn remove(file: &Path) {
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_archive_is_refused_with_the_object_and_the_target_stays_empty() {
    let (source, archive) = loaded().await;
    let target = Target::start();
    let kinds = [
        (".log", "cut", cut as fn(&Path)),
        (".log", "flip", flip),
        (".log", "remove", remove),
        (".meta", "cut", cut),
    ];
    for (ending, what, harm) in kinds {
        let damaged = archive.copy();
        let size = |name: &String| fs::metadata(damaged.file(name)).unwrap().len();
        let object = damaged.ending(ending).into_iter().max_by_key(size).unwrap();
        harm(&damaged.file(&object));
        let (pd, url) = (target.pd(), damaged.url());
        let restore = ["restore", "point", "-u", &pd, "-s", &url];
        for verb in [["verify", "data", "-s", &url].as_slice(), &restore] {
            println!("{what} {object}: {verb:?}");
            tokio::task::block_in_place(|| tikv_pitr(verb)).fails_with(20, &[&object]);
        }
    }
    assert_eq!(target.keys(), 0);
    // What a killed writer leaves behind is no damage.
    for name in archive
        .ending(".log")
        .iter()
        .chain(&archive.ending(".meta"))
    {
        let bytes = fs::read(archive.file(name)).unwrap();
        let half = &bytes[..bytes.len() / 2];
        let (stem, _) = name.rsplit_once('.').unwrap();
        fs::write(archive.file(&format!("{stem}.tmp0123456789abcdef")), half).unwrap();
    }
    assert_eq!(archive.sound(), Vec::<String>::new());
    restored_equals_source(&archive, &source, &[]).await;
}

/// A source that had some load, and its archive.
async fn loaded() -> (Source, Archive) {
    let source = Source::start();
    let archive = Archive::start(&source);
    let load = Load::start(&source, seed("damage")).await;
    let sidecar = Sidecar::start(&source);
    wait_until("some flushes", async || archive.ending(".meta").len() > 2).await;
    let (_, end) = load.stop().await;
    wait_until("the checkpoint passes the load", async || {
        log_status(&source) >= end.get()
    })
    .await;
    sidecar.stop();
    (source, archive)
}
