//! Verbs on a bucket that refuses, breaks or is not there: the exit code says which, `--json` stays
//! valid, and no output shows a credential, whatever the server repeats and however much is logged.

use std::net::TcpListener;
use std::process::Command;

use crate::archives::GoldenArchive;
use crate::bucket::{Bucket, SECRETS};
use crate::command::{Ran, fits};
use crate::system::{Client, Cluster, load, wait_until};

/// Verbs that only read, without `-s URL`.
fn readers(archive: &GoldenArchive) -> Vec<String> {
    let meta = archive.objects(".meta").remove(0);
    let verbs = [
        "archive ls",
        "archive stat",
        "archive find key",
        &format!("archive cat {meta}"),
        "verify data",
        "log metadata",
        "restore point --dry-run",
    ];
    verbs.map(str::to_owned).to_vec()
}

/// Runs a verb with everything logged.
fn run_loudly(args: &[&str], environment: &[(&str, &str)]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(args)
        .env("TIKV_PITR_LOG", "trace")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[track_caller]
fn shows_no_secret(what: &str, text: &str) {
    for secret in SECRETS {
        let escaped = secret.replace('+', "%2B").replace('/', "%2F");
        for spelling in [secret, &escaped] {
            if let Some(at) = text.find(spelling) {
                let near: String = text[..at].chars().rev().take(300).collect();
                let near: String = near.chars().rev().collect();
                panic!("{what} shows {spelling}: …{near}");
            }
        }
    }
}

/// Runs every verb on a URL, all at once, because some wait for a while before they give up.
#[track_caller]
fn all_end_with(archive: &GoldenArchive, url: &str, code: i32, pitr: &str) {
    let verbs = readers(archive);
    std::thread::scope(|threads| {
        for verb in &verbs {
            threads.spawn(move || {
                let mut args: Vec<&str> = verb.split(' ').collect();
                args.extend(["--json", "-s", url]);
                let ran = run_loudly(&args, &[]);
                assert_eq!(ran.code, code, "{verb}: {}", ran.stderr);
                fits("error", ran.stderr.lines().last().unwrap_or_default());
                assert_eq!(ran.error()["code"], pitr, "{verb}: {}", ran.error());
                assert_eq!(ran.stdout, "", "{verb}");
                shows_no_secret(verb, &(ran.stderr + &ran.stdout));
            });
        }
    });
}

#[test]
fn an_archive_in_a_bucket_is_read_like_one_in_a_directory() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    let both = |verb: &str| {
        let run = |url: &str| {
            let mut args: Vec<&str> = verb.split(' ').collect();
            args.extend(["--json", "-s", url]);
            let ran = run_loudly(&args, &[]);
            shows_no_secret(verb, &(ran.stderr.clone() + &ran.stdout));
            // The place differs, nothing else may.
            let text = ran.stdout.replace(&bucket.shown(), "PLACE");
            (ran.code, text.replace(&archive.url(), "PLACE"))
        };
        assert_eq!(run(&archive.url()), run(&bucket.url()), "{verb}");
    };
    for verb in readers(&archive) {
        both(&verb);
    }
}

#[test]
fn a_refused_caller_ends_every_verb_with_12() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    for status in [401, 403] {
        bucket.fail("*", "", status);
        all_end_with(&archive, &bucket.url(), 12, "PITR1202");
    }
}

#[test]
fn a_bucket_that_is_not_there_ends_every_verb_with_10() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    all_end_with(&archive, &bucket.missing(), 10, "PITR1203");
}

#[test]
fn a_storage_that_keeps_failing_or_does_not_listen_ends_every_verb_with_75() {
    let archive = GoldenArchive::with_head("log-basic").proven_empty();
    let bucket = Bucket::of(&archive.file(""));
    bucket.fail("*", "", 503);
    all_end_with(&archive, &bucket.url(), 75, "PITR1201");
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let [id, key, _] = SECRETS;
    let nobody =
        format!("s3://bucket?endpoint=http://{free}&access-key={id}&secret-access-key={key}");
    all_end_with(&archive, &nobody, 75, "PITR1201");
}

#[test]
fn the_writing_verbs_tell_the_same_codes_and_leave_nothing() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::of(dir.path());
    let pd = cluster.pd();
    for (method, code) in [("PUT", 12), ("*", 12)] {
        bucket.fail(method, "", 403);
        let url = bucket.url();
        let verbs = [
            vec![
                "speed-test",
                "--time",
                "1ms",
                "--objects",
                "2",
                "--large",
                "1",
                "-s",
                &url,
            ],
            vec!["log", "start", "--task-name", "t", "-u", &pd, "-s", &url],
        ];
        for mut verb in verbs {
            verb.push("--json");
            let ran = run_loudly(&verb, &[]);
            assert_eq!(ran.code, code, "{verb:?}: {}", ran.stderr);
            fits("error", ran.stderr.lines().last().unwrap_or_default());
            assert_eq!(ran.stdout, "");
            shows_no_secret(verb[0], &ran.stderr);
        }
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 0, "{method}");
    }
    let listed = cluster.run(&["log", "list", "--json"]).json();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 0);
}

/// Credentials of the environment, and those that no verb should ever have been given.
#[test]
fn urls_that_are_refused_and_variables_of_the_environment_are_never_repeated() {
    let [id, key, token] = SECRETS;
    let environment = [
        ("AWS_ACCESS_KEY_ID", id),
        ("AWS_SECRET_ACCESS_KEY", key),
        ("AWS_SESSION_TOKEN", token),
        ("AZURE_STORAGE_KEY", key),
        ("AZURE_STORAGE_SAS_TOKEN", token),
        ("AZURE_STORAGE_ACCOUNT", "account"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/dev/null"),
    ];
    let urls = [
        format!("s3://b/p?access-key={id}"),
        format!("s3://b/p?access-key={id}&secret-access-key={key}&sse-c={token}"),
        format!("s3://{id}:{key}@b/p"),
        format!("s3://b/p?secret-acces-key={key}&access-key={id}"),
        format!("s3://b/p?access-key={id}&secret-access-key=a&b{key}=1"),
        format!("s3://b?endpoint=http://{id}:{key}@h"),
        format!("gcs://b?credentials-file=/nowhere&token={token}"),
        format!("azure://b?account-name=a&account-key={key}&encryption-key={token}"),
        format!("azure://b?account-name=a&account-key={key}"),
        format!("azure://b?sas-token={token}"),
        format!("ks3://{id}:{key}@b"),
        format!("hdfs://{id}:{key}@b/p?x={token}"),
        format!("carrier-pigeon://b?x={token}"),
        format!("s3://b/p#{token}"),
    ];
    for url in &urls {
        for verb in ["log metadata", "archive ls", "verify data"] {
            let mut args: Vec<&str> = verb.split(' ').collect();
            args.extend(["--json", "-s", url]);
            let ran = run_loudly(&args, &environment);
            assert!([2, 10, 12, 75].contains(&ran.code), "{url}: {}", ran.stderr);
            shows_no_secret(url.split('?').next().unwrap(), &(ran.stderr + &ran.stdout));
        }
    }
}

/// The credentials travel through PD to the sidecar and into its pages, logs and metrics.
#[test]
fn a_task_with_credentials_shows_them_nowhere_while_it_works_and_while_it_fails() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let bucket = Bucket::of(dir.path());
    let started = cluster.log_start(&bucket.url());
    shows_no_secret("log start", &(started.stderr.clone() + &started.stdout));
    started.json();
    let sidecar = crate::system::Sidecar::start_loud(&cluster);
    let client = Client::of(&cluster);
    client.write(&load(1));
    cluster.wait_checkpoint(client.now());
    let look = |when: &str| {
        for page in [
            "/",
            "/status.json",
            "/metrics",
            "/config",
            "/readyz",
            "/healthz",
        ] {
            shows_no_secret(&format!("{page} {when}"), &sidecar.page(page));
        }
        for verb in [&["log", "status"][..], &["log", "list"], &["status"]] {
            for json in [&[][..], &["--json"]] {
                let ran = cluster.run(&[verb, json].concat());
                shows_no_secret(&format!("{verb:?} {when}"), &(ran.stderr + &ran.stdout));
            }
        }
    };
    look("at work");
    bucket.fail("PUT", "", 403);
    client.write(&load(2));
    wait_until("the failure shows", || {
        sidecar.page("/status.json").contains("PITR1202")
    });
    look("while it is refused");
    bucket.mend();
    cluster.wait_checkpoint(client.now());
    sidecar.signal("-TERM");
    let (code, said) = sidecar.wait();
    assert_eq!(code, 0, "the last flush is made");
    assert!(said.len() > 10_000, "it was told to log everything");
    shows_no_secret("the log", &said);
}
