//! The three files: read, parsed and checked against each other.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use pitr_format::Class;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::TlsConfig;
use super::peer::{self, AllowedNames};

/// Largest file that is read; a bundle of all public authorities has some hundred kilobytes.
const LARGEST: u64 = 4 << 20;

/// Why a triple cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// A file is not what it should be.
    #[error("{path} is not usable: {reason}")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is not that of the certificate.
    #[error("the key {key} does not belong to the certificate {cert}: {reason}")]
    Mismatch {
        /// The key file.
        key: String,
        /// The certificate file.
        cert: String,
        /// The library's words.
        reason: String,
    },
    /// No host can have this name.
    #[error("{name:?} is no host name")]
    DomainName {
        /// As given.
        name: String,
    },
}

impl TlsError {
    /// A person has to mend the files.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// What the three files hold.
#[derive(PartialEq, Eq)]
pub(super) struct Files {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    pub(super) fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        Ok(Files {
            ca: read(&config.ca_path)?,
            cert: read(&config.cert_path)?,
            key: read(&config.key_path)?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error: std::io::Error| TlsError::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let read = file.take(LARGEST + 1).read_to_end(&mut bytes);
    if read.map_err(unreadable)? as u64 > LARGEST {
        return Err(unusable(path, format!("longer than {LARGEST} bytes")));
    }
    Ok(bytes)
}

/// What connections are made with.
pub(super) struct Loaded {
    /// Without application protocols; who dials adds its own.
    pub(super) client: ClientConfig,
    /// For HTTP/2 and HTTP/1.1.
    pub(super) server: Arc<ServerConfig>,
    /// What every server's certificate must name, if not the host that is dialled.
    pub(super) server_name: Option<ServerName<'static>>,
    /// When our certificate ends, in seconds since 1970.
    pub(super) not_after: i64,
}

impl Loaded {
    pub(super) fn parse(files: &Files, config: &TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.ca, &config.ca_path)? {
            let added = roots.add(authority);
            added.map_err(|error| unusable(&config.ca_path, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&files.cert, &config.cert_path)?;
        let not_after = chain.first().map(peer::not_after).transpose();
        let not_after = not_after.map_err(|reason| unusable(&config.cert_path, reason))?;
        let key = PrivateKeyDer::from_pem_slice(&files.key);
        let key = key.map_err(|error| {
            let reason = format!("no private key in PEM, or an encrypted one: {error}");
            unusable(&config.key_path, reason)
        })?;
        let server_name = config.domain_name.clone().map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| TlsError::DomainName { name })
        });
        Ok(Loaded {
            client: client(&provider, &roots, &chain, key.clone_key(), config)?,
            server: Arc::new(server(&provider, roots, chain, key, config)?),
            server_name: server_name.transpose()?,
            not_after: not_after.unwrap_or_default(),
        })
    }
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: PrivateKeyDer<'static>,
    config: &TlsConfig,
) -> Result<ClientConfig, TlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    let verifier = verifier.map_err(|error| unusable(&config.ca_path, error.to_string()))?;
    let made = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&config.cert_path, error.to_string()))?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain.to_vec(), key);
    made.map_err(|error| mismatch(config, &error))
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    config: &TlsConfig,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
    let verifier = verifier.map_err(|error| unusable(&config.ca_path, error.to_string()))?;
    let verifier = AllowedNames::over(verifier, config.cert_allowed_cn.clone());
    let made = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&config.cert_path, error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key);
    let mut made = made.map_err(|error| mismatch(config, &error))?;
    made.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(made)
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| unusable(path, error.to_string()))?;
    if found.is_empty() {
        return Err(unusable(path, "no certificate in PEM".to_owned()));
    }
    Ok(found)
}

fn unusable(path: &Path, reason: String) -> TlsError {
    TlsError::Unusable {
        path: path.display().to_string(),
        reason,
    }
}

fn mismatch(config: &TlsConfig, error: &rustls::Error) -> TlsError {
    TlsError::Mismatch {
        key: config.key_path.display().to_string(),
        cert: config.cert_path.display().to_string(),
        reason: error.to_string(),
    }
}
