//! Commands over HTTP, for demos and for tests in other languages: who leads, who runs, and changes of
//! both. Answers are JSON; a refused command is told with status 409 and its reason.

use std::net::TcpListener;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::assembly::Parts;

type Answer = (StatusCode, Json<Value>);

/// Serves for ever; without a listener it only waits.
pub(crate) async fn serve(listener: Option<TcpListener>, parts: Arc<Parts>) -> Result<(), String> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    let router = Router::new()
        .route("/regions", get(regions))
        .route("/stores", get(stores))
        .route("/regions/{region}/leader/{store}", post(transfer))
        .route("/stores/{store}/{action}", post(outage))
        .with_state(parts);
    axum::serve(listener, router)
        .await
        .map_err(|e| format!("admin: {e}"))
}

async fn regions(State(parts): State<Arc<Parts>>) -> Json<Value> {
    let regions = parts.first().store().regions();
    let one = |region: &Arc<pitr_proto::metapb::Region>| {
        let epoch = region.region_epoch.unwrap_or_default();
        json!({
            "id": region.id,
            "start_key": hex::encode(&region.start_key),
            "end_key": hex::encode(&region.end_key),
            "version": epoch.version,
            "conf_ver": epoch.conf_ver,
            "leader": regions.leader(region.id).map(|peer| peer.store_id),
        })
    };
    Json(regions.iter().map(one).collect())
}

async fn stores(State(parts): State<Arc<Parts>>) -> Json<Value> {
    let servers = parts.servers().iter();
    let one = |server: &Arc<crate::server::StoreServer>| {
        let address = server.address();
        json!({
            "id": address.id,
            "store_addr": address.store,
            "status_addr": address.status,
            "up": server.store().is_up(),
        })
    };
    Json(servers.map(one).collect())
}

async fn transfer(
    State(parts): State<Arc<Parts>>,
    Path((region, store)): Path<(u64, u64)>,
) -> Answer {
    let work = move || parts.first().store().transfer_leader(region, store);
    answer(tokio::task::spawn_blocking(work).await)
}

async fn outage(
    State(parts): State<Arc<Parts>>,
    Path((store, action)): Path<(u64, String)>,
) -> Answer {
    let command = match &action[..] {
        "stop" => Parts::stop_store,
        "crash" => Parts::crash_store,
        "start" => Parts::start_store,
        other => {
            let error = format!("{other:?} is none of stop, crash, start");
            return (StatusCode::NOT_FOUND, Json(json!({ "error": error })));
        }
    };
    answer(tokio::task::spawn_blocking(move || command(&parts, store)).await)
}

fn answer<E: std::fmt::Display>(done: Result<Result<(), E>, tokio::task::JoinError>) -> Answer {
    let error = match done {
        Ok(Ok(())) => return (StatusCode::OK, Json(json!({}))),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    (StatusCode::CONFLICT, Json(json!({ "error": error })))
}
