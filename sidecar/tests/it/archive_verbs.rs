//! `archive ls`, `stat`, `cat`, `find` against archives that a real TiKV wrote, whole and damaged.
//! What they must show is in `records.tsv.gz`, which was made from the same archives by other means.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

use pitr_format::EncodedKey;
use serde_json::Value;

use crate::archives::GoldenArchive;
use crate::command::{Ran, tikv_pitr};

const ARCHIVES: [&str; 2] = ["log-basic", "log-splits"];

/// Column family, put or delete, user key, ts, value: as recorded.
type Row = (String, String, String, u64, String);

fn rows(archive: &str) -> Vec<Row> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let file = fs::File::open(golden.join(archive).join("records.tsv.gz")).unwrap();
    let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
    let mut rows: Vec<Row> = lines
        .map(|line| {
            let line = line.unwrap();
            let mut parts = line.split('\t').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            let (cf, op, key) = (next(), next(), next());
            (cf, op, key, next().parse().unwrap(), next())
        })
        .collect();
    rows.sort();
    rows
}

fn run(archive: &GoldenArchive, args: &[&str]) -> Ran {
    let url = archive.url();
    let mut all = vec!["archive"];
    all.extend(args);
    all.extend(["-s", &url]);
    tikv_pitr(&all)
}

fn lines(ran: &Ran) -> Vec<Value> {
    let lines = ran.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn cat(archive: &GoldenArchive, object: &str) -> Vec<Value> {
    let ran = run(archive, &["cat", object, "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    lines(&ran)
}

/// The recorded row of a shown record, apart from the value of a write record.
fn key_of(record: &Value) -> (String, String, String, u64) {
    let text = |name: &str| record[name].as_str().unwrap().to_owned();
    let ts = record["ts"]["tso"].as_u64().unwrap();
    (text("cf"), text("op"), text("key"), ts)
}

fn largest(archive: &GoldenArchive, ending: &str) -> String {
    let size = |name: &String| fs::metadata(archive.file(name)).unwrap().len();
    archive
        .objects(ending)
        .into_iter()
        .max_by_key(size)
        .unwrap()
}

#[test]
fn cat_of_all_log_files_shows_exactly_the_recorded_records() {
    for name in ARCHIVES {
        let archive = GoldenArchive::bare(name);
        let mut shown = Vec::new();
        for object in archive.objects(".log") {
            for line in cat(&archive, &object) {
                assert_eq!(
                    (&line["kind"], &line["object"]),
                    (&"record".into(), &object.as_str().into())
                );
                shown.push((key_of(&line), line));
            }
        }
        shown.sort_by(|a, b| a.0.cmp(&b.0));
        let recorded = rows(name);
        assert_eq!(shown.len(), recorded.len());
        for ((key, line), (cf, op, user_key, ts, value)) in shown.iter().zip(&recorded) {
            assert_eq!(key, &(cf.clone(), op.clone(), user_key.clone(), *ts));
            if cf == "default" && op == "put" {
                assert_eq!(line["value"], value.as_str());
            }
            if let Some(short) = line["write"]["short_value"].as_str() {
                assert!(value.contains(short), "{line}");
            }
        }
    }
}

#[test]
fn stat_and_metas_count_what_is_recorded() {
    for name in ARCHIVES {
        let archive = GoldenArchive::with_head(name);
        let recorded = rows(name).len() as u64;
        let stat = run(&archive, &["stat", "--json"]).json();
        assert_eq!(stat["total"]["records"], recorded);
        for groups in ["stores", "regions", "tables"] {
            let groups = stat[groups].as_array().unwrap();
            let sum: u64 = groups.iter().map(|g| g["records"].as_u64().unwrap()).sum();
            assert_eq!(sum, recorded);
        }
        let by_cf = |cf: &str| stat[cf]["records"].as_u64().unwrap();
        assert_eq!(by_cf("default_cf") + by_cf("write_cf"), recorded);
        assert_eq!(stat["logs"]["count"], archive.objects(".log").len());
        assert_eq!(stat["recoverable"]["min"]["tso"], archive.start_ts);
        assert_eq!(stat["recoverable"]["max"]["tso"], archive.end_ts);
        assert_eq!(stat["unreferenced"]["count"], 0);
        let mut in_metas = 0;
        for object in archive.objects(".meta") {
            let lines = cat(&archive, &object);
            assert_eq!(lines[0]["kind"], "meta");
            assert_eq!(lines[0]["slices"], lines.len() - 1);
            let slices = lines[1..].iter();
            let sum: u64 = slices.map(|s| s["records"].as_u64().unwrap()).sum();
            assert_eq!(lines[0]["records"], sum);
            in_metas += sum;
        }
        assert_eq!(in_metas, recorded);
        let text = run(&archive, &["stat"]).stdout;
        assert!(
            text.contains(&format!("total: {recorded} records")),
            "{text}"
        );
    }
}

#[test]
fn stat_of_an_archive_without_bounds_says_that_nothing_can_be_restored() {
    let archive = GoldenArchive::bare("log-basic");
    let stat = run(&archive, &["stat", "--json"]).json();
    assert_eq!(stat["recoverable"], Value::Null);
    assert!(
        stat["warnings"].to_string().contains("backupmeta"),
        "{stat}"
    );
}

#[test]
fn ls_lists_every_object_and_a_window_hides_only_what_lies_outside() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let list = |args: &[&str]| {
        let ran = run(&archive, &[&["ls", "--json"], args].concat());
        let objects = ran.json()["objects"].as_array().unwrap().clone();
        let paths = objects
            .iter()
            .map(|o| o["path"].as_str().unwrap().to_owned());
        paths.collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), archive.objects(""));
    let before = list(&["--to", "2020-01-01T00:00:00Z"]);
    assert!(
        before.iter().all(|path| !path.ends_with(".log")),
        "{before:?}"
    );
    assert!(
        before.contains(&"v1/global_checkpoint/1.ts".to_owned()),
        "{before:?}"
    );
    assert_eq!(
        list(&["--from", "2020-01-01T00:00:00Z"]),
        archive.objects("")
    );
    let until_first = list(&["--to", "470630701673742338"]);
    let logs = until_first.iter().filter(|path| path.ends_with(".log"));
    assert_eq!(logs.count(), 1, "{until_first:?}");
    run(&archive, &["ls", "--from", "9", "--to", "5"]).fails_with(2, &["PITR1002"]);
    run(&archive, &["ls", "--from", "noon"]).fails_with(2, &["noon"]);
    let text = run(&archive, &["ls"]);
    assert_eq!(text.stdout.lines().count(), archive.objects("").len() + 1);
}

#[test]
fn the_objects_at_the_root_are_decoded() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let one = |object: &str| {
        let lines = cat(&archive, object);
        assert_eq!(lines.len(), 1);
        lines.into_iter().next().unwrap()
    };
    assert_eq!(
        one("v1/global_checkpoint/1.ts")["ts"]["tso"],
        archive.end_ts
    );
    assert_eq!(one("backupmeta")["cluster_id"], 77);
    assert_eq!(one("backupmeta")["start"]["tso"], archive.start_ts);
    assert_eq!(one("tikv-pitr/start.json")["empty"], true);
    assert!(
        one("backup.lock")["text"]
            .as_str()
            .unwrap()
            .contains("DO NOT DELETE")
    );
    let text = run(&archive, &["cat", "backupmeta"]).stdout;
    assert!(text.contains("cluster: 77"), "{text}");
}

#[test]
fn what_is_not_there_ends_with_10() {
    let archive = GoldenArchive::with_head("log-basic");
    let stray = "v1/20261122/02/1/470630701673742338-00000000-0000-0000-0000-000000000000.log";
    archive.write(stray, b"left over");
    archive.write("notes.txt", b"mine");
    for (object, code) in [
        ("v1/backupmeta/none.meta", "PITR1203"),
        ("../outside", "PITR1203"),
        (stray, "PITR1410"),
        ("notes.txt", "PITR1411"),
    ] {
        let ran = run(&archive, &["cat", object, "--json"]);
        assert_eq!(
            (ran.code, &ran.error()["code"]),
            (10, &code.into()),
            "{object}"
        );
    }
    run(&archive, &["find", "no such key"]).fails_with(10, &["PITR1409"]);
    run(&archive, &["find", "hex:zz"]).fails_with(2, &["hex"]);
    tikv_pitr(&["archive", "ls", "-s", "local:///nowhere/at/all"]).fails_with(10, &["/nowhere"]);
    let stat = run(&archive, &["stat", "--json"]).json();
    assert_eq!(stat["unreferenced"]["count"], 1);
}

#[test]
fn find_shows_every_record_of_a_key_in_all_spellings_and_within_a_window() {
    for name in ARCHIVES {
        let archive = GoldenArchive::bare(name);
        let mut by_key: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for row in rows(name) {
            by_key.entry(row.2.clone()).or_default().push(row);
        }
        // The key with the most records, and one with a long value.
        let most = by_key.values().max_by_key(|rows| rows.len()).unwrap();
        let long = by_key.values().find(|rows| rows[0].0 == "default").unwrap();
        for rows in [most, long] {
            let key = hex::decode(&rows[0].2).unwrap();
            let encoded = hex::encode(EncodedKey::encode(&key).as_bytes());
            for spelling in [format!("hex:{}", rows[0].2), format!("encoded:{encoded}")] {
                let mut found: Vec<_> =
                    found(&archive, &spelling, &[]).iter().map(key_of).collect();
                found.sort();
                let expected: Vec<_> = rows
                    .iter()
                    .map(|row| (row.0.clone(), row.1.clone(), row.2.clone(), row.3))
                    .collect();
                assert_eq!(found, expected, "{spelling}");
            }
            let one = rows[0].3.to_string();
            let spelling = format!("hex:{}", rows[0].2);
            let within = found(&archive, &spelling, &["--from", &one, "--to", &one]);
            let expected = rows.iter().filter(|row| row.3 == rows[0].3).count();
            assert_eq!(within.len(), expected);
        }
    }
}

fn found(archive: &GoldenArchive, key: &str, args: &[&str]) -> Vec<Value> {
    let ran = run(archive, &[&["find", key, "--json"], args].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    lines(&ran)
}

#[test]
fn find_takes_text_and_says_where_a_value_is() {
    let archive = GoldenArchive::bare("log-basic");
    let row = rows("log-basic")
        .into_iter()
        .find(|row| {
            let committed = row.2.starts_with(&hex::encode("async/"));
            committed && row.0 == "default" && row.1 == "put"
        })
        .unwrap();
    let key = String::from_utf8(hex::decode(&row.2).unwrap()).unwrap();
    let records = found(&archive, &key, &[]);
    let write = |record: &&Value| record["write"]["start_ts"] == row.3;
    let commit = records.iter().find(write).unwrap();
    assert_eq!(commit["write"]["value_in"], "long");
    assert!(commit["ts"]["tso"].as_u64().unwrap() > row.3);
    let value = records
        .iter()
        .find(|record| record["value"] == row.4.as_str());
    assert!(value.is_some(), "{records:?}");
    let text = run(&archive, &["find", &key]).stdout;
    assert!(text.contains(" long "), "{text}");
    assert!(text.contains(&format!("start {}", row.3)), "{text}");
}

#[test]
fn damage_is_told_ends_with_20_and_hides_nothing_that_is_whole() {
    type Harm = fn(&Path);
    let cut: Harm = |file| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() * 2 / 3]).unwrap();
    };
    let flip: Harm = |file| {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(file, bytes).unwrap();
    };
    for harm in [cut, flip] {
        let archive = GoldenArchive::with_head("log-basic");
        let object = largest(&archive, ".log");
        let whole = cat(&archive, &object).len();
        harm(&archive.file(&object));
        let ran = run(&archive, &["cat", &object, "--json"]);
        ran.fails_with(20, &[&format!("damaged: {object}"), "PITR1407"]);
        let left = ran.stdout.lines().count();
        assert!(0 < left && left < whole, "{left} of {whole}");
    }
    let archive = GoldenArchive::with_head("log-basic");
    let meta = largest(&archive, ".meta");
    cut(&archive.file(&meta));
    for args in [&["cat", &meta][..], &["stat"]] {
        run(&archive, args).fails_with(20, &[&format!("damaged: {meta}")]);
    }
    let key = format!("hex:{}", rows("log-basic")[0].2);
    run(&archive, &["find", &key]).fails_with(20, &[&meta]);
}

#[test]
fn a_log_file_that_is_missing_or_cut_is_seen_by_stat_and_by_find() {
    let archive = GoldenArchive::with_head("log-basic");
    let object = largest(&archive, ".log");
    let row = cat(&archive, &object).remove(0);
    let key = format!("hex:{}", row["key"].as_str().unwrap());
    let file = archive.file(&object);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    run(&archive, &["stat", "--json"]).fails_with(20, &[&object]);
    fs::remove_file(&file).unwrap();
    run(&archive, &["stat"]).fails_with(20, &[&object, "missing"]);
    run(&archive, &["find", &key]).fails_with(20, &[&object, "missing"]);
    run(&archive, &["cat", &object]).fails_with(10, &["archive ls"]);
}

#[test]
fn damaged_objects_at_the_root_end_with_20_and_a_snapshot_is_no_log() {
    let archive = GoldenArchive::with_head("log-basic");
    archive.write("v1/global_checkpoint/2.ts", b"short");
    archive.write("tikv-pitr/start.json", b"{");
    archive.write("v1_stream_trancate_safepoint.txt", b"never");
    for object in [
        "v1/global_checkpoint/2.ts",
        "tikv-pitr/start.json",
        "v1_stream_trancate_safepoint.txt",
    ] {
        run(&archive, &["cat", object]).fails_with(20, &[object]);
    }
    archive.write("v1/global_checkpoint/3.ts", &vec![0; 2 << 20]);
    run(&archive, &["cat", "v1/global_checkpoint/3.ts"]).fails_with(20, &["2097152 bytes"]);
    let snapshot =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/txn-snapshot/archive");
    let url = format!("local://{}", snapshot.canonicalize().unwrap().display());
    tikv_pitr(&["archive", "cat", "backupmeta", "-s", &url]).fails_with(11, &["PITR1403"]);
}
