//! Connections of a raw client: what becomes of one, and gRPC over one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// A server that has not said anything by then leaves its client hanging.
const LIMIT: Duration = Duration::from_secs(8);

/// What is spoken over a connection.
#[derive(Clone, Copy, Debug)]
pub enum Speech {
    Grpc,
    Http,
}

impl Speech {
    fn protocol(self) -> &'static [u8] {
        match self {
            Speech::Grpc => b"h2",
            Speech::Http => b"http/1.1",
        }
    }

    /// What a client says first; every server answers it.
    pub fn hello(self) -> &'static [u8] {
        match self {
            // With empty settings.
            Speech::Grpc => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            Speech::Http => b"GET /status HTTP/1.1\r\nhost: store\r\nconnection: close\r\n\r\n",
        }
    }

    /// Whether these are the first bytes of a server's answer.
    fn is_answer(self, bytes: &[u8]) -> bool {
        match self {
            // A frame with settings, for the whole connection.
            Speech::Grpc => bytes.get(3..9) == Some(&[4, 0, 0, 0, 0, 0]),
            Speech::Http => bytes.starts_with(b"HTTP/1.1 200 OK\r\n"),
        }
    }
}

/// A connection whose handshake is done, as far as the client can tell: in TLS 1.3 the server has not
/// looked at the client's certificate yet.
async fn shake(
    client: &ClientConfig,
    speech: Speech,
    to: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let mut config = client.clone();
    config.alpn_protocols = vec![speech.protocol().to_vec()];
    let stream = TcpStream::connect(to).await.unwrap();
    let name = ServerName::from(to.ip());
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(LIMIT, shaking).await.unwrap()
}

/// Connects, says hello and waits for the server's first words. An error if the connection ends without
/// them: why, as the client sees it.
pub async fn knock(client: &ClientConfig, speech: Speech, to: SocketAddr) -> Result<(), String> {
    let mut stream = match shake(client, speech, to).await {
        Ok(stream) => stream,
        Err(error) => return Err(error.to_string()),
    };
    // Whoever cuts us off may be faster than our words; reading tells.
    let _ = stream.write_all(speech.hello()).await;
    let _ = stream.flush().await;
    let mut heard = [0; 1024];
    let read = timeout(LIMIT, stream.read(&mut heard)).await;
    match read.expect("a server answers or ends the connection") {
        Ok(0) => Err("the end of the stream".to_owned()),
        Err(error) => Err(error.to_string()),
        Ok(count) => {
            let heard = &heard[..count];
            assert!(speech.is_answer(heard), "{heard:02x?}");
            Ok(())
        }
    }
}

/// The certificate that the server shows a new connection, which it serves.
pub async fn shown(
    client: &ClientConfig,
    speech: Speech,
    to: SocketAddr,
) -> CertificateDer<'static> {
    let stream = shake(client, speech, to).await.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    chain[0].clone().into_owned()
}

/// Everything that is said over a connection without TLS until it ends.
pub async fn in_the_clear(speech: Speech, to: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(speech.hello()).await.unwrap();
    let mut heard = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut heard)).await;
    // Cut off with words of ours unread: that is a reset.
    if let Err(error) = read.expect("the connection ends") {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    heard
}

/// An HTTP page: head and body.
pub async fn page(client: &ClientConfig, to: SocketAddr, path: &str) -> String {
    let mut stream = shake(client, Speech::Http, to).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = timeout(LIMIT, stream.read_to_string(&mut answer)).await;
    read.unwrap().unwrap();
    answer
}

/// gRPC, connected at the first call.
pub fn channel(client: &ClientConfig, to: SocketAddr) -> Channel {
    let client = client.clone();
    let connect = tower::service_fn(move |_: Uri| {
        let client = client.clone();
        async move {
            let stream = shake(&client, Speech::Grpc, to).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_shared(format!("https://{to}")).unwrap();
    endpoint.connect_with_connector_lazy(connect)
}
