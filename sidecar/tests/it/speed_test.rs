//! `speed-test`: what it measures, and that it leaves nothing behind but after a kill.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::command::tikv_pitr;
use crate::system::wait_until;

const QUICK: [&str; 3] = ["speed-test", "--time", "1ms"];

fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => found.push(path.strip_prefix(dir).unwrap().display().to_string()),
            }
        }
    }
    found
}

/// A run that has far more to do than the test waits for, once it has written something.
fn endless(dir: &Path) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(QUICK)
        .args([
            "--objects",
            "1000000",
            "-s",
            &format!("local://{}", dir.display()),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("objects are written", || files(dir).len() > 3);
    child
}

#[test]
fn the_machine_alone_is_measured_in_ratios_to_a_memory_copy() {
    let report = tikv_pitr(&[&QUICK[..], &["--json"]].concat()).json();
    let stages = report["machine"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|s| s["name"].as_str().unwrap()).collect();
    let expected = [
        "memory copy",
        "crc64",
        "sha256",
        "zstd 1 compress",
        "zstd decompress",
    ];
    assert_eq!(names, expected);
    assert_eq!(stages[0]["of_memory_copy"], 1.0);
    assert!(report["storage"].is_null());
    let text = tikv_pitr(&QUICK).stdout;
    assert!(text.contains("sha256"), "{text}");
    assert_eq!(tikv_pitr(&["speed-test", "--remove-leftovers"]).code, 2);
    assert_eq!(tikv_pitr(&["speed-test", "--objects", "0"]).code, 2);
}

#[test]
fn a_storage_is_measured_and_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("backupmeta"), b"not ours").unwrap();
    let url = format!("local://{}", dir.path().display());
    let args = [&QUICK[..], &["-s", &url, "--objects", "5", "--large", "1"]].concat();
    let report = tikv_pitr(&[&args[..], &["--json"]].concat()).json();
    let storage = &report["storage"];
    for call in ["put", "get", "delete"] {
        assert_eq!(storage[call]["calls"], 5);
    }
    for call in ["put_large", "get_large"] {
        assert_eq!(storage[call]["bytes"], 4 << 20);
        assert!(storage[call]["of_memory_copy"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(storage["leftovers"], 0);
    assert_eq!(files(dir.path()), ["backupmeta"]);
    let text = tikv_pitr(&args);
    assert!(text.stdout.contains("p99 ms"), "{}", text.stdout);
    tikv_pitr(&["speed-test", "-s", "carrier-pigeon://x"]).fails_with(2, &["scheme"]);
}

#[test]
fn an_interrupted_run_removes_its_objects() {
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let child = endless(dir.path());
        let id = child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(
            said.contains("all temporary objects were removed"),
            "{said}"
        );
        assert_eq!(files(dir.path()), Vec::<String>::new());
    }
}

#[test]
fn a_killed_run_leaves_only_its_prefix_and_the_next_one_says_so_and_removes_it_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = endless(dir.path());
    child.kill().unwrap();
    child.wait().unwrap();
    let left = files(dir.path());
    assert!(left.len() > 3);
    let ours = |name: &String| name.starts_with("tikv-pitr/speed-test-");
    assert!(left.iter().all(ours), "{left:?}");
    let url = format!("local://{}", dir.path().display());
    let args = [&QUICK[..], &["-s", &url, "--objects", "2", "--large", "1"]].concat();
    let told = tikv_pitr(&args);
    told.fails_with(0, &["warning", "--remove-leftovers"]);
    assert_eq!(files(dir.path()).len(), left.len());
    let listed = tikv_pitr(&["archive", "ls", "-s", &url, "--json"]).json();
    assert_eq!(listed["objects"][0]["kind"], "speed-test");
    let removed = tikv_pitr(&[&args[..], &["--remove-leftovers", "--json"]].concat()).json();
    assert_eq!(removed["storage"]["leftovers_removed"], true);
    assert!(removed["storage"]["leftovers"].as_u64().unwrap() >= 3);
    // A write that the kill cut is hidden from listings and goes when it is old.
    let unfinished = |name: &String| name.contains(".tmp");
    assert!(files(dir.path()).iter().all(unfinished));
}
