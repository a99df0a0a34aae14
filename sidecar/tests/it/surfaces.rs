//! Verbs about the binary itself: codes, configuration, completions, manual, version; what every
//! verb does with `--json`; and clusters that are refused.

use std::fs;

use crate::command::{fits, tikv_pitr};
use crate::system::{Cluster, Sidecar, Storage, wait_until};

#[test]
fn a_failure_in_json_is_the_last_line_of_stderr_even_for_a_wrong_command_line() {
    let error = tikv_pitr(&["log", "start", "--json"]).error();
    assert_eq!(
        (&error["code"], &error["exit_code"]),
        (&"PITR1001".into(), &2.into())
    );
    assert!(
        error["message"].to_string().contains("--storage"),
        "{error}"
    );
    let error = tikv_pitr(&["log", "status", "-u", "127.0.0.1:1", "--json"]).error();
    assert_eq!(
        (&error["code"], &error["class"]),
        (&"PITR1101".into(), &"retry".into())
    );
    let plain = tikv_pitr(&["log", "status", "-u", "127.0.0.1:1"]);
    plain.fails_with(75, &["error[PITR1101]", "effect:", "do:"]);
}

#[test]
fn every_code_that_is_told_can_be_explained() {
    let all = tikv_pitr(&["explain", "--json"]).json();
    let codes = all["codes"].as_array().unwrap();
    assert!(codes.len() > 40);
    let list = tikv_pitr(&["explain"]).stdout;
    assert_eq!(list.lines().count(), codes.len());
    let page = tikv_pitr(&["explain", "pitr1310"]).stdout;
    for word in ["PITR1310", "cause:", "effect:", "do:", "exit:   22"] {
        assert!(page.contains(word), "{page}");
    }
    let unknown = tikv_pitr(&["explain", "PITR0000", "--json"]);
    assert_eq!(
        (unknown.code, &unknown.error()["code"]),
        (10, &"PITR1007".into())
    );
}

#[test]
fn a_configuration_is_checked_and_shown_without_starting_anything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let file = path.to_str().unwrap();
    let write = |text: &str| fs::write(&path, text).unwrap();
    write(
        "pd-endpoints = [\"http://me:hunter2@a:1\"]\nstore-id = 1\nstatus-addr = \"0.0.0.0:9\"\n",
    );
    let checked = tikv_pitr(&["config", "check", "--config", file, "--json"]).json();
    assert!(
        checked["warnings"].to_string().contains("status-addr"),
        "{checked}"
    );
    let shown = tikv_pitr(&["config", "show", "--config", file]);
    assert!(
        shown.stdout.contains("c.toml:2") && !shown.stdout.contains("hunter2"),
        "{}",
        shown.stdout
    );
    let shown = tikv_pitr(&["config", "show", "--config", file, "--json"]).json();
    let setting = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        settings
            .iter()
            .find(|setting| setting["key"] == key)
            .unwrap()
            .clone()
    };
    assert_eq!(setting("store-id")["source"], "file");
    assert_eq!(setting("lag-limit")["source"], "default");
    for wrong in [
        "",
        "pd-endpoints = 1",
        "store-id = [",
        "\u{0}",
        "[log-backup]\nnum-threads = 0",
    ] {
        write(wrong);
        for verb in ["check", "show"] {
            let ran = tikv_pitr(&["config", verb, "--config", file, "--json"]);
            assert_eq!(
                (ran.code, &ran.error()["code"]),
                (3, &"PITR1004".into()),
                "{wrong:?}"
            );
        }
    }
    fs::write(&path, [0xFF, 0xFE]).unwrap();
    tikv_pitr(&["config", "check", "--config", file]).fails_with(3, &["c.toml"]);
    let schema = tikv_pitr(&["config", "schema"]).stdout;
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.schema.json");
    let kept = fs::read_to_string(docs).unwrap();
    assert_eq!(schema.trim(), kept.trim());
}

#[test]
fn completions_and_manual_know_every_verb() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = tikv_pitr(&["completions", shell]).stdout;
        for word in ["restore", "pause", "max-lag"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    tikv_pitr(&["completions", "bash", "--json"]).json();
    assert_eq!(tikv_pitr(&["completions", "cmd"]).code, 2);
    let dir = tempfile::tempdir().unwrap();
    let written = tikv_pitr(&["man", "--dir", dir.path().to_str().unwrap(), "--json"]).json();
    let pages = written["pages"].as_array().unwrap().len();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), pages);
    let page = fs::read_to_string(dir.path().join("tikv-pitr-log-pause.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("gc\\-ttl"), "{page}");
    assert!(tikv_pitr(&["man"]).stdout.contains("tikv\\-pitr"));
    tikv_pitr(&["man", "--dir", "/proc/nowhere"]).fails_with(2, &["PITR1009", "/proc/nowhere"]);
}

/// The verbs as a newcomer sees them; a change here is a change of the promise.
#[test]
fn the_first_page_of_help_lists_the_verbs() {
    let help = tikv_pitr(&["--help"]).stdout;
    let listed = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next()
        .unwrap();
    let verbs: Vec<_> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for verb in [
        "serve",
        "status",
        "log",
        "restore",
        "verify",
        "config",
        "explain",
        "completions",
        "man",
        "version",
    ] {
        assert!(verbs.contains(&verb), "{verb} is missing in {verbs:?}");
    }
    let log = tikv_pitr(&["log", "--help"]).stdout;
    for verb in [
        "start", "stop", "pause", "resume", "list", "status", "metadata",
    ] {
        assert!(
            log.contains(&format!("\n  {verb} ")),
            "{verb} is missing in {log}"
        );
    }
}

#[test]
fn the_version_tells_what_the_binary_can_read() {
    let version = tikv_pitr(&["version", "--json"]).json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["formats"]["log_meta"], 2);
    assert!(tikv_pitr(&["version"]).stdout.starts_with("tikv-pitr "));
    assert_eq!(tikv_pitr(&["--version"]).code, 0);
}

#[test]
fn a_sidecar_of_one_of_several_stores_serves_it_and_the_others_are_named_as_not_captured() {
    let (cluster, archive) = (
        Cluster::start_with(|config| config.stores = 3),
        Storage::new(),
    );
    cluster.log_start(&archive.url()).json();
    let sidecar = Sidecar::start(&cluster);
    wait_until("its task runs", || {
        let status = cluster.log_status();
        let stores = status["tasks"][0]["stores"].as_array().unwrap();
        let states: Vec<_> = stores.iter().map(|store| &store["state"]).collect();
        states == ["running", "no_sidecar", "no_sidecar"]
    });
    sidecar.stop();
}

#[test]
fn a_tikv_that_a_change_stream_can_abort_needs_a_flag() {
    let cluster = Cluster::start_with(|config| config.store_version = "8.5.2".to_owned());
    let archive = Storage::new();
    let start = [
        "log",
        "start",
        "--task-name",
        "t",
        "-s",
        &archive.url(),
        "--json",
    ];
    let refused = cluster.run(&start);
    assert_eq!(
        (refused.code, &refused.error()["code"]),
        (11, &"PITR1107".into())
    );
    let mut forced = start.to_vec();
    forced.push("--allow-unsafe-version");
    cluster.run(&forced).json();
}

#[test]
fn the_log_of_the_sidecar_is_one_json_object_a_line_when_asked() {
    let cluster = Cluster::start();
    let sidecar = Sidecar::start_with_args(&cluster, "", &["--json"]);
    wait_until("it is ready", || sidecar.page("/readyz").contains("200 OK"));
    sidecar.signal("-TERM");
    let (code, said) = sidecar.wait();
    assert_eq!(code, 0, "{said}");
    assert!(said.lines().count() >= 3, "{said}");
    for line in said.lines() {
        fits("serve", line);
    }
}
