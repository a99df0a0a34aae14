//! A cluster with TLS: the whole way by certificates, their change under a running sidecar, and what
//! is said when they are wrong.

use std::path::PathBuf;

use pitr_cluster::tls::TlsConfig;
use pitr_playground::PlaygroundConfig;
use pitr_playground::certificates::{Authority, Subject};
use tempfile::TempDir;

use crate::command::tikv_pitr;
use crate::system::{Client, Cluster, Sidecar, Storage, load, wait_until};
use crate::troubles::assert_restores;

/// Who has certificates of a test: each a directory.
pub struct Site {
    dir: TempDir,
}

impl Site {
    /// `cluster`, `sidecar` and `person`, each with a certificate of the authority.
    pub fn new(authority: &Authority) -> Self {
        let site = Site {
            dir: tempfile::tempdir().unwrap(),
        };
        for who in ["cluster", "sidecar", "person"] {
            std::fs::create_dir(site.dir.path().join(who)).unwrap();
            site.trust(who, &[authority]);
            site.issue(who, authority, &Subject::local(who));
        }
        site
    }

    fn path(&self, who: &str, file: &str) -> PathBuf {
        self.dir.path().join(who).join(file)
    }

    pub fn config(&self, who: &str) -> TlsConfig {
        TlsConfig {
            ca_path: self.path(who, "ca.pem"),
            cert_path: self.path(who, "cert.pem"),
            key_path: self.path(who, "key.pem"),
            ..TlsConfig::default()
        }
    }

    /// From now on `who` takes certificates of these.
    fn trust(&self, who: &str, authorities: &[&Authority]) {
        let bundle: String = authorities.iter().map(|a| a.pem()).collect();
        std::fs::write(self.path(who, "ca.pem"), bundle).unwrap();
    }

    /// From now on `who` shows a new certificate.
    pub fn issue(&self, who: &str, authority: &Authority, subject: &Subject<'_>) {
        let issued = authority.issue(subject).unwrap();
        std::fs::write(self.path(who, "cert.pem"), issued.cert).unwrap();
        std::fs::write(self.path(who, "key.pem"), issued.key).unwrap();
    }

    /// A cluster with the certificates of `cluster`, and a person in front of it.
    fn start(&self) -> Cluster {
        self.start_with(|_| {})
    }

    /// Such a cluster of another kind.
    pub fn start_with(&self, change: impl FnOnce(&mut PlaygroundConfig)) -> Cluster {
        let mut cluster = Cluster::start_with(|config| {
            config.tls = Some(self.config("cluster"));
            change(config);
        });
        cluster.tls = Some(self.config("person"));
        cluster
    }

    /// A sidecar with the certificates of `sidecar`.
    pub fn sidecar(&self, cluster: &mut Cluster) -> Sidecar {
        let person = cluster.tls.replace(self.config("sidecar"));
        let sidecar = Sidecar::start(cluster);
        cluster.tls = person;
        sidecar
    }
}

/// The page of a sidecar with TLS, as the verb `status` reads it.
pub fn page(cluster: &Cluster, sidecar: &Sidecar) -> serde_json::Value {
    let told = cluster.run(&["status", "--sidecar", sidecar.address(), "--json"]);
    match told.code {
        0 => told.json()["sidecar"]["page"].clone(),
        _ => serde_json::Value::Null,
    }
}

#[test]
fn with_certificates_everything_from_start_to_restore_goes_by_tls() {
    let authority = Authority::new().unwrap();
    let site = Site::new(&authority);
    let (mut source, archive) = (site.start(), Storage::new());
    source.log_start(&archive.url()).json();
    let sidecar = site.sidecar(&mut source);
    let client = Client::of(&source);
    client.write(&load(0));
    source.wait_checkpoint(client.now());
    let shown = page(&source, &sidecar);
    let ends = shown["certificate"]["ends_at"].as_str().unwrap();
    assert!(ends.starts_with("20") && ends.ends_with('Z'), "{ends}");
    assert_eq!(shown["certificate"]["problem"], "");
    // Nothing is answered in the clear, and nobody without a certificate.
    let in_the_clear = sidecar.page("/status.json");
    assert!(!in_the_clear.contains("HTTP"), "{in_the_clear}");
    let plain = tikv_pitr(&["log", "status", "-u", &source.pd(), "--json"]);
    plain.fails_with(75, &["PITR1101", "--ca --cert --key"]);
    sidecar.stop();
    assert_restores(&source, &archive, &site.start());
}

#[test]
fn certificates_are_changed_under_a_running_sidecar_without_a_gap() {
    let (old, new) = (Authority::new().unwrap(), Authority::new().unwrap());
    let site = Site::new(&old);
    let (mut source, archive) = (site.start(), Storage::new());
    source.log_start(&archive.url()).json();
    let sidecar = site.sidecar(&mut source);
    let client = Client::of(&source);
    client.write(&load(0));
    source.wait_checkpoint(client.now());
    let everybody = ["cluster", "sidecar", "person"];

    // As an operator changes the authority: first everybody trusts both, then everybody shows the new,
    // then nobody trusts the old any more.
    for who in everybody {
        site.trust(who, &[&old, &new]);
    }
    wait_until("both are trusted", || {
        page(&source, &sidecar)["certificate"]["reloads"] == 1
    });
    for who in everybody {
        site.issue(who, &new, &Subject::local(who));
    }
    wait_until("the new one is shown", || {
        page(&source, &sidecar)["certificate"]["reloads"].as_u64() >= Some(2)
    });
    for who in everybody {
        site.trust(who, &[&new]);
    }
    wait_until("the old one is not trusted", || {
        page(&source, &sidecar)["certificate"]["reloads"].as_u64() >= Some(3)
    });
    client.write(&load(1));
    source.wait_checkpoint(client.now());
    let said = sidecar.said();
    assert!(!said.contains("change stream ended"), "{said}");

    // Every connection of the store anew: by the new files only.
    source.playground.crash_store(1).unwrap();
    source.playground.start_store(1).unwrap();
    let client = Client::of(&source);
    client.write(&load(2));
    source.wait_checkpoint(client.now());
    let said = sidecar.said();
    assert!(said.contains("change stream ended"), "{said}");
    site.trust("person", &[&old]);
    let stranger = source.run(&["log", "status", "--json"]);
    stranger.fails_with(75, &["PITR1101", "not signed by our CA"]);
    site.trust("person", &[&new]);
    sidecar.stop();
    assert_restores(&source, &archive, &Cluster::start());
}

#[test]
fn files_that_are_half_changed_are_told_and_the_old_ones_stay() {
    let authority = Authority::new().unwrap();
    let site = Site::new(&authority);
    let mut source = site.start();
    let archive = Storage::new();
    source.log_start(&archive.url()).json();
    let sidecar = site.sidecar(&mut source);
    let client = Client::of(&source);
    source.wait_checkpoint(client.now());
    let later = authority.issue(&Subject::local("sidecar")).unwrap();
    std::fs::write(site.path("sidecar", "cert.pem"), &later.cert).unwrap();
    wait_until("the page says so", || {
        let problem = &page(&source, &sidecar)["certificate"]["problem"];
        problem
            .as_str()
            .is_some_and(|text| text.contains("does not belong"))
    });
    client.write(&load(0));
    source.wait_checkpoint(client.now());
    std::fs::write(site.path("sidecar", "key.pem"), &later.key).unwrap();
    wait_until("the change is whole", || {
        let certificate = &page(&source, &sidecar)["certificate"];
        certificate["problem"] == "" && certificate["reloads"] == 1
    });
    sidecar.stop();
}

#[test]
fn a_certificate_that_has_ended_is_said_to_have_ended() {
    let authority = Authority::new().unwrap();
    let site = Site::new(&authority);
    let source = site.start();
    let ended = Subject {
        days: -1,
        ..Subject::local("person")
    };
    site.issue("person", &authority, &ended);
    let told = source.run(&["log", "status", "--json"]);
    told.fails_with(75, &["our certificate ends soon, or has ended"]);
    let ended = Subject {
        days: -1,
        ..Subject::local("cluster")
    };
    site.issue("person", &authority, &Subject::local("person"));
    site.issue("cluster", &authority, &ended);
    wait_until("the cluster shows the ended one", || {
        let told = source.run(&["log", "status", "--json"]);
        told.code == 75 && told.stderr.contains("its certificate has ended")
    });
}

#[test]
fn a_configuration_is_checked_with_the_files_that_it_names() {
    let authority = Authority::new().unwrap();
    let site = Site::new(&authority);
    let file = site.path("sidecar", "pitr.toml");
    let config = site.config("sidecar");
    let text = format!(
        "pd-endpoints = [\"a:1\"]\nstore-id = 1\n[security]\nca-path = {:?}\ncert-path = {:?}\nkey-path = {:?}\n",
        config.ca_path, config.cert_path, config.key_path
    );
    std::fs::write(&file, text).unwrap();
    let check = || {
        tikv_pitr(&[
            "config",
            "check",
            "--config",
            &file.display().to_string(),
            "--json",
        ])
    };
    assert!(!check().stdout.contains("certificate ends"));
    let soon = Subject {
        days: 3,
        ..Subject::local("sidecar")
    };
    site.issue("sidecar", &authority, &soon);
    assert!(check().json().to_string().contains("the certificate ends"));
    std::fs::write(&config.key_path, "").unwrap();
    check().fails_with(3, &["PITR1010", "no private key"]);
}

#[test]
fn certificates_that_cannot_be_used_are_refused_before_anything_is_dialled() {
    let authority = Authority::new().unwrap();
    let site = Site::new(&authority);
    let path = |file: &str| site.path("person", file).display().to_string();
    let (ca, cert, key) = (path("ca.pem"), path("cert.pem"), path("key.pem"));
    let status = |files: &[&str]| {
        let mut all = vec!["log", "status", "-u", "https://127.0.0.1:1", "--json"];
        all.extend(files);
        tikv_pitr(&all)
    };
    status(&[]).fails_with(2, &["PITR1005", "--ca --cert --key"]);
    status(&["--ca", &ca]).fails_with(2, &["--cert", "--key"]);
    status(&["--ca", &ca, "--cert", &cert, "--key", &cert])
        .fails_with(3, &["PITR1010", "no private key"]);
    status(&["--ca", &ca, "--cert", &cert, "--key", "/nowhere"])
        .fails_with(3, &["PITR1010", "/nowhere"]);
    std::fs::write(path("ca.pem"), "").unwrap();
    status(&["--ca", &ca, "--cert", &cert, "--key", &key])
        .fails_with(3, &["PITR1010", "no certificate"]);
}
