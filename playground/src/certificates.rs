//! Certificates for demos and tests: an authority that lives as long as its value, and a directory with a
//! triple that is made when it is not there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use pitr_cluster::tls::TlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The names under which a playground is dialled.
pub const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// How long certificates hold that nobody gives a time for.
const DAYS: i64 = 30;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be made.
    #[error("no certificate can be made: {0}")]
    Made(#[from] rcgen::Error),
    /// It cannot be kept.
    #[error("{path}: {source}")]
    Kept {
        /// The file or directory.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// Some of the three files are there.
    #[error("{0} has some of ca.pem, cert.pem and key.pem: give all three, or none")]
    Parts(String),
}

/// Signs certificates; its key is never written.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// What a certificate is for.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Common name.
    pub common_name: &'a str,
    /// Host names and addresses.
    pub names: &'a [&'a str],
    /// Days from now to its end; negative: it has ended.
    pub days: i64,
}

impl<'a> Subject<'a> {
    /// Somebody on this machine.
    pub fn local(common_name: &'a str) -> Self {
        Subject {
            common_name,
            names: &LOOPBACK,
            days: DAYS,
        }
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "tikv-pitr playground");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority {
            pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for servers and clients.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Issued, CertificateError> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = subject.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, subject.common_name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = SystemTime::now();
        let away = DAY * u32::try_from(subject.days.unsigned_abs()).unwrap_or(u32::MAX);
        params.not_before = (now - 365 * DAY).into();
        params.not_after = match subject.days < 0 {
            true => (now - away).into(),
            false => (now + away).into(),
        };
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// The triple in a directory; made for this machine if none of its files is there.
pub fn in_directory(dir: &Path) -> Result<TlsConfig, CertificateError> {
    let config = TlsConfig {
        ca_path: dir.join("ca.pem"),
        cert_path: dir.join("cert.pem"),
        key_path: dir.join("key.pem"),
        ..TlsConfig::default()
    };
    let paths = [&config.ca_path, &config.cert_path, &config.key_path];
    match paths.iter().filter(|path| path.exists()).count() {
        0 => {}
        3 => return Ok(config),
        _ => return Err(CertificateError::Parts(dir.display().to_string())),
    }
    let authority = Authority::new()?;
    let issued = authority.issue(&Subject::local("tikv-pitr-playground"))?;
    let kept = |path: &Path, source: io::Error| CertificateError::Kept {
        path: path.display().to_string(),
        source,
    };
    fs::create_dir_all(dir).map_err(|source| kept(dir, source))?;
    let texts = [
        (authority.pem(), 0o644),
        (&issued.cert, 0o644),
        (&issued.key, 0o600),
    ];
    for (path, (text, mode)) in paths.iter().zip(texts) {
        // The key is never there for others, not even for the moment before a change of its mode.
        let made = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path);
        let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| kept(path, source))?;
    }
    Ok(config)
}
