//! SIGINT and SIGTERM at every verb that can take its time: exit code 130, nothing told as done, and
//! the same command can be given again. Verbs are stopped where they must wait: at a PD that never
//! answers, or at a bucket that holds their requests.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::archives::GoldenArchive;
use crate::bucket::Bucket;
use crate::command::{Ran, fits};
use crate::system::{Client, Cluster, wait_until};

/// How long an interrupted verb may take to end.
const SOON: Duration = Duration::from_secs(10);

fn spawn(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(args)
        .env("TIKV_PITR_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(sent.success(), "{id} has ended before {name}");
}

/// What it said and its code; -1 is a death by signal.
#[track_caller]
fn end_of(mut child: Child) -> Ran {
    let end = Instant::now() + SOON;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// 130, a failure of the schema, and no result.
#[track_caller]
fn was_interrupted(verb: &str, ran: &Ran) {
    assert_eq!(ran.code, 130, "{verb}: {}{}", ran.stdout, ran.stderr);
    let last = ran.stderr.lines().last().unwrap_or_default();
    fits("error", last);
    assert_eq!(ran.error()["exit_code"], 130, "{verb}");
    assert_eq!(ran.stdout, "", "{verb}: a result was printed");
}

/// A PD that takes connections and says nothing; tells of each.
fn silent_pd() -> (String, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // The test may be over.
            let _ = tell.send(stream.unwrap());
        }
    });
    (address, told)
}

#[test]
fn every_verb_that_waits_for_pd_ends_with_130_on_either_signal() {
    let verbs = [
        "log start --task-name t -s local:///tmp/nowhere",
        "log stop --task-name t",
        "log pause --task-name t",
        "log resume --task-name t",
        "log list",
        "log status",
        "status",
        "verify scan",
    ];
    for (i, verb) in verbs.iter().enumerate() {
        let name = ["-TERM", "-INT"][i % 2];
        let (pd, connected) = silent_pd();
        let mut args: Vec<&str> = verb.split(' ').collect();
        args.extend(["--json", "-u", &pd]);
        let child = spawn(&args);
        let _open = connected.recv_timeout(SOON).expect(verb);
        signal(&child, name);
        was_interrupted(verb, &end_of(child));
    }
}

#[test]
fn every_verb_that_waits_for_a_storage_ends_with_130_on_either_signal() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    let url = bucket.url();
    let log = archive.objects(".log").remove(0);
    let cat = format!("archive cat {log}");
    let verbs = [
        "archive ls",
        "archive stat",
        "archive find key",
        &cat,
        "verify data",
        "log metadata",
        "restore point --dry-run",
    ];
    bucket.hold("*", "");
    let children = verbs.iter().map(|verb| {
        let mut args: Vec<&str> = verb.split(' ').collect();
        args.extend(["--json", "-s", &url]);
        (*verb, spawn(&args))
    });
    let children: Vec<_> = children.collect();
    bucket.wait_held(verbs.len());
    for (i, (_, child)) in children.iter().enumerate() {
        signal(child, ["-INT", "-TERM"][i % 2]);
    }
    for (verb, child) in children {
        was_interrupted(verb, &end_of(child));
    }
    bucket.release();
}

fn restore(pd: &str, url: &str) -> Child {
    spawn(&["restore", "point", "--json", "-u", pd, "-s", url])
}

#[test]
fn a_restore_that_is_stopped_while_it_reads_has_written_nothing_and_can_be_given_again() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    let (target, url) = (Cluster::start(), bucket.url());
    let client = Client::of(&target);
    // The begin, the metas, the slices.
    for (stage, name) in [("list-type", "-TERM"), (".meta", "-INT"), (".log", "-TERM")] {
        bucket.hold("GET", stage);
        let child = restore(&target.pd(), &url);
        bucket.wait_held(1);
        signal(&child, name);
        let ran = end_of(child);
        was_interrupted(stage, &ran);
        let effect = ran.error()["effect"].clone();
        assert_eq!(effect, "nothing was written to the target", "{stage}");
        assert_eq!(target.scan_digest(client.now()).1, 0, "{stage}");
        bucket.release();
    }
    let again = end_of(restore(&target.pd(), &url));
    assert_eq!(again.json()["verified"], true);
}

#[test]
fn a_second_signal_changes_nothing_and_temporary_files_are_gone() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    let (target, url) = (Cluster::start(), bucket.url());
    let temp = tempfile::tempdir().unwrap();
    bucket.hold("GET", ".log");
    let child = spawn(&[
        "restore",
        "point",
        "--json",
        "-u",
        &target.pd(),
        "-s",
        &url,
        "--temp-dir",
        temp.path().to_str().unwrap(),
    ]);
    bucket.wait_held(1);
    signal(&child, "-TERM");
    signal(&child, "-INT");
    was_interrupted("twice", &end_of(child));
    bucket.release();
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Wherever the signal hits: what the verb says of the target is true.
#[test]
fn a_restore_that_is_stopped_anywhere_tells_the_truth_about_its_target() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let url = archive.url();
    let mut target = Cluster::start();
    // How long the whole way takes here; the signals are spread over it.
    let began = Instant::now();
    let whole = end_of(restore(&Cluster::start().pd(), &url)).json();
    let took = began.elapsed();
    let (mut finished, mut stopped) = (0, 0);
    for step in 1..=8u32 {
        let child = restore(&target.pd(), &url);
        std::thread::sleep(took * step / 9);
        // It may be over already.
        let id = child.id().to_string();
        let _ = Command::new("kill")
            .args(["-TERM", &id])
            .stderr(Stdio::null())
            .status();
        let ran = end_of(child);
        let client = Client::of(&target);
        let keys = target.scan_digest(client.now()).1;
        match ran.code {
            0 => {
                finished += 1;
                let report: Value = serde_json::from_str(&ran.stdout).unwrap();
                assert_eq!(report["verified"], true);
                assert_eq!(report["scan_digest"], whole["scan_digest"]);
            }
            130 => {
                stopped += 1;
                was_interrupted("restore point", &ran);
                let effect = ran.error()["effect"].to_string();
                match effect.contains("nothing was written") {
                    true => {
                        assert_eq!(keys, 0, "{effect}");
                        continue;
                    }
                    false => assert!(effect.contains("do not use it"), "{effect}"),
                }
            }
            // Before the handlers are there a signal ends the process, which has done nothing.
            -1 => {
                assert_eq!(keys, 0);
                continue;
            }
            // Written, and the signal came while the proof was made.
            23 => {
                stopped += 1;
                assert_eq!(ran.stdout, "");
                assert_eq!(ran.error()["code"], "PITR1508", "{}", ran.stderr);
            }
            code => panic!("{code}: {}", ran.stderr),
        }
        // What may hold data is refused as a target, by its content and not by a note.
        if keys > 0 {
            let again = end_of(restore(&target.pd(), &url));
            assert_eq!(again.code, 11, "{}", again.stderr);
        }
        target = Cluster::start();
    }
    assert!(
        stopped > 0,
        "no signal hit: {finished} of 8 finished in {took:?}"
    );
}

#[test]
fn a_sidecar_that_waits_for_pd_leaves_at_once_when_asked() {
    for name in ["-TERM", "-INT"] {
        let (pd, connected) = silent_pd();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text =
            format!("pd-endpoints = [\"{pd}\"]\nstore-id = 1\nstatus-addr = \"127.0.0.1:0\"\n");
        std::fs::write(&file, text).unwrap();
        let child = spawn(&["serve", "--config", file.to_str().unwrap()]);
        let _open = connected.recv_timeout(SOON).unwrap();
        signal(&child, name);
        let ran = end_of(child);
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
    }
}

/// A start that is killed leaves no task, and the next one finishes its work: wherever it died.
#[test]
fn a_log_start_that_is_killed_or_fails_at_any_write_registers_nothing_and_can_be_repeated() {
    let cluster = Cluster::start();
    let writes = {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::of(dir.path());
        cluster.log_start(&bucket.url()).json();
        assert_eq!(cluster.run(&["log", "stop", "--task-name", "t"]).code, 0);
        bucket.puts()
    };
    assert!(writes >= 3, "lock, probe and backupmeta: {writes}");
    let tasks = || cluster.log_status()["tasks"].as_array().unwrap().len();
    for nth in 0..writes {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Bucket::of(dir.path());
        bucket.fail_nth("PUT", 403, nth);
        let refused = cluster.log_start(&bucket.url());
        refused.fails_with(12, &["PITR1202"]);
        assert_eq!(tasks(), 0, "write {nth} failed");
        bucket.mend();
        // Killed at the same place.
        let before = bucket.puts();
        bucket.hold("PUT", "");
        let url = bucket.url();
        let pd = cluster.pd();
        let args = ["log", "start", "--task-name", "t", "-s", &url, "-u", &pd];
        let mut child = spawn(&args);
        bucket.wait_held(1);
        child.kill().unwrap();
        child.wait().unwrap();
        bucket.release();
        wait_until("the held write came through", || bucket.puts() > before);
        assert_eq!(tasks(), 0, "killed after write {nth} failed");
        let started = cluster.log_start(&url);
        assert_eq!(started.code, 0, "write {nth}: {}", started.stderr);
        assert_eq!(tasks(), 1);
        assert_eq!(cluster.run(&["log", "stop", "--task-name", "t"]).code, 0);
    }
}
