//! The admin HTTP server: `/metrics`, `/status.json`, `/healthz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Board, Metrics, SidecarStatus};

/// What the pages are made of.
#[derive(Clone)]
struct Pages {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

/// The server; it ends when this is dropped.
pub struct AdminServer {
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

impl AdminServer {
    /// Listens on `addr` (port 0 = any) and serves until dropped.
    pub async fn start(
        addr: SocketAddr,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let app = Router::new()
            .route("/metrics", get(metrics_page))
            .route("/status.json", get(status_page))
            .route("/healthz", get(health_page))
            .with_state(Pages { board, metrics });
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the admin HTTP server ended");
            }
        });
        Ok(AdminServer { addr, serving })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn metrics_page(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.metrics.text() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            error.to_string(),
        ),
    }
}

async fn status_page(State(pages): State<Pages>) -> Json<SidecarStatus> {
    Json(pages.board.snapshot())
}

async fn health_page(State(pages): State<Pages>) -> (StatusCode, String) {
    match pages.board.snapshot().health() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::admin::TaskState;

    async fn fetch(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_pages_show_metrics_state_and_health() {
        let board = Arc::new(Board::new());
        let metrics = Arc::new(Metrics::new().unwrap());
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = AdminServer::start(addr, board.clone(), metrics.clone())
            .await
            .unwrap();
        let health = fetch(server.addr(), "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 503"), "{health}");
        assert!(health.contains("waiting for PD"));

        board.update(|page| page.waiting_for.clear());
        board.set_state("t", 7, TaskState::Running);
        let running = pitr_observer::metrics::TaskStatus::Running;
        metrics.observer.set_task_status("t", running);
        assert!(
            fetch(server.addr(), "/healthz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        assert!(
            fetch(server.addr(), "/status.json")
                .await
                .contains("\"running\"")
        );
        let text = fetch(server.addr(), "/metrics").await;
        assert!(
            text.contains("tikv_log_backup_task_status{task=\"t\"} 0"),
            "{text}"
        );
        assert!(text.contains("tikv_log_backup_enabled 1"), "{text}");
    }
}
