//! Commands over HTTP, for demos and for tests in other languages: who leads, who runs, where regions end,
//! and changes of all that. Answers are JSON; a refused command is told with status 409 and its reason.

use std::net::TcpListener;
use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use pitr_proto::metapb::Region;
use serde_json::{Value, json};

use crate::assembly::Parts;
use crate::store::RegionMap;

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
        .route("/regions/{region}/split", post(split))
        .route("/regions/{region}/merge/{target}", post(merge))
        .route("/stores/{store}/{action}", post(outage))
        .with_state(parts);
    axum::serve(listener, router)
        .await
        .map_err(|e| format!("admin: {e}"))
}

async fn regions(State(parts): State<Arc<Parts>>) -> Json<Value> {
    let regions = parts.first().store().regions();
    Json(regions.iter().map(|r| describe(&regions, r)).collect())
}

/// A region; its bounds are encoded keys.
fn describe(regions: &RegionMap, region: &Region) -> Value {
    let epoch = region.region_epoch.unwrap_or_default();
    json!({
        "id": region.id,
        "start_key": hex::encode(&region.start_key),
        "end_key": hex::encode(&region.end_key),
        "version": epoch.version,
        "conf_ver": epoch.conf_ver,
        "leader": regions.leader(region.id).map(|peer| peer.store_id),
    })
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
    answer(tokio::task::spawn_blocking(work).await, |()| json!({}))
}

/// The parts of a region that was split at a user key.
async fn split(
    State(parts): State<Arc<Parts>>,
    Path(region): Path<u64>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = query.unwrap_or_default();
    let key = query
        .strip_prefix("key=")
        .and_then(|key| hex::decode(key).ok());
    let Some(key) = key else {
        let error = format!("{query:?} is not key=HEX, a user key in hex");
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": error })));
    };
    let store = parts.first().store().clone();
    let work = {
        let store = store.clone();
        move || store.split_region_at(region, &key)
    };
    let done = tokio::task::spawn_blocking(work).await;
    answer(done, |parts| {
        let regions = store.regions();
        parts.iter().map(|part| describe(&regions, part)).collect()
    })
}

/// The target, which has grown.
async fn merge(
    State(parts): State<Arc<Parts>>,
    Path((source, target)): Path<(u64, u64)>,
) -> Answer {
    let store = parts.first().store().clone();
    let work = {
        let store = store.clone();
        move || store.merge(source, target)
    };
    let done = tokio::task::spawn_blocking(work).await;
    answer(done, |merged| describe(&store.regions(), &merged))
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
    let done = tokio::task::spawn_blocking(move || command(&parts, store)).await;
    answer(done, |()| json!({}))
}

fn answer<T, E: std::fmt::Display>(
    done: Result<Result<T, E>, tokio::task::JoinError>,
    show: impl FnOnce(T) -> Value,
) -> Answer {
    let error = match done {
        Ok(Ok(done)) => return (StatusCode::OK, Json(show(done))),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    (StatusCode::CONFLICT, Json(json!({ "error": error })))
}
