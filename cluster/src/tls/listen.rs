//! How connections are taken: TCP, and TLS over it where there are certificates.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tls_listener::{AsyncTls, TlsListener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tonic::transport::server::Connected;

use super::peer::common_name;
use super::{Credentials, Security};

/// How long to wait when the system has no more file descriptors.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// Takes connections; each with the certificates that are there when it begins. Handshakes run side
/// by side and have ten seconds. For `axum::serve`; its streams are fit for tonic's server too.
pub struct Listener(Kind);

enum Kind {
    Plain(TcpListener),
    Tls(TlsListener<TcpListener, Acceptor>),
}

/// A connection that was taken.
pub enum ServerStream {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted, from a client with a certificate.
    Tls(Box<TlsStream<TcpStream>>),
}

#[derive(Clone)]
struct Acceptor(Arc<Credentials>);

impl AsyncTls<TcpStream> for Acceptor {
    type Stream = TlsStream<TcpStream>;
    type Error = io::Error;
    type AcceptFuture = Accept<TcpStream>;

    fn accept(&self, stream: TcpStream) -> Self::AcceptFuture {
        TlsAcceptor::from(self.0.current().server.clone()).accept(stream)
    }
}

impl Security {
    /// Takes connections of clients that have a certificate; of all in plaintext.
    pub fn listen(&self, listener: TcpListener) -> Listener {
        Listener(match &self.0 {
            Some(credentials) => {
                Kind::Tls(TlsListener::new(Acceptor(credentials.clone()), listener))
            }
            None => Kind::Plain(listener),
        })
    }
}

impl Listener {
    /// The next connection. Failed handshakes are logged, with who failed.
    pub async fn accept(&mut self) -> (ServerStream, SocketAddr) {
        loop {
            let refused = match &mut self.0 {
                Kind::Plain(listener) => match listener.accept().await {
                    Ok((stream, peer)) => return (ServerStream::Plain(at_once(stream)), peer),
                    Err(error) => error,
                },
                Kind::Tls(listener) => match listener.accept().await {
                    Ok((stream, peer)) => {
                        let _ = stream.get_ref().0.set_nodelay(true);
                        return (ServerStream::Tls(Box::new(stream)), peer);
                    }
                    Err(tls_listener::Error::ListenerError(error)) => error,
                    Err(error) => {
                        let client = error.peer_addr().map(ToString::to_string);
                        tracing::info!(%error, client, "a client's TLS handshake failed");
                        continue;
                    }
                },
            };
            let theirs = [
                io::ErrorKind::ConnectionRefused,
                io::ErrorKind::ConnectionAborted,
                io::ErrorKind::ConnectionReset,
            ];
            if !theirs.contains(&refused.kind()) {
                tracing::error!(error = %refused, "no connection can be taken");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Answers are small, and somebody waits for them.
fn at_once(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    stream
}

impl axum::serve::Listener for Listener {
    type Io = ServerStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ServerStream, SocketAddr) {
        Listener::accept(self).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Kind::Plain(listener) => listener.local_addr(),
            Kind::Tls(listener) => listener.local_addr(),
        }
    }
}

impl ServerStream {
    /// `None` without a name, and in plaintext.
    fn client_name(&self) -> Option<String> {
        match self {
            ServerStream::Plain(_) => None,
            ServerStream::Tls(stream) => {
                let shown = stream.get_ref().1.peer_certificates()?;
                common_name(shown.first()?)
            }
        }
    }
}

/// The common name of the client's certificate, in a request's extensions where tonic serves.
#[derive(Clone, Debug)]
pub struct ClientName(pub Option<String>);

impl Connected for ServerStream {
    type ConnectInfo = ClientName;

    fn connect_info(&self) -> ClientName {
        ClientName(self.client_name())
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            ServerStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            ServerStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            ServerStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            ServerStream::Plain(stream) => stream.is_write_vectored(),
            ServerStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            ServerStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ServerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ServerStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
