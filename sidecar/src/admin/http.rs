//! The admin HTTP server: `/` for people, `/status.json`, `/metrics`, `/healthz` (everything runs
//! and keeps up; not a reason to restart the process), `/readyz` (it can do its work), `/config`,
//! `/loglevel` (GET shows, PUT sets).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use pitr_cluster::tls::Security;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Board, CertificateStatus, Metrics, SidecarStatus, log_level, page};
use crate::config::effective::Setting;

/// What the pages are made of.
#[derive(Clone)]
struct Pages {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    settings: Arc<Vec<Setting>>,
    security: Security,
}

impl Pages {
    fn status(&self) -> SidecarStatus {
        SidecarStatus {
            certificate: self.security.standing().map(CertificateStatus::from),
            ..self.board.snapshot()
        }
    }
}

/// The server; it ends when this is dropped.
pub struct AdminServer {
    addr: SocketAddr,
    serving: JoinHandle<()>,
}

impl AdminServer {
    /// Listens on `addr` (port 0 = any) and serves until dropped. `settings`: what `/config` shows.
    pub async fn start(
        addr: SocketAddr,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
        settings: Vec<Setting>,
        security: Security,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let listener = security.listen(listener);
        let app = Router::new()
            .route("/", get(human_page))
            .route("/metrics", get(metrics_page))
            .route("/status.json", get(status_page))
            .route("/healthz", get(health_page))
            .route("/readyz", get(ready_page))
            .route("/config", get(config_page))
            .route("/loglevel", get(level_page).put(set_level))
            .with_state(Pages {
                board,
                metrics,
                settings: Arc::new(settings),
                security,
            });
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
    Json(pages.status())
}

async fn human_page(State(pages): State<Pages>) -> Html<String> {
    Html(page::render(&pages.status(), &pages.board.health()))
}

async fn health_page(State(pages): State<Pages>) -> (StatusCode, String) {
    yes_or_no(pages.board.health())
}

async fn ready_page(State(pages): State<Pages>) -> (StatusCode, String) {
    yes_or_no(pages.board.snapshot().readiness())
}

fn yes_or_no(answer: Result<(), String>) -> (StatusCode, String) {
    match answer {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn config_page(State(pages): State<Pages>) -> Json<Vec<Setting>> {
    Json(pages.settings.to_vec())
}

async fn level_page() -> (StatusCode, String) {
    match log_level::current() {
        Some(level) => (StatusCode::OK, format!("{level}\n")),
        None => (StatusCode::NOT_FOUND, "unknown\n".to_owned()),
    }
}

async fn set_level(level: String) -> (StatusCode, String) {
    match log_level::set(&level) {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::BAD_REQUEST, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::admin::TaskState;
    use crate::config::{Config, effective};

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
        let board = Arc::new(Board::new(std::time::Duration::from_secs(600)));
        let metrics = Arc::new(Metrics::new(Security::default()).unwrap());
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config::parse("pd-endpoints = [\"http://u:pw@a:1\"]\nstore-id = 1\n").unwrap();
        let settings = effective::of_config(&config);
        let server = AdminServer::start(
            addr,
            board.clone(),
            metrics.clone(),
            settings,
            Security::default(),
        )
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
        assert!(fetch(server.addr(), "/").await.contains("<h2>task t</h2>"));
        assert!(fetch(server.addr(), "/readyz").await.contains("200 OK"));
        let config = fetch(server.addr(), "/config").await;
        assert!(
            config.contains("lag-limit") && !config.contains("pw"),
            "{config}"
        );
    }
}
