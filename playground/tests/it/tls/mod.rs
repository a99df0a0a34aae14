//! TLS as PD and TiKV speak it: who gets through the handshake, whose calls are answered, and what a
//! change of the files does. The client side is rustls alone.

mod dial;
mod directory;
mod handshakes;
mod names;
mod real;
mod renewal;

use std::fs;
use std::net::SocketAddr;

use pitr_cluster::tls::TlsConfig;
use pitr_playground::certificates::{Authority, Issued, Subject};
use pitr_playground::{Playground, PlaygroundConfig};
use pitr_proto::pdpb::RequestHeader;
use pitr_proto::pdpb::pd_client::PdClient;
use rustls::{ALL_VERSIONS, ClientConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::it::pd_servers::tls_client;
use crate::it::system::OFTEN;
use dial::Speech;

/// An authority, and a directory with a triple of it.
pub struct Triple {
    pub authority: Authority,
    pub files: TlsConfig,
    dir: TempDir,
}

/// A running playground with a triple.
pub struct World {
    pub triple: Triple,
    pub playground: Playground,
}

impl Triple {
    /// The server's own name is `server`, its clients must have one of `allowed`.
    pub fn new(allowed: &[&str]) -> Triple {
        let authority = Authority::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = TlsConfig {
            ca_path: path("ca.pem"),
            cert_path: path("cert.pem"),
            key_path: path("key.pem"),
            cert_allowed_cn: allowed.iter().map(ToString::to_string).collect(),
            ..TlsConfig::default()
        };
        let triple = Triple {
            authority,
            files,
            dir,
        };
        triple.write(&triple.issue("server"));
        triple
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.authority.issue(&Subject::local(name)).unwrap()
    }

    /// Puts another certificate and its key, and the authority's, into the files.
    pub fn write(&self, issued: &Issued) {
        fs::write(&self.files.ca_path, self.authority.pem()).unwrap();
        fs::write(&self.files.cert_path, &issued.cert).unwrap();
        fs::write(&self.files.key_path, &issued.key).unwrap();
    }

    /// A client that trusts the authority and shows what is given.
    pub fn client(
        &self,
        shown: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let shown = shown.map(|issued| (&issued.cert[..], &issued.key[..]));
        tls_client::config(self.authority.pem(), shown, versions)
    }

    /// A client that has a certificate with this name.
    pub fn named(&self, name: &str) -> ClientConfig {
        self.client(Some(&self.issue(name)), ALL_VERSIONS)
    }
}

impl World {
    pub fn start(allowed: &[&str]) -> World {
        let triple = Triple::new(allowed);
        let mut config = PlaygroundConfig::new(triple.dir.path().join("data"));
        config.tls = Some(triple.files.clone());
        config.resolved_ts_interval = OFTEN;
        let playground = Playground::start(config).unwrap();
        World { triple, playground }
    }

    /// Everything that listens.
    pub fn doors(&self) -> [(&'static str, SocketAddr, Speech); 3] {
        [
            ("PD", self.playground.pd_addr(), Speech::Grpc),
            ("the store", self.playground.store_addr(), Speech::Grpc),
            ("the status address", self.status(), Speech::Http),
        ]
    }

    pub fn status(&self) -> SocketAddr {
        self.playground.status_addr().unwrap()
    }

    pub fn header(&self) -> Option<RequestHeader> {
        Some(RequestHeader {
            cluster_id: self.playground.cluster_id(),
            ..RequestHeader::default()
        })
    }

    pub fn pd(&self, client: &ClientConfig) -> PdClient<Channel> {
        PdClient::new(dial::channel(client, self.playground.pd_addr()))
    }

    pub fn store(&self, client: &ClientConfig) -> Channel {
        dial::channel(client, self.playground.store_addr())
    }

    pub async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || self.playground.shutdown());
        ended.await.unwrap();
    }
}
