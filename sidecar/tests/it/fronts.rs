//! What stands before a store: the gRPC front relays what is not its own without changing it, the
//! status front passes everything but two pages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, Uri};
use bytes::Bytes;
use pitr_cluster::tls::Security;
use pitr_proto::cdcpb::change_data_client::ChangeDataClient;
use pitr_proto::cdcpb::{ChangeDataRequest, event};
use pitr_proto::kvrpcpb::{GetRequest, Op};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use pitr_sidecar::admin::Metrics;
use pitr_sidecar::front::grpc::GrpcFront;
use pitr_sidecar::front::status::StatusFront;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tonic::codec::Streaming;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::{Service as _, ServiceExt as _};

use crate::system::{Client, Cluster};

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A service by name, of which only the front knows.
fn ours() -> HealthCheckRequest {
    HealthCheckRequest {
        service: "ours".to_owned(),
    }
}

/// A front whose own service is gRPC's health service.
async fn front(store: Option<&str>) -> GrpcFront {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("ours", tonic_health::ServingStatus::Serving)
        .await;
    GrpcFront::start(anywhere(), Routes::new(health), store, &Security::default())
        .await
        .unwrap()
}

async fn channel(to: impl std::fmt::Display) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{to}")).unwrap();
    endpoint.connect().await.unwrap()
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn own_services_are_answered_and_all_others_are_the_stores() {
    let cluster = Arc::new(in_background(Cluster::start).await);
    let writer = cluster.clone();
    in_background(move || Client::of(&writer).write(&[("k".to_owned(), Some(vec![7; 300]))])).await;
    let store = cluster.playground.store_addr().to_string();
    let front = front(Some(&store)).await;

    let mut health = HealthClient::new(channel(front.addr()).await);
    health.check(ours()).await.unwrap();
    let direct = HealthClient::new(channel(&store).await).check(ours()).await;
    assert_eq!(direct.unwrap_err().code(), Code::NotFound);

    let get = GetRequest {
        key: Bytes::from_static(b"k"),
        version: u64::MAX,
        ..GetRequest::default()
    };
    let through = TikvClient::new(channel(front.addr()).await)
        .kv_get(get.clone())
        .await
        .unwrap()
        .into_inner();
    let direct = TikvClient::new(channel(&store).await)
        .kv_get(get)
        .await
        .unwrap()
        .into_inner();
    // Without a region in the request both refuse it, in the same words.
    assert_eq!(through, direct);
    assert!(through.region_error.is_some());
    in_background(move || drop(cluster)).await;
}

/// The first event with rows of a stream.
async fn first_row(stream: &mut Streaming<pitr_proto::cdcpb::ChangeDataEvent>) -> event::Row {
    loop {
        let message = stream.message().await.unwrap().unwrap();
        for event in message.events {
            if let Some(event::Event::Entries(rows)) = event.event
                && let Some(row) = rows.entries.into_iter().next()
            {
                return row;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_run_in_both_directions_with_their_metadata() {
    let cluster = Arc::new(in_background(Cluster::start).await);
    let writer = cluster.clone();
    let now = in_background(move || {
        let client = Client::of(&writer);
        client.write(&[("k".to_owned(), Some(vec![7; 300]))]);
        client.now()
    })
    .await;
    let pds = cluster.pds();
    let pd = pitr_cluster::pd::PdClient::connect(&pds).await.unwrap();
    let region = pd.region_of(b"k").await.unwrap();
    let front = front(Some(&cluster.playground.store_addr().to_string())).await;
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let header = pitr_proto::cdcpb::Header {
        cluster_id: pd.cluster_id(),
        ticdc_version: "8.5.0".to_owned(),
    };
    let register = ChangeDataRequest {
        header: Some(header),
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        checkpoint_ts: 1,
        request_id: 5,
        ..ChangeDataRequest::default()
    };
    send.send(register).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut call = tonic::Request::new(requests);
    call.metadata_mut()
        .insert("features", "stream-multiplexing".parse().unwrap());
    let mut client = ChangeDataClient::new(channel(front.addr()).await);
    let mut stream = client.event_feed_v2(call).await.unwrap().into_inner();
    let row = first_row(&mut stream).await;
    assert_eq!((&row.key[..], row.value.len()), (&b"k"[..], 300));
    assert!(row.commit_ts <= now.get());
    assert_eq!(row.op_type, Op::Put as i32 + 1);

    // A feature that the store does not know ends the call at once: a status without a message.
    let mut wrong = tonic::Request::new(tokio_stream::empty());
    wrong
        .metadata_mut()
        .insert("features", "x".parse().unwrap());
    let refused = client.event_feed_v2(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    assert!(refused.message().contains('x'), "{refused:?}");
    in_background(move || drop(cluster)).await;
}

#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_no_store_is_unimplemented() {
    let nobody = {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        listener.local_addr().unwrap()
    };
    let get = GetRequest::default();
    let at_nobody = front(Some(&nobody.to_string())).await;
    let began = Instant::now();
    let answer = TikvClient::new(channel(at_nobody.addr()).await)
        .kv_get(get.clone())
        .await;
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("behind this front"));
    assert!(began.elapsed() < Duration::from_secs(10));
    let alone = front(None).await;
    let answer = TikvClient::new(channel(alone.addr()).await)
        .kv_get(get)
        .await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

async fn http(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn what_is_not_grpc_is_not_relayed() {
    let front = front(Some("127.0.0.1:1")).await;
    let answer = http(front.addr(), &get("/metrics")).await;
    assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
}

/// A store's status address that tells what it was asked.
async fn echo() -> SocketAddr {
    async fn tell(method: Method, uri: Uri, headers: HeaderMap, body: String) -> String {
        let names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
        format!("{method} {uri} {names:?} {body}")
    }
    let config = r#"{"log-backup":{"enable":false,"num-threads":2},"raftstore":{"x":1}}"#;
    let metrics = "# TYPE tikv_log_backup_enabled counter\ntikv_log_backup_enabled 0\nkept 1\n";
    let routes = Router::new()
        .route(
            "/config",
            axum::routing::get(async move || config).post(tell),
        )
        .route("/metrics", axum::routing::get(async move || metrics))
        .fallback(tell);
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    addr
}

async fn status_front(store: SocketAddr) -> StatusFront {
    let metrics = Arc::new(Metrics::new(Security::default()).unwrap());
    let store = store.to_string().parse().unwrap();
    StatusFront::start(anywhere(), store, &Security::default(), metrics)
        .await
        .unwrap()
}

#[tokio::test]
async fn two_pages_are_changed_and_keep_what_is_the_stores() {
    let front = status_front(echo().await).await;
    let config = http(front.addr(), &get("/config")).await;
    let body = config.split("\r\n\r\n").nth(1).unwrap();
    let config: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(config["log-backup"]["enable"], true);
    assert_eq!(
        config["log-backup"]["by-sidecar"], true,
        "TiKV's own is off"
    );
    assert_eq!(config["log-backup"]["num-threads"], 2);
    assert_eq!(config["raftstore"]["x"], 1);
    let metrics = http(front.addr(), &get("/metrics")).await;
    assert!(metrics.contains("\nkept 1\n"), "{metrics}");
    assert!(
        metrics.contains("\ntikv_log_backup_enabled 1\n"),
        "{metrics}"
    );
    assert!(!metrics.contains("tikv_log_backup_enabled 0"), "{metrics}");
}

#[tokio::test]
async fn every_other_request_reaches_the_store_as_it_was_sent() {
    let front = status_front(echo().await).await;
    let told = http(
        front.addr(),
        &get("/debug/pprof/profile?seconds=1&frequency=99"),
    )
    .await;
    assert!(
        told.contains("GET /debug/pprof/profile?seconds=1&frequency=99"),
        "{told}"
    );
    assert!(told.contains("accept-encoding"), "{told}");
    let post =
        "POST /config HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\na=b&c";
    let told = http(front.addr(), post).await;
    assert!(
        told.contains("POST /config") && told.contains("a=b&c"),
        "{told}"
    );
    assert!(!told.contains("\"connection\""), "{told}");
}

#[tokio::test]
async fn a_client_that_speaks_http_2_as_go_does_over_tls_is_served_too() {
    let front = status_front(echo().await).await;
    let mut http2 = channel(front.addr()).await;
    for (page, holds) in [("/config", "\"enable\": true"), ("/any", "GET /any")] {
        let request = Request::get(page).body(tonic::body::Body::empty()).unwrap();
        let answer = http2.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = to_bytes(Body::new(answer.into_body()), 1 << 20).await;
        let text = String::from_utf8(body.unwrap().to_vec()).unwrap();
        assert!(text.contains(holds), "{text}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_or_talks_nonsense_is_a_bad_gateway() {
    let nobody = {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        listener.local_addr().unwrap()
    };
    let front = status_front(nobody).await;
    let answer = http(front.addr(), &get("/config")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("refused"), "{answer}");
    for config in ["nonsense", "[1]", r#"{"log-backup": 7}"#] {
        let routes = Router::new().route("/config", axum::routing::get(async move || config));
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let front = status_front(addr).await;
        let answer = http(front.addr(), &get("/config")).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{config}: {answer}");
        assert!(!answer.contains("\"enable\": true"), "{answer}");
    }
}
