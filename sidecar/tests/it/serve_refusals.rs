//! `serve` and `config check` on configurations that cannot work: the same code from both where the
//! file alone tells it, the key named, nothing started; and what only shows at a running cluster.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Ran, fits, tikv_pitr};
use crate::system::{Cluster, Sidecar, wait_until};

struct File {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl File {
    fn of(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sidecar.toml");
        std::fs::write(&path, text).unwrap();
        File { path, _dir: dir }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// Runs `serve` to its end, which must come.
#[track_caller]
fn serve(file: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(["serve", "--config", file])
        .env("TIKV_PITR_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it serves: {:?}", child.wait_with_output());
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

/// Files of which each has one mistake, and the key that it is about.
fn files_with_a_mistake() -> Vec<(String, &'static str)> {
    let pd = "pd-endpoints = [\"127.0.0.1:1\"]\n";
    let least = format!("{pd}store-id = 1\n");
    let log = format!("{least}[log-backup]\n");
    vec![
        (String::new(), "pd-endpoints"),
        (
            "pd-endpoints = []\nstore-id = 1\n".to_owned(),
            "pd-endpoints",
        ),
        (
            "pd-endpoints = [\"\"]\nstore-id = 1\n".to_owned(),
            "pd-endpoints",
        ),
        (
            "pd-endpoints = \"127.0.0.1:1\"\nstore-id = 1\n".to_owned(),
            "pd-endpoints",
        ),
        (pd.to_owned(), "store-id"),
        (format!("{pd}store-id = 0\n"), "store-id"),
        (format!("{pd}store-id = -1\n"), "store-id"),
        (format!("{pd}store-id = \"1\"\n"), "store-id"),
        (format!("{least}store-address = \"a:1\"\n"), "store-address"),
        (
            format!("{least}status-addr = \"localhost\"\n"),
            "status-addr",
        ),
        (
            format!("{least}status-addr = \"127.0.0.1:65536\"\n"),
            "status-addr",
        ),
        (format!("{least}status-addr = \":20190\"\n"), "status-addr"),
        (format!("{least}lag-limit = 600\n"), "lag-limit"),
        (format!("{least}lag-limit = \"-1s\"\n"), "lag-limit"),
        (
            format!("{least}memory-budget = \"31MiB\"\n"),
            "memory-budget",
        ),
        (
            format!("{least}memory-budget = \"32 potatoes\"\n"),
            "memory-budget",
        ),
        (format!("{least}temp-file-quota = 8\n"), "temp-file-quota"),
        (
            format!("{least}temp-file-quota = \"99999999TiB\"\n"),
            "temp-file-quota",
        ),
        (format!("{least}temp-path = 7\n"), "temp-path"),
        (
            format!("{log}max-flush-interval = \"0s\"\n"),
            "max-flush-interval",
        ),
        (
            format!("{log}file-size-limit = \"1B\"\n"),
            "file-size-limit",
        ),
        (format!("{log}num-threads = 0\n"), "num-threads"),
        (format!("{log}num-threads = 65\n"), "num-threads"),
        (format!("{log}num-threads = -1\n"), "num-threads"),
        (format!("{least}store-id = 2\n"), "store-id"),
        (format!("{least}log-backup = 3\n"), "log-backup"),
        (format!("{least}[log_backup]\n"), "log_backup"),
        (format!("{least}= 3\n"), "="),
    ]
}

#[test]
fn every_key_out_of_its_range_ends_serve_and_config_check_alike_with_3() {
    for (text, key) in files_with_a_mistake() {
        let file = File::of(&text);
        let checked = tikv_pitr(&["config", "check", "--config", file.path(), "--json"]);
        assert_eq!(checked.code, 3, "{text}: {}", checked.stderr);
        let error = checked.error();
        assert_eq!(error["code"], "PITR1004", "{text}");
        assert_eq!(error["place"], file.path(), "{text}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(key),
            "{text}: {key} is not named in {message}"
        );
        let shown = tikv_pitr(&["config", "show", "--config", file.path(), "--json"]);
        assert_eq!((shown.code, &shown.error()), (3, &error), "{text}");
        let served = serve(file.path());
        assert_eq!(served.code, 3, "{text}: {}", served.stderr);
        assert!(
            served.stderr.contains(message.lines().next().unwrap()),
            "{}",
            served.stderr
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_bad_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("binary.toml");
    std::fs::write(&binary, b"pd-endpoints = \xFF\xFE\n").unwrap();
    let missing = dir.path().join("missing.toml");
    for path in [dir.path(), &binary, &missing] {
        let path = path.to_str().unwrap();
        for verb in ["check", "show"] {
            let ran = tikv_pitr(&["config", verb, "--config", path, "--json"]);
            assert_eq!(
                (ran.code, &ran.error()["code"]),
                (3, &"PITR1004".into()),
                "{path}"
            );
            assert!(
                ran.error()["message"].to_string().contains(path),
                "{}",
                ran.stderr
            );
        }
        assert_eq!(serve(path).code, 3);
    }
}

fn config(cluster: &Cluster, lines: &str) -> File {
    File::of(&format!(
        "pd-endpoints = {:?}\nstore-address = \"{}\"\nstatus-addr = \"127.0.0.1:0\"\n{lines}\n",
        cluster.pds(),
        cluster.playground.store_addr(),
    ))
}

#[test]
fn a_place_for_temporary_files_that_cannot_be_used_is_refused_by_name() {
    let cluster = Cluster::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"mine").unwrap();
    let below = file.join("below");
    for path in [
        &file,
        &below,
        &PathBuf::from("/proc/nowhere"),
        &PathBuf::from("/sys/nowhere"),
    ] {
        let refused = serve(config(&cluster, &format!("temp-path = {path:?}")).path());
        refused.fails_with(3, &["PITR1004", "temp-path", path.to_str().unwrap()]);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");

    // Of one sidecar alone: the second one would empty it under the first one's hands.
    let temp = dir.path().join("temp");
    let lines = format!("temp-path = {temp:?}");
    let first = Sidecar::start_with(&cluster, &lines);
    wait_until("the first is ready", || {
        first.page("/readyz").contains("200 OK")
    });
    let second = serve(config(&cluster, &lines).path());
    second.fails_with(3, &["PITR1004", temp.to_str().unwrap()]);
    assert!(first.page("/readyz").contains("200 OK"));
    first.stop();
}

#[test]
fn an_admin_address_that_is_taken_or_not_ours_has_a_code_of_its_own() {
    let guard = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = guard.local_addr().unwrap();
    for (address, code, pitr) in [
        (busy.to_string(), 11, "PITR1601"),
        // Of a network for documentation (RFC 5737).
        ("203.0.113.1:20190".to_owned(), 3, "PITR1603"),
    ] {
        let text = format!(
            "pd-endpoints = [\"127.0.0.1:1\"]\nstore-id = 1\nstatus-addr = \"{address}\"\n"
        );
        let refused = serve(File::of(&text).path());
        refused.fails_with(code, &[pitr, &address]);
    }
}

#[test]
fn a_store_that_pd_does_not_know_is_not_found() {
    let cluster = Cluster::start();
    let of = |store: &str| {
        File::of(&format!(
            "pd-endpoints = {:?}\nstatus-addr = \"127.0.0.1:0\"\n{store}\n",
            cluster.pds()
        ))
    };
    for store in ["store-id = 4711", "store-address = \"198.51.100.7:20160\""] {
        let refused = serve(of(store).path());
        let value = store.split(" = ").nth(1).unwrap().trim_matches('"');
        refused.fails_with(10, &[value]);
    }
}

#[test]
fn the_log_of_a_refused_sidecar_is_json_to_the_last_line_when_asked() {
    let file = File::of("store-id = 1\n");
    let ran = tikv_pitr(&["serve", "--json", "--config", file.path()]);
    assert_eq!(ran.code, 3);
    fits("error", ran.stderr.lines().last().unwrap());
}

/// Warnings are no refusals, and they are in the document.
#[test]
fn what_works_but_may_not_be_meant_is_warned_of() {
    let file =
        File::of("pd-endpoints = [\"a:1\"]\nstore-id = 1\nstatus-addr = \"0.0.0.0:20190\"\n");
    let checked = tikv_pitr(&["config", "check", "--config", file.path(), "--json"]).json();
    let warnings = checked["warnings"].to_string();
    assert!(
        warnings.contains("status-addr") && warnings.contains("pd-endpoints"),
        "{warnings}"
    );
    let quiet = File::of(
        "pd-endpoints = [\"a:1\", \"b:1\"]\nstore-id = 1\nstatus-addr = \"127.0.0.1:20190\"\n",
    );
    let checked = tikv_pitr(&["config", "check", "--config", quiet.path(), "--json"]).json();
    assert_eq!(
        checked["warnings"].as_array().unwrap().len(),
        0,
        "{checked}"
    );
}
