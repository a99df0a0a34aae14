//! The committed corpus and mutations of it, on a stable compiler: what `make fuzz` does longer and
//! guided by coverage. An input that once crashed a decoder lies in the corpus as `crash-…`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pitr_fuzz::{TARGETS, Target, run};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Mutations of a target's corpus in a test run.
const MUTATIONS: usize = 1000;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(folder("corpus").join(target.name))
        .unwrap_or_else(|error| panic!("the target {} has no corpus: {error}", target.name))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn every_target_takes_its_corpus() {
    for target in TARGETS {
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "{} has no input", target.name);
        for input in corpus {
            (target.run)(&input);
        }
    }
}

#[test]
fn every_target_takes_mutations_of_its_corpus() {
    for target in TARGETS {
        let corpus = corpus(target);
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..MUTATIONS {
            let input = mutate(&corpus, &mut random);
            (target.run)(&input);
        }
    }
}

#[test]
fn every_cut_of_an_input_is_taken() {
    for target in TARGETS {
        let corpus = corpus(target);
        let shortest = corpus.iter().min_by_key(|input| input.len()).unwrap();
        for len in 0..shortest.len() {
            (target.run)(&shortest[..len]);
        }
    }
}

#[test]
fn every_target_has_a_binary_for_libfuzzer_and_the_other_way_round() {
    let named: BTreeSet<_> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    let names = |dir: PathBuf| -> BTreeSet<String> {
        let entries = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let binaries = folder("libfuzzer/fuzz_targets");
    assert_eq!(names(binaries.clone()), named);
    assert_eq!(names(folder("corpus")), named);
    let manifest = fs::read_to_string(folder("libfuzzer/Cargo.toml")).unwrap();
    for name in named {
        let source = fs::read_to_string(binaries.join(format!("{name}.rs"))).unwrap();
        assert!(
            source.contains(&format!("pitr_fuzz::run(\"{name}\"")),
            "{name}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

/// What is fuzzed must be what is shipped: the binaries are a workspace of their own, and a lock file
/// that nobody looks at would let them run on other versions.
#[test]
fn the_binaries_are_built_with_the_versions_that_are_shipped() {
    let packages = |file: &str| -> BTreeSet<(String, String)> {
        let text = fs::read_to_string(folder(file)).unwrap();
        let packages = text.split("[[package]]").skip(1);
        let field = |package: &str, name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_matches([' ', '=', '"']).to_owned()
        };
        let pairs = packages.map(|package| (field(package, "name"), field(package, "version")));
        pairs.collect()
    };
    let (shipped, fuzzed) = (packages("../Cargo.lock"), packages("libfuzzer/Cargo.lock"));
    let own = ["arbitrary", "libfuzzer-sys", "pitr-libfuzzer"];
    let strange = fuzzed.difference(&shipped);
    let strange: Vec<_> = strange
        .filter(|(name, _)| !own.contains(&&**name))
        .collect();
    assert!(
        strange.is_empty(),
        "run `make fuzz` and commit its lock file: {strange:?}"
    );
    for heavy in ["rocksdb", "reqwest", "rustls"] {
        let found = fuzzed.iter().any(|(name, _)| name.contains(heavy));
        assert!(
            !found,
            "{heavy} is built with the sanitizer and never called"
        );
    }
}

#[test]
fn a_target_that_does_not_exist_runs_nothing() {
    run("no such target", b"anything");
}

/// One to four changes of one input: a flipped bit, a cut, a part of another input, a length of all
/// ones, a doubled part.
fn mutate(corpus: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut input = corpus.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=4) {
        if input.is_empty() {
            input.push(random.random());
        }
        let at = random.random_range(0..input.len());
        match random.random_range(0..5) {
            0 => input[at] ^= 1 << random.random_range(0..8),
            1 => input.truncate(at),
            2 => {
                let other = corpus.choose(random).cloned().unwrap_or_default();
                input.truncate(at);
                input.extend(other.iter().skip(at));
            }
            3 => {
                let end = input.len().min(at + 4);
                input[at..end].fill(0xff);
            }
            _ => {
                let part = input[at..].to_vec();
                input.extend(part);
            }
        }
    }
    input
}
