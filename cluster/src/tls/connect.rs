//! How connections are made: TCP, and TLS over it where there are certificates.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use hyper_rustls::{
    DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, MaybeHttpsStream,
    ResolveServerName,
};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::net::TcpStream;
use tower::Service;

use super::{Credentials, Security};

type Cause = Box<dyn std::error::Error + Send + Sync>;
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections; each with the certificates that are there when it begins.
#[derive(Clone)]
pub struct Connector {
    security: Security,
    /// What is spoken over the connection, as named in the handshake.
    protocol: &'static [u8],
    tcp: HttpConnector,
}

/// A handshake that failed, with what a person can do where that is known.
#[derive(Debug, thiserror::Error)]
#[error("TLS with {server}: {reason}{}", .advice.map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct HandshakeError {
    /// Who was dialled, `host:port`.
    pub server: String,
    /// The library's words.
    pub reason: String,
    /// What helps.
    pub advice: Option<&'static str>,
}

impl Security {
    /// Makes connections for gRPC.
    pub fn grpc(&self, tcp_timeout: Duration) -> Connector {
        self.connector(b"h2", tcp_timeout)
    }

    /// Makes connections for HTTP/1.1.
    pub fn http(&self, tcp_timeout: Duration) -> Connector {
        self.connector(b"http/1.1", tcp_timeout)
    }

    fn connector(&self, protocol: &'static [u8], tcp_timeout: Duration) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(tcp_timeout));
        Connector {
            security: self.clone(),
            protocol,
            tcp,
        }
    }
}

impl Connector {
    fn encrypted(&self, credentials: &Credentials) -> HttpsConnector<HttpConnector> {
        let loaded = credentials.current();
        let mut config = loaded.client.clone();
        config.alpn_protocols = vec![self.protocol.to_vec()];
        let names: Arc<dyn ResolveServerName + Send + Sync> = match &loaded.server_name {
            Some(name) => Arc::new(FixedServerNameResolver::new(name.clone())),
            None => Arc::new(DefaultServerNameResolver::default()),
        };
        HttpsConnector::new(self.tcp.clone(), config, true, names)
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Cause>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let Some(credentials) = self.security.0.clone() else {
            let connecting = self.tcp.call(server);
            return Box::pin(async move { Ok(Stream::Http(connecting.await?)) });
        };
        let name = server.authority().map(ToString::to_string);
        let connecting = self.encrypted(&credentials).call(server);
        Box::pin(async move {
            let connected = connecting.await;
            connected.map_err(|cause| explained(cause, &name.unwrap_or_default()))
        })
    }
}

/// The handshake's own error in a chain of causes, with advice; others as they are.
fn explained(cause: Cause, server: &str) -> Cause {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(cause.as_ref());
    while let Some(error) = next {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        let found = error
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if let Some(error) = found {
            return Box::new(HandshakeError {
                server: server.to_owned(),
                reason: error.to_string(),
                advice: advice(error),
            });
        }
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    cause
}

fn advice(error: &rustls::Error) -> Option<&'static str> {
    Some(match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "dial it by a name of its certificate, or set the domain name that certificates have; a common name alone does not count"
        }
        // An authority that was made anew under its old name gives the second.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "its certificate is not signed by our CA",
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has ended, or our clock is wrong",
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS there"
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "our certificate has ended"
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired,
        ) => "it refuses our certificate: look at its CA, and at the names that it allows",
        _ => return None,
    })
}
