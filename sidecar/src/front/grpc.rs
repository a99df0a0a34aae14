//! A gRPC listener that answers the services of this process itself and relays every other one to
//! the store, by service name.
//!
//! The relay looks at no message: frames, metadata and trailers go through in both directions as
//! they come, with HTTP/2's own flow control, so that nothing is held here.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use pitr_cluster::net::{AddressError, store_channel};
use pitr_cluster::tls::Security;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Channel;
use tower::ServiceExt;

/// How long a store that cannot be reached is waited for before the caller is told.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// Why the front does not start.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
    /// The store's address cannot be dialled.
    #[error(transparent)]
    Store(#[from] AddressError),
}

/// The server; it ends when this is dropped.
pub struct GrpcFront {
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

impl GrpcFront {
    /// Listens on `addr` (port 0 = any). `own`: services of this process; calls of all others go to
    /// `store`, the client address of the store, or are unimplemented where there is none.
    pub async fn start(
        addr: SocketAddr,
        own: Routes,
        store: Option<&str>,
        security: &Security,
    ) -> Result<Self, FrontError> {
        let mut router = own.into_axum_router();
        if let Some(store) = store {
            let relay = axum::routing::any(relay).with_state(store_channel(security, store)?);
            router = router.fallback_service(relay);
        }
        let listener = TcpListener::bind(addr).await;
        let listener = listener.map_err(|source| FrontError::Listen { addr, source })?;
        let addr = listener
            .local_addr()
            .map_err(|source| FrontError::Listen { addr, source })?;
        let listener = security.listen(listener);
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the gRPC server ended");
            }
        });
        Ok(GrpcFront { addr, serving })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for GrpcFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn relay(State(mut store): State<Channel>, request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "gRPC only\n").into_response();
    }
    let unavailable = |reason: String| {
        let status = Status::unavailable(format!("the store behind this front: {reason}"));
        status.into_http::<axum::body::Body>()
    };
    let store = match timeout(STORE_WAIT, store.ready()).await {
        Ok(Ok(store)) => store,
        Ok(Err(error)) => return unavailable(error.to_string()),
        Err(_) => return unavailable("no connection".to_owned()),
    };
    match tonic::codegen::Service::call(store, request.map(tonic::body::Body::new)).await {
        Ok(answer) => answer.map(axum::body::Body::new),
        Err(error) => unavailable(error.to_string()),
    }
}
