//! The store's HTTP status port, as far as clients ask it: `/status` and `/config`.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::assembly::STORE_VERSION;

/// Serves until the listener fails.
pub(crate) async fn serve(listener: TcpListener, store_addr: &str) -> Result<(), String> {
    let status = json!({
        "version": STORE_VERSION,
        "name": "tikv-pitr-playground",
        "address": store_addr,
    });
    let router = Router::new()
        .route("/status", get(async move || Json(status)))
        .route("/config", get(async || Json(config())));
    axum::serve(listener, router)
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
