//! What goes over the wire to an S3 server, seen by the stand-in of `s3_server.rs`.

use axum::http::{Method, StatusCode};
use bytes::Bytes;
use pitr_storage::cloud::{CloudOptions, Secret};
use pitr_storage::{Location, Payload, SharedStorage, StorageErrorKind, open_url};
use tokio::time::Duration;

use crate::s3_server::{KEY_ID, S3Server};

const BIG: usize = (16 << 20) + 5;

fn big() -> Bytes {
    (0..BIG as u32).map(|i| (i % 251) as u8).collect()
}

fn impatient() -> CloudOptions {
    CloudOptions {
        max_retries: 1,
        retry_timeout: Duration::from_secs(5),
        ..CloudOptions::default()
    }
}

fn open(server: &S3Server, more: &str) -> SharedStorage {
    let location = Location::parse(&server.url("logs/a b", more)).unwrap();
    location.open(&impatient()).unwrap()
}

#[tokio::test]
async fn requests_go_below_bucket_and_prefix_signed_and_with_the_options_asked_for() {
    let server = S3Server::start().await;
    let more = "&storage_class=STANDARD_IA&sse=aws:kms&sse-kms-key-id=kms-1&session-token=tok";
    let storage = open(&server, more);
    storage.put("v1/x.log", "data".into()).await.unwrap();
    storage.put_new("v1/x.meta", "meta".into()).await.unwrap();
    assert_eq!(storage.get_range("v1/x.log", 1..3).await.unwrap(), "at");
    assert_eq!(server.keys(), ["logs/a b/v1/x.log", "logs/a b/v1/x.meta"]);

    let seen = server.seen();
    let header = |at: usize, name: &str| {
        let value = seen[at].headers.get(name).map(|v| v.to_str().unwrap());
        value.unwrap_or("(none)").to_owned()
    };
    assert_eq!(seen[0].method, Method::PUT);
    assert_eq!(seen[0].target, "/bucket/logs/a%20b/v1/x.log");
    assert_eq!(header(0, "x-amz-storage-class"), "STANDARD_IA");
    assert_eq!(header(0, "x-amz-server-side-encryption"), "aws:kms");
    assert_eq!(
        header(0, "x-amz-server-side-encryption-aws-kms-key-id"),
        "kms-1"
    );
    assert_eq!(header(0, "x-amz-security-token"), "tok");
    assert_eq!(header(0, "if-none-match"), "(none)");
    assert_eq!(header(1, "if-none-match"), "*");
    assert_eq!(header(2, "range"), "bytes=1-2");
    let signed = header(0, "authorization");
    for name in ["x-amz-server-side-encryption", "x-amz-storage-class"] {
        assert!(signed.contains(name), "{name} is not signed: {signed}");
    }
}

#[tokio::test]
async fn a_large_object_goes_in_parts_and_is_whole() {
    let server = S3Server::start().await;
    let storage = open(&server, "");
    storage.put("big.log", big().into()).await.unwrap();
    assert!(storage.get("big.log").await.unwrap() == big());
    let parts = server.seen().into_iter();
    let parts = parts
        .filter(|seen| seen.target.contains("partNumber="))
        .count();
    assert_eq!((parts, server.unfinished_uploads()), (3, 0));
}

#[tokio::test]
async fn a_failed_upload_is_aborted_and_leaves_nothing_to_see() {
    let server = S3Server::start().await;
    let storage = open(&server, "");
    server.fail(Method::PUT, StatusCode::SERVICE_UNAVAILABLE, 100);
    let error = storage.put("big.log", big().into()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::Transient, "{error}");
    assert_eq!(server.keys(), [""; 0]);
    assert_eq!(server.unfinished_uploads(), 0);
    server.fail(Method::PUT, StatusCode::OK, 0);
    storage.put("big.log", big().into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_upload_is_aborted() {
    let server = S3Server::start().await;
    let location = Location::parse(&server.url("p", "")).unwrap();
    let storage = location.open(&CloudOptions::default()).unwrap();
    server.fail(Method::PUT, StatusCode::SERVICE_UNAVAILABLE, 1000);
    let put = tokio::spawn(async move { storage.put("big.log", big().into()).await });
    while server.unfinished_uploads() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    put.abort();
    for _ in 0..1000 {
        if server.unfinished_uploads() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the upload was not aborted");
}

#[tokio::test]
async fn throttling_is_waited_for_and_told_as_transient_when_it_stays() {
    let server = S3Server::start().await;
    let storage = open(&server, "");
    server.fail(Method::PUT, StatusCode::SERVICE_UNAVAILABLE, 1);
    storage.put("a.log", "x".into()).await.unwrap();
    for status in [429, 500, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        server.fail(Method::GET, status, 100);
        let error = storage.get("a.log").await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Transient, "{status}: {error}");
    }
}

#[tokio::test]
async fn refused_credentials_and_missing_buckets_are_told_apart() {
    let server = S3Server::start().await;
    let endpoint = &server.endpoint;
    let wrong = format!("s3://bucket/p?endpoint={endpoint}&access-key=other&secret-access-key=x");
    let wrong = open_url(&wrong).unwrap();
    for error in [
        wrong.put("a", "x".into()).await.unwrap_err(),
        wrong.get("a").await.unwrap_err(),
        wrong.get_range("a", 0..1).await.unwrap_err(),
        wrong.list("").await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StorageErrorKind::PermissionDenied, "{error}");
    }
    let gone = server.url("p", "").replace("s3://bucket/", "s3://gone/");
    let error = open_url(&gone).unwrap().list("").await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::NotFound, "{error}");
    let unsafe_put = open(&server, "");
    server.fail(Method::PUT, StatusCode::NOT_IMPLEMENTED, 100);
    let error = unsafe_put
        .put_new("a", Payload::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::InvalidConfig, "{error}");
    assert_eq!(server.keys(), [""; 0]);
}

#[tokio::test]
async fn credentials_of_the_caller_are_used_where_the_place_has_none() {
    let server = S3Server::start().await;
    let location = Location::parse(&format!("s3://bucket?endpoint={}", server.endpoint)).unwrap();
    let options = CloudOptions {
        s3_access_key: Some(Secret::new(KEY_ID.into())),
        s3_secret_access_key: Some(Secret::new("secret".into())),
        ..impatient()
    };
    let storage = location.open(&options).unwrap();
    storage.put("a", "x".into()).await.unwrap();
    assert_eq!(server.keys(), ["a"]);
}

#[tokio::test]
async fn no_error_shows_what_a_server_repeats_of_the_credentials() {
    let server = S3Server::start().await;
    let storage = open(&server, "&session-token=toktoktok");
    server.fail(Method::GET, StatusCode::FORBIDDEN, 100);
    let error = storage.get("a").await.unwrap_err();
    let text = format!("{error} {error:?} {}", storage.uri());
    assert!(text.contains("the server says redacted"), "{text}");
    assert!(
        !text.contains("canary42") && !text.contains("toktoktok"),
        "{text}"
    );
}
