//! Every verb that reads an archive, on archives that lack or damage one thing: what was to be read
//! and cannot be is 20 (damage) or 10 (not there), never 0, never 1, never a crash, and the object is
//! named. What the verb has no need of does not stop it.

use std::fs;

use crate::archives::GoldenArchive;
use crate::command::tikv_pitr;

/// One kind of harm to one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Gone,
    Empty,
    Half,
    Garbage,
    /// Longer than any sane object of its kind.
    Bloated,
    /// A directory of the same name.
    Directory,
}

const HARMS: [Harm; 6] = [
    Harm::Gone,
    Harm::Empty,
    Harm::Half,
    Harm::Garbage,
    Harm::Bloated,
    Harm::Directory,
];

impl Harm {
    fn inflict(self, archive: &GoldenArchive, object: &str) {
        let file = archive.file(object);
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        match self {
            Harm::Gone => {}
            Harm::Empty => fs::write(file, b"").unwrap(),
            Harm::Half => fs::write(file, &bytes[..bytes.len() / 2]).unwrap(),
            Harm::Garbage => {
                let noise = (0..bytes.len().max(64)).map(|i| (i * 167 + 13) as u8 | 0x80);
                fs::write(file, noise.collect::<Vec<_>>()).unwrap();
            }
            Harm::Bloated => fs::write(file, vec![0xFF; 3 << 20]).unwrap(),
            Harm::Directory => fs::create_dir(file).unwrap(),
        }
    }
}

/// What a verb may end with.
type Codes = &'static [i32];

const DAMAGE: Codes = &[20];
const GONE: Codes = &[10];
const FINE: Codes = &[0];
/// It is left to the verb whether it needs the object.
const EITHER: Codes = &[0, 20];

fn run(archive: &GoldenArchive, verb: &str) -> crate::command::Ran {
    let url = archive.url();
    let mut args: Vec<&str> = verb.split(' ').collect();
    args.extend(["--json", "-s", &url]);
    tikv_pitr(&args)
}

/// Runs `verbs` on an archive with one harmed object.
#[track_caller]
fn check(object: &dyn Fn(&GoldenArchive) -> String, harm: Harm, verbs: &[(&str, Codes)]) {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let object = object(&archive);
    harm.inflict(&archive, &object);
    for (verb, codes) in verbs {
        let verb = verb.replace("OBJECT", &object);
        let ran = run(&archive, &verb);
        let what = format!("{verb} with {object} {harm:?}: {}", ran.stderr);
        assert!(codes.contains(&ran.code), "{} of {what}", ran.code);
        assert!(!ran.stderr.contains("panicked"), "{what}");
        if ran.code == 20 {
            assert!(ran.stderr.contains(&object), "not named: {what}");
        }
    }
}

fn largest(archive: &GoldenArchive, ending: &str) -> String {
    let size = |name: &String| fs::metadata(archive.file(name)).unwrap().len();
    let objects = archive.objects(ending);
    objects.into_iter().max_by_key(size).unwrap()
}

#[test]
fn a_harmed_log_file_is_damage_to_whoever_reads_records() {
    for harm in HARMS {
        let cat = match harm {
            // There is no such object any more.
            Harm::Gone | Harm::Directory => GONE,
            _ => DAMAGE,
        };
        let log = |archive: &GoldenArchive| largest(archive, ".log");
        check(
            &log,
            harm,
            &[
                ("archive ls", FINE),
                ("archive cat OBJECT", cat),
                ("verify data", DAMAGE),
                ("log metadata", FINE),
            ],
        );
        // Sizes and presence are seen without reading.
        if harm != Harm::Garbage {
            check(&log, harm, &[("archive stat", EITHER)]);
        }
    }
}

#[test]
fn a_harmed_meta_is_damage_to_whoever_needs_all_of_them() {
    for harm in HARMS {
        let cat = match harm {
            Harm::Gone | Harm::Directory => GONE,
            _ => DAMAGE,
        };
        // What is gone without a trace cannot be missed by one archive alone; `restore` would.
        let all = match harm {
            Harm::Gone | Harm::Directory => EITHER,
            _ => DAMAGE,
        };
        check(
            &|archive| largest(archive, ".meta"),
            harm,
            &[
                ("archive ls", FINE),
                ("archive stat", all),
                ("archive cat OBJECT", cat),
                ("verify data", all),
                ("restore point --dry-run", all),
                ("log metadata", EITHER),
            ],
        );
    }
}

#[test]
fn a_harmed_head_never_becomes_a_window() {
    for harm in HARMS {
        let (cat, head) = match harm {
            Harm::Gone | Harm::Directory => (GONE, GONE),
            _ => (DAMAGE, DAMAGE),
        };
        check(
            &|_| "backupmeta".to_owned(),
            harm,
            &[
                ("archive ls", FINE),
                ("archive cat OBJECT", cat),
                ("log metadata", head),
                ("restore point --dry-run", head),
            ],
        );
    }
}

#[test]
fn a_harmed_checkpoint_is_never_taken_for_a_time() {
    for harm in HARMS {
        let cat = match harm {
            Harm::Gone | Harm::Directory => GONE,
            _ => DAMAGE,
        };
        check(
            &|_| "v1/global_checkpoint/1.ts".to_owned(),
            harm,
            &[
                ("archive cat OBJECT", cat),
                // It is passed over with a warning, and then nothing bounds the log.
                ("restore point --dry-run", GONE),
                ("log metadata", FINE),
            ],
        );
    }
}

#[test]
fn a_harmed_proof_of_an_empty_begin_is_no_proof() {
    for harm in HARMS {
        // Without a proof the restore needs --log-only; a damaged one is damage.
        let codes: Codes = match harm {
            Harm::Gone | Harm::Directory => &[2],
            _ => &[2, 20],
        };
        check(
            &|_| "tikv-pitr/start.json".to_owned(),
            harm,
            &[("restore point --dry-run", codes)],
        );
    }
}

/// Objects that no archive has, with names close to those that it has.
#[test]
fn strange_objects_beside_the_log_stop_nobody() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let before = run(&archive, "archive stat").json();
    for name in [
        "v1/backupmeta/notes.txt",
        "v1/backupmeta/deep/er/x.bin",
        "v1/global_checkpoint/readme",
        "v1/20261122/02/1/.hidden",
        "lost+found/x",
        "ü/ß.log.bak",
    ] {
        archive.write(name, b"strange");
    }
    for verb in ["archive ls", "archive stat", "verify data", "log metadata"] {
        let ran = run(&archive, verb);
        assert_eq!(ran.code, 0, "{verb}: {}", ran.stderr);
    }
    let after = run(&archive, "archive stat").json();
    assert_eq!(before["total"], after["total"]);
    assert_eq!(before["recoverable"], after["recoverable"]);
    assert_eq!(run(&archive, "restore point --dry-run").code, 0);
}

/// A `.ts` of another store with a later time makes holes restorable; an earlier one must not win.
#[test]
fn the_bound_of_the_window_is_the_largest_checkpoint_that_can_be_read() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let early = pitr_format::checkpoint_ts::encode(pitr_format::Ts::new(archive.start_ts + 1));
    archive.write("v1/global_checkpoint/2.ts", &early);
    let report = run(&archive, "log metadata").json();
    assert_eq!(report["max"]["tso"], archive.end_ts);
    // One that cannot be read proves nothing: the others count, and it is named.
    archive.write("v1/global_checkpoint/2.ts", b"1234567");
    let report = run(&archive, "log metadata").json();
    assert_eq!(report["max"]["tso"], archive.end_ts);
    assert!(report["warnings"].to_string().contains("2.ts"), "{report}");
    let plan = run(&archive, "restore point --dry-run").json();
    assert_eq!(plan["restored"]["tso"], archive.end_ts);
}
