//! `--tls-dir`: a triple that is made once and kept, never mended, and used by the program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bytes::Bytes;
use pitr_cluster::tls::TlsConfig;
use pitr_playground::certificates::{Issued, in_directory};
use rustls::{ALL_VERSIONS, ClientConfig};
use serde_json::Value;
use tonic::Code;

use super::dial::{self, Speech, knock};
use crate::it::pd_servers::tls_client;
use crate::it::raw::unary;

const NAMES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

fn contents(dir: &Path) -> Vec<String> {
    let read = |name: &&str| fs::read_to_string(dir.join(name)).unwrap();
    NAMES.iter().map(read).collect()
}

/// The program with its own data directory, on free ports.
fn program(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tikv-pitr-playground"));
    command
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--pd-addr", "127.0.0.1:0", "--store-addr", "127.0.0.1:0"])
        .arg("--tls-dir")
        .arg(dir.join("tls"))
        .args(more);
    command
}

/// A program that runs, and what it announced.
struct Running {
    child: Child,
    announced: Value,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        Running {
            child,
            announced: serde_json::from_str(&line).unwrap(),
        }
    }

    fn address(&self, name: &str) -> SocketAddr {
        self.announced[name].as_str().unwrap().parse().unwrap()
    }

    async fn serves(&self, address: &str, speech: Speech, client: &ClientConfig) -> bool {
        let outcome = knock(client, speech, self.address(address)).await;
        outcome.is_ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client with the triple of the directory itself, or without a certificate.
fn client(dir: &Path, with_certificate: bool) -> ClientConfig {
    let files = contents(dir);
    let shown = with_certificate.then_some((&files[1][..], &files[2][..]));
    tls_client::config(&files[0], shown, ALL_VERSIONS)
}

#[test]
fn a_triple_is_made_once_and_its_key_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("made/as/needed");
    let made = in_directory(&inner).unwrap();
    let files = contents(&inner);
    assert_eq!(
        made,
        TlsConfig {
            ca_path: inner.join("ca.pem"),
            cert_path: inner.join("cert.pem"),
            key_path: inner.join("key.pem"),
            ..TlsConfig::default()
        }
    );
    let mode = fs::metadata(&made.key_path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(in_directory(&inner).unwrap(), made);
    assert_eq!(contents(&inner), files);
    // Files of somebody else are taken as they are.
    let other = Issued {
        cert: "theirs".to_owned(),
        key: "theirs too".to_owned(),
    };
    fs::write(&made.cert_path, &other.cert).unwrap();
    fs::write(&made.key_path, &other.key).unwrap();
    in_directory(&inner).unwrap();
    assert_eq!(contents(&inner)[1..], [other.cert, other.key]);
}

#[test]
fn some_of_the_three_files_are_refused_and_nothing_is_written() {
    for missing in [&NAMES[..1], &NAMES[1..2], &NAMES[2..], &NAMES[1..]] {
        let dir = tempfile::tempdir().unwrap();
        in_directory(dir.path()).unwrap();
        for name in missing {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        let refused = in_directory(dir.path()).unwrap_err().to_string();
        let named = dir.path().display().to_string();
        assert!(refused.contains(&named), "{refused}");
        assert!(NAMES.iter().all(|name| refused.contains(name)), "{refused}");
        for name in missing {
            assert!(!dir.path().join(name).exists(), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_serves_with_the_directory_and_keeps_it_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    let doors = [
        ("pd_addr", Speech::Grpc),
        ("store_addr", Speech::Grpc),
        ("status_addr", Speech::Http),
    ];
    let running = Running::start(program(dir.path(), &[]));
    let files = contents(&tls);
    for (address, speech) in doors {
        let serves = async |client: &ClientConfig| running.serves(address, speech, client).await;
        assert!(serves(&client(&tls, true)).await, "{address}");
        assert!(!serves(&client(&tls, false)).await, "{address}");
    }
    drop(running);
    let again = Running::start(program(dir.path(), &["--cert-allowed-cn", "somebody"]));
    assert_eq!(contents(&tls), files);
    // The certificate of the directory has another name; a store says so to each call.
    let ours = client(&tls, true);
    assert!(again.serves("pd_addr", Speech::Grpc, &ours).await);
    let store = dial::channel(&ours, again.address("store_addr"));
    let refused = unary(&store, "/grpc.health.v1.Health/Check", Bytes::new()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().ends_with("{\"somebody\"}"), "{refused}");
}

fn refused(mut command: Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

#[test]
fn the_program_says_what_it_does_not_like_about_its_flags_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    in_directory(&tls).unwrap();
    fs::remove_file(tls.join("key.pem")).unwrap();
    let said = refused(program(dir.path(), &[]));
    assert!(said.contains("give all three, or none"), "{said}");
    fs::write(tls.join("key.pem"), "no key").unwrap();
    let said = refused(program(dir.path(), &[]));
    let path = tls.join("key.pem").display().to_string();
    assert!(
        said.contains(&path) && said.contains("no private key"),
        "{said}"
    );
    assert!(
        !dir.path().join("data").join("store").exists(),
        "nothing was opened"
    );

    let mut alone = Command::new(env!("CARGO_BIN_EXE_tikv-pitr-playground"));
    alone.args(["--data-dir", "unused", "--cert-allowed-cn", "a"]);
    let said = refused(alone);
    assert!(said.contains("--tls-dir"), "{said}");
}
