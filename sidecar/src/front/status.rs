//! A reverse proxy before a store's status address.
//!
//! Everything passes to the store and back as it comes, with two exceptions: `GET /config` says
//! `log-backup.enable = true`, which `br log start` asks of every store (pingcap/tidb
//! `br/pkg/config/kv.go`) and which is true of the store and this sidecar together; `GET /metrics`
//! shows this process's log backup metrics beside the store's, where `br log status` reads its speed
//! (`br/pkg/stream/stream_status.go`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use pitr_cluster::tls::{Connector, Security};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::exposition;
use crate::admin::Metrics;
use crate::failure::chain;

/// Beside `log-backup.enable` where it is true of the sidecar and not of TiKV, so that our own tools can
/// tell the two.
pub const BY_SIDECAR: &str = "by-sidecar";
/// Largest page that is changed on its way: TiKV's metrics take some megabytes.
const PAGE_LIMIT: usize = 64 << 20;
/// How long a store that cannot be reached is waited for before the caller is told.
const STORE_WAIT: Duration = Duration::from_secs(5);
/// Headers that belong to one connection (RFC 9110, section 7.6.1).
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

/// The server; it ends when this is dropped.
pub struct StatusFront {
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

struct Front {
    store: Authority,
    scheme: Scheme,
    client: Client<Connector, Body>,
    metrics: Arc<Metrics>,
}

impl StatusFront {
    /// Listens on `addr` (port 0 = any) for the store whose own status address is `store`
    /// (`host:port`). Both sides speak TLS, or none does.
    pub async fn start(
        addr: SocketAddr,
        store: Authority,
        security: &Security,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let front = Arc::new(Front {
            store,
            scheme: match security.is_on() {
                true => Scheme::HTTPS,
                false => Scheme::HTTP,
            },
            client: Client::builder(TokioExecutor::new()).build(security.http(STORE_WAIT)),
            metrics,
        });
        let listener = security.listen(listener);
        let app = Router::new().fallback(answer).with_state(front);
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the status front ended");
            }
        });
        Ok(StatusFront { addr, serving })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for StatusFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(front): State<Arc<Front>>, mut request: Request) -> Response {
    let changed = match (request.method(), request.uri().path()) {
        (&Method::GET, "/config") => Some(Page::Config),
        (&Method::GET, "/metrics") => Some(Page::Metrics),
        _ => None,
    };
    if changed.is_some() {
        // What is changed must come as text.
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    let answer = match front.pass(request).await {
        Ok(answer) => answer,
        Err(reason) => return bad_gateway(&reason),
    };
    match changed {
        Some(page) if answer.status() == StatusCode::OK => front.change(page, answer).await,
        _ => answer,
    }
}

enum Page {
    Config,
    Metrics,
}

impl Front {
    async fn pass(&self, mut request: Request) -> Result<Response, String> {
        let path = request.uri().path_and_query().cloned();
        let mut uri = axum::http::uri::Parts::default();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(self.store.clone());
        uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(uri).map_err(|error| error.to_string())?;
        // Over TLS, stock clients speak HTTP/2 with us; the store's status is HTTP/1.1.
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        headers.remove(header::HOST);
        without_hops(headers);
        let answer = self.client.request(request).await;
        let mut answer = answer.map_err(|error| chain(&error))?.map(Body::new);
        without_hops(answer.headers_mut());
        Ok(answer)
    }

    async fn change(&self, page: Page, answer: Response) -> Response {
        let (mut parts, body) = answer.into_parts();
        let bytes = match to_bytes(body, PAGE_LIMIT).await {
            Ok(bytes) => bytes,
            Err(error) => return bad_gateway(&chain(&error)),
        };
        let changed = match page {
            Page::Config => enabled(&bytes),
            Page::Metrics => self.with_ours(&bytes),
        };
        let text = match changed {
            Ok(text) => text,
            Err(reason) => return bad_gateway(&reason),
        };
        parts.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(parts, Body::from(text))
    }

    fn with_ours(&self, theirs: &[u8]) -> Result<String, String> {
        let theirs = std::str::from_utf8(theirs).map_err(|_| "its metrics are no text")?;
        let ours = self.metrics.text().map_err(|error| error.to_string())?;
        Ok(exposition::joined(theirs, &ours))
    }
}

/// TiKV's configuration, as the store and its sidecar have it together.
fn enabled(config: &[u8]) -> Result<String, String> {
    let parsed: Result<serde_json::Value, _> = serde_json::from_slice(config);
    let mut config = parsed.map_err(|error| format!("its configuration is no JSON: {error}"))?;
    let Some(items) = config.as_object_mut() else {
        return Err("its configuration is no JSON object".to_owned());
    };
    let section = items
        .entry("log-backup")
        .or_insert_with(|| serde_json::json!({}));
    let Some(section) = section.as_object_mut() else {
        return Err("its `log-backup` is no section".to_owned());
    };
    if section.insert("enable".to_owned(), true.into()) != Some(true.into()) {
        section.insert(BY_SIDECAR.to_owned(), true.into());
    }
    serde_json::to_string_pretty(&config).map_err(|error| error.to_string())
}

fn without_hops(headers: &mut HeaderMap) {
    for name in HOP {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

fn bad_gateway(reason: &str) -> Response {
    let text = format!("the store behind this front: {reason}\n");
    (StatusCode::BAD_GATEWAY, text).into_response()
}
