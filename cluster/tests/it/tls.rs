//! Certificates: what files are taken, who is talked to, and what becomes of connections when the
//! files change. The other side of each connection is our own listener, or rustls by itself.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::routing::get;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pitr_cluster::net::normalize;
use pitr_cluster::tls::{Connector, HandshakeError, Security, TlsConfig, TlsError};
use pitr_format::Class;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than files stay unlooked at.
const LOOKED: Duration = Duration::from_millis(1200);

/// An authority and the files that it gave somebody.
struct Site {
    dir: TempDir,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate says.
struct Says<'a> {
    name: &'a str,
    hosts: &'a [&'a str],
    ended: bool,
}

impl<'a> Says<'a> {
    fn local(name: &'a str) -> Self {
        Says {
            name,
            hosts: &["127.0.0.1"],
            ended: false,
        }
    }
}

impl Site {
    /// A directory with everything for somebody on this machine.
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let pem = params.self_signed(&key).unwrap().pem();
        let site = Site {
            dir: tempfile::tempdir().unwrap(),
            pem,
            issuer: Issuer::new(params, key),
        };
        site.write("ca.pem", &site.pem);
        site.issue(&Says::local("somebody"));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn signed(&self, says: &Says<'_>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = says.hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, says.name);
        if says.ended {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    /// Replaces certificate and key.
    fn issue(&self, says: &Says<'_>) {
        let (cert, key) = self.signed(says);
        self.write("cert.pem", &cert);
        self.write("key.pem", &key);
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            ca_path: self.path("ca.pem"),
            cert_path: self.path("cert.pem"),
            key_path: self.path("key.pem"),
            ..TlsConfig::default()
        }
    }

    fn security(&self) -> Security {
        Security::load(self.config()).unwrap()
    }
}

/// A page that says "here", with certificates; where it is.
async fn page(security: &Security) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = Router::new().route("/", get(async || "here"));
    let listener = security.listen(listener);
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

type Http = Client<Connector, Body>;

/// A client that keeps its connections.
fn client(security: &Security) -> Http {
    Client::builder(TokioExecutor::new()).build(security.http(TIMEOUT))
}

async fn read(client: &Http, security: &Security, address: &str) -> Result<String, String> {
    let url = normalize(security, address).unwrap();
    let request = Request::get(url).body(Body::empty()).unwrap();
    let answer = client.request(request).await;
    let answer = answer.map_err(|error| in_full(&error))?;
    let text = to_bytes(Body::new(answer.into_body()), 100).await;
    let text = text.map_err(|error| in_full(&error))?;
    Ok(String::from_utf8(text.to_vec()).unwrap())
}

/// One request over a connection of its own.
async fn once(security: &Security, address: &str) -> Result<String, String> {
    read(&client(security), security, address).await
}

/// An error with its causes; a handshake's own error must be among them where it is TLS.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let kind = match cause.downcast_ref::<HandshakeError>() {
            Some(_) => "handshake",
            None => "cause",
        };
        text.push_str(&format!("; {kind}: {cause}"));
        next = cause.source();
    }
    text
}

fn refused(config: TlsConfig) -> TlsError {
    let error = Security::load(config).unwrap_err();
    assert_eq!(error.class(), Class::Permanent);
    error
}

#[test]
fn a_triple_that_cannot_be_used_is_refused_with_the_file_that_is_wrong() {
    let site = Site::new();
    let names = |error: &TlsError, file: &str| {
        let path = site.path(file).display().to_string();
        assert!(error.to_string().contains(&path), "{error}");
    };
    for (file, text, says) in [
        ("ca.pem", "", "no certificate"),
        ("cert.pem", "junk", "no certificate"),
        ("key.pem", "junk", "private key"),
        (
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "",
        ),
        (
            "key.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "encrypted",
        ),
    ] {
        let good = std::fs::read_to_string(site.path(file)).unwrap();
        site.write(file, text);
        let error = refused(site.config());
        names(&error, file);
        assert!(error.to_string().contains(says), "{error}");
        site.write(file, &good);
    }
    site.write("ca.pem", &"#".repeat(5 << 20));
    assert!(refused(site.config()).to_string().contains("longer than"));
    std::fs::remove_file(site.path("ca.pem")).unwrap();
    let error = refused(site.config());
    assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
    names(&error, "ca.pem");
}

#[test]
fn a_key_of_another_certificate_and_a_name_that_no_host_has_are_refused() {
    let site = Site::new();
    let (_, key) = site.signed(&Says::local("other"));
    let good = std::fs::read_to_string(site.path("key.pem")).unwrap();
    site.write("key.pem", &key);
    let error = refused(site.config());
    assert!(matches!(error, TlsError::Mismatch { .. }), "{error}");
    site.write("key.pem", &good);
    let error = refused(TlsConfig {
        domain_name: Some("no host".to_owned()),
        ..site.config()
    });
    assert!(matches!(error, TlsError::DomainName { .. }), "{error}");
}

#[test]
fn with_certificates_every_address_is_dialled_by_tls() {
    let security = Site::new().security();
    for given in ["pd:2379", "http://pd:2379", "https://pd:2379/"] {
        assert_eq!(normalize(&security, given).unwrap(), "https://pd:2379");
    }
    let ends = security.standing().unwrap().not_after;
    assert!(ends > 1_700_000_000, "{ends}");
    assert_eq!(Security::default().standing(), None);
}

#[tokio::test]
async fn both_sides_need_a_certificate_of_the_authority() {
    let (ours, foreign) = (Site::new(), Site::new());
    let server = page(&ours.security()).await;
    assert_eq!(once(&ours.security(), &server).await.unwrap(), "here");
    // A client that trusts the server, and shows what another authority signed.
    let mixed = TlsConfig {
        ca_path: ours.path("ca.pem"),
        ..foreign.config()
    };
    let error = once(&Security::load(mixed).unwrap(), &server).await;
    assert!(error.unwrap_err().contains("alert"));
    // One that does not trust the server.
    let error = once(&foreign.security(), &server).await.unwrap_err();
    assert!(error.contains("handshake: TLS with 127.0.0.1:"), "{error}");
    assert!(error.contains("not signed by our CA"), "{error}");
    // One that speaks in the clear gets nothing.
    assert!(once(&Security::default(), &server).await.is_err());
}

#[tokio::test]
async fn a_client_whose_common_name_is_not_allowed_is_not_served() {
    let site = Site::new();
    let only = |name: &str| {
        Security::load(TlsConfig {
            cert_allowed_cn: vec!["operator".to_owned(), name.to_owned()],
            ..site.config()
        })
    };
    let server = page(&only("somebody").unwrap()).await;
    assert_eq!(once(&site.security(), &server).await.unwrap(), "here");
    let server = page(&only("somebody else").unwrap()).await;
    assert!(once(&site.security(), &server).await.is_err());
}

#[tokio::test]
async fn a_server_is_known_by_the_names_of_its_certificate_and_a_common_name_is_none() {
    let (ours, theirs) = (Site::new(), Site::new());
    theirs.write("ca.pem", &ours.pem);
    let gives = |says: &Says<'_>| {
        let (cert, key) = ours.signed(says);
        theirs.write("cert.pem", &cert);
        theirs.write("key.pem", &key);
        theirs.security()
    };
    for hosts in [&[][..], &["tikv.local"]] {
        let says = Says {
            hosts,
            ..Says::local("127.0.0.1")
        };
        let server = page(&gives(&says)).await;
        let error = once(&ours.security(), &server).await.unwrap_err();
        assert!(
            error.contains("a common name alone does not count"),
            "{error}"
        );
        let named = Security::load(TlsConfig {
            domain_name: Some("tikv.local".to_owned()),
            ..ours.config()
        });
        let told = once(&named.unwrap(), &server).await;
        assert_eq!(told.is_ok(), !hosts.is_empty(), "{told:?}");
    }
    let ended = Says {
        ended: true,
        ..Says::local("tikv")
    };
    let server = page(&gives(&ended)).await;
    let error = once(&ours.security(), &server).await.unwrap_err();
    assert!(error.contains("its certificate has ended"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_told_as_such() {
    let server = page(&Security::default()).await;
    let error = once(&Site::new().security(), &server).await.unwrap_err();
    assert!(error.contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn changed_files_are_for_new_connections_and_standing_ones_go_on() {
    let site = Site::new();
    let security = site.security();
    let server = page(&security).await;
    let keeping = client(&security);
    assert_eq!(read(&keeping, &security, &server).await.unwrap(), "here");
    let before = security.standing().unwrap();

    // Another authority altogether: whoever still showed the old files would be refused.
    let other = Site::new();
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(other.path(file), site.path(file)).unwrap();
    }
    tokio::time::sleep(LOOKED).await;
    assert_eq!(once(&other.security(), &server).await.unwrap(), "here");
    assert_eq!(once(&security, &server).await.unwrap(), "here");
    let after = security.standing().unwrap();
    assert_eq!((before.reloads, after.reloads), (0, 1));
    assert_eq!(after.complaint, None);
    assert_eq!(read(&keeping, &security, &server).await.unwrap(), "here");
}

#[tokio::test]
async fn half_of_a_change_is_not_used_and_told_until_the_rest_is_there() {
    let site = Site::new();
    let security = site.security();
    let server = page(&security).await;
    let (cert, key) = site.signed(&Says::local("later"));
    site.write("cert.pem", &cert);
    tokio::time::sleep(LOOKED).await;
    assert_eq!(once(&security, &server).await.unwrap(), "here");
    let complaint = security.standing().unwrap().complaint.unwrap();
    assert!(complaint.contains("does not belong"), "{complaint}");
    std::fs::remove_file(site.path("ca.pem")).unwrap();
    tokio::time::sleep(LOOKED).await;
    let complaint = security.standing().unwrap().complaint.unwrap();
    assert!(complaint.contains("cannot read"), "{complaint}");

    site.write("ca.pem", &site.pem);
    site.write("key.pem", &key);
    tokio::time::sleep(LOOKED).await;
    let standing = security.standing().unwrap();
    assert_eq!((standing.reloads, standing.complaint), (1, None));
    assert_eq!(once(&security, &server).await.unwrap(), "here");
}

#[tokio::test]
async fn a_client_that_never_ends_its_handshake_holds_up_nobody() {
    let site = Site::new();
    let server = page(&site.security()).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(&server).await.unwrap());
    }
    assert_eq!(once(&site.security(), &server).await.unwrap(), "here");
    let mut byte = [0];
    let cut_off = tokio::time::timeout(Duration::from_secs(20), silent[0].read(&mut byte)).await;
    assert!(matches!(cut_off, Ok(Ok(0) | Err(_))), "{cut_off:?}");
}

#[test]
fn what_is_shown_of_it_has_no_key() {
    let site = Site::new();
    let key = std::fs::read_to_string(site.path("key.pem")).unwrap();
    let shown = format!("{:?}", site.security());
    assert!(shown.contains("key.pem"), "{shown}");
    let secret = key.lines().nth(1).unwrap();
    assert!(!shown.contains(secret));
}
