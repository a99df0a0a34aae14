//! Verbs that need no cluster, and how verbs fail before they reach one.

use std::fs;

use crate::archives::GoldenArchive;
use crate::command::tikv_pitr;

#[test]
fn wrong_arguments_end_with_2_and_help_with_0() {
    assert_eq!(tikv_pitr(&["log", "begin"]).code, 2);
    assert_eq!(tikv_pitr(&["restore", "point"]).code, 2);
    assert_eq!(tikv_pitr(&["--help"]).code, 0);
    tikv_pitr(&[
        "log",
        "start",
        "-s",
        "local:///x",
        "--task-name",
        "t",
        "--range",
        "zz",
    ])
    .fails_with(2, &["START_HEX:END_HEX"]);
}

#[test]
fn an_unknown_key_of_the_configuration_names_the_nearest_and_ends_with_3() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    fs::write(
        &file,
        "pd-endpoints = [\"127.0.0.1:1\"]\nstore-adress = \"x:1\"\n",
    )
    .unwrap();
    tikv_pitr(&["serve", "--config", file.to_str().unwrap()]).fails_with(
        3,
        &["`store-adress`", "did you mean `store-address`", "c.toml"],
    );
    let help = tikv_pitr(&["serve", "--help"]).stdout;
    assert!(
        help.contains("log-backup.max-flush-interval (duration, default 3m)"),
        "{help}"
    );
    tikv_pitr(&["serve", "--config", "/nowhere/c.toml"]).fails_with(3, &["/nowhere/c.toml"]);
}

#[test]
fn an_unreachable_pd_ends_with_75() {
    let ran = tikv_pitr(&["log", "status", "-u", "127.0.0.1:1"]);
    ran.fails_with(75, &["unreachable", "127.0.0.1:1"]);
    assert!(ran.stdout.is_empty());
}

#[test]
fn a_storage_that_does_not_exist_is_not_found_and_a_wrong_url_is_usage() {
    tikv_pitr(&["verify", "data", "-s", "local:///nowhere/at/all"])
        .fails_with(10, &["/nowhere/at/all"]);
    tikv_pitr(&["log", "metadata", "-s", "carrier-pigeon://x"]).fails_with(2, &["scheme"]);
}

#[test]
fn an_archive_as_tikv_leaves_it_is_sound_but_without_bounds() {
    for name in ["log-basic", "log-splits"] {
        let archive = GoldenArchive::bare(name);
        let ran = tikv_pitr(&["verify", "data", "-s", &archive.url(), "--json"]);
        let report = ran.json();
        assert!(report["records"].as_u64().unwrap() > 1000, "{report}");
        assert_eq!(report["problems"].as_array().unwrap().len(), 0);
        assert!(report["warnings"].to_string().contains(".ts"), "{report}");
        tikv_pitr(&["restore", "point", "-s", &archive.url(), "--dry-run"])
            .fails_with(10, &["backupmeta"]);
    }
}

#[test]
fn unreferenced_objects_are_listed_and_are_no_fault() {
    let archive = GoldenArchive::with_head("log-basic");
    let stray = "v1/20261122/02/1/470630701673742338-00000000-0000-0000-0000-000000000000.log";
    archive.write(stray, b"left over");
    let ran = tikv_pitr(&["verify", "data", "-s", &archive.url()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains(&format!("unreferenced: {stray}")),
        "{}",
        ran.stdout
    );
}

#[test]
fn every_kind_of_damage_ends_with_20_and_names_the_object() {
    type Harm = fn(&std::path::Path);
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
    let lose: Harm = |file| fs::remove_file(file).unwrap();
    for (ending, harm) in [
        (".log", cut),
        (".log", flip),
        (".log", lose),
        (".meta", cut),
    ] {
        let archive = GoldenArchive::with_head("log-basic");
        let largest = |name: &String| fs::metadata(archive.file(name)).unwrap().len();
        let object = archive
            .objects(ending)
            .into_iter()
            .max_by_key(largest)
            .unwrap();
        harm(&archive.file(&object));
        let ran = tikv_pitr(&["verify", "data", "-s", &archive.url()]);
        ran.fails_with(20, &[&object]);
        assert!(
            ran.stdout.contains(&format!("damaged: {object}")),
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn metadata_shows_the_window_of_an_archive() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let report = tikv_pitr(&["log", "metadata", "-s", &archive.url(), "--json"]).json();
    assert_eq!(report["min"]["tso"], archive.start_ts);
    assert_eq!(report["max"]["tso"], archive.end_ts);
    assert_eq!(report["proven_empty"], true);
    assert_eq!(report["cluster_id"], 77);
}

#[test]
fn a_plan_is_printed_without_a_target_and_a_time_outside_of_the_window_is_refused() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let restore = |args: &[&str]| {
        let url = archive.url();
        let mut all = vec!["restore", "point", "-s", &url, "--dry-run"];
        all.extend(args);
        tikv_pitr(&all)
    };
    let plan = restore(&["--json"]).json();
    assert_eq!(plan["restored"]["tso"], archive.end_ts);
    assert!(plan["records"].as_u64().unwrap() > 1000);
    let late = (archive.end_ts + 1).to_string();
    let end = archive.end_ts.to_string();
    restore(&["--restored-ts", &late]).fails_with(2, &["window", &end]);
    restore(&["--restored-ts", "2020-01-01T00:00:00Z"]).fails_with(2, &["window", &end]);
    restore(&["--restored-ts", "noon"]).fails_with(2, &["noon"]);
}

#[test]
fn an_archive_that_is_not_proven_to_begin_empty_needs_log_only() {
    let archive = GoldenArchive::with_head("log-splits");
    let url = archive.url();
    tikv_pitr(&["restore", "point", "-s", &url, "--dry-run"])
        .fails_with(2, &["--log-only", "base snapshot"]);
    let forced = tikv_pitr(&["restore", "point", "-s", &url, "--dry-run", "--log-only"]);
    assert_eq!(forced.code, 0, "{}", forced.stderr);
}
