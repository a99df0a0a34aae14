//! A TLS client of rustls alone, which shares nothing with the project's own: for the pages of a real PD,
//! and for tests of what a server makes of a client. Included with `pd_servers.rs`.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use pitr_cluster::tls::TlsConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ALL_VERSIONS, ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};

/// A client that trusts the authorities in `ca` and shows `shown`, a certificate and its key, if
/// anything; all PEM.
pub fn config(
    ca: &str,
    shown: Option<(&str, &str)>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca) {
        roots.add(authority).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match shown {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(certificates(cert), key)
                .unwrap()
        }
        None => builder.with_no_client_auth(),
    }
}

/// The certificates of a PEM text.
pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes());
    found.map(Result::unwrap).collect()
}

/// Over a connection to this machine, with the triple as its files are now.
pub fn blocking(
    triple: &TlsConfig,
    stream: TcpStream,
) -> Option<StreamOwned<ClientConnection, TcpStream>> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let (cert, key) = (read(&triple.cert_path), read(&triple.key_path));
    let config = config(&read(&triple.ca_path), Some((&cert, &key)), ALL_VERSIONS);
    let server = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config), server).ok()?;
    Some(StreamOwned::new(connection, stream))
}
