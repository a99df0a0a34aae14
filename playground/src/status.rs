//! The store's HTTP status port, as far as clients ask it: `/status`, `/config` and `/metrics`.

use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::server::StoreServer;

/// Serves until the listener fails.
pub(crate) async fn serve(listener: TcpListener, server: Arc<StoreServer>) -> Result<(), String> {
    let status = json!({
        "version": server.meta().version,
        "name": "tikv-pitr-playground",
        "address": server.address().store.to_string(),
    });
    let shown = server.clone();
    let router = Router::new()
        .route("/status", get(async move || Json(status)))
        .route("/config", get(async || Json(config())))
        .route("/metrics", get(async move || metrics(&shown)));
    axum::serve(server.security().listen(listener), router)
        .await
        .map_err(|e| format!("status: {e}"))
}

/// The settings that clients look at. The store has no log backup of its own.
fn config() -> Value {
    json!({
        "log-backup": { "enable": false },
        "storage": { "api-version": 1, "enable-ttl": false },
    })
}

fn metrics(server: &StoreServer) -> Response {
    match server.metrics() {
        Ok(page) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
