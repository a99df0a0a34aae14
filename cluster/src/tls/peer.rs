//! What a certificate says of its holder, and which holders are served.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::parse_x509_certificate;

/// The common name of a certificate's subject, if it has one.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    names.next()?.as_str().ok().map(str::to_owned)
}

/// When a certificate ends, in seconds since 1970.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let parsed = parse_x509_certificate(certificate).map_err(|error| error.to_string());
    Ok(parsed?.1.validity().not_after.timestamp())
}

/// Serves clients with certain common names only.
#[derive(Debug)]
pub(super) struct AllowedNames {
    names: Vec<String>,
    signed: Arc<dyn ClientCertVerifier>,
}

impl AllowedNames {
    /// `signed` checks everything else; it is all that is asked where no names are given.
    pub(super) fn over(
        signed: Arc<dyn ClientCertVerifier>,
        names: Vec<String>,
    ) -> Arc<dyn ClientCertVerifier> {
        match names.is_empty() {
            true => signed,
            false => Arc::new(AllowedNames { names, signed }),
        }
    }
}

impl ClientCertVerifier for AllowedNames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .signed
            .verify_client_cert(end_entity, intermediates, now)?;
        let name = common_name(end_entity).unwrap_or_default();
        if self.names.contains(&name) {
            return Ok(verified);
        }
        Err(Error::General(format!(
            "the client's common name {name:?} is not among the allowed ones, {:?}",
            self.names
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}
