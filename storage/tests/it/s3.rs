//! What only S3 has: the headers that its options ask for, session tokens, and conditional writes that
//! a compatible server may not know. The rest is in `cloud_suite.rs`.

use std::time::Duration;

use axum::http::Method;
use bytes::Bytes;
use pitr_storage::cloud::{CloudOptions, Secret};
use pitr_storage::{Payload, SharedStorage, StorageErrorKind};

use crate::clouds::{CloudServer, Dialect, Trouble, impatient, s3};

async fn start() -> CloudServer {
    CloudServer::start(Dialect::S3).await
}

fn open(server: &CloudServer, more: &str) -> SharedStorage {
    server.open_with(&server.url("logs/a b", more), impatient())
}

#[tokio::test]
async fn requests_go_below_bucket_and_prefix_signed_and_with_the_options_asked_for() {
    let server = start().await;
    let more = "&storage_class=STANDARD_IA&sse=aws:kms&sse-kms-key-id=kms-1&session-token=tok";
    let storage = open(&server, more);
    storage.put("v1/x.log", "data".into()).await.unwrap();
    storage.put_new("v1/x.meta", "meta".into()).await.unwrap();
    assert_eq!(storage.get_range("v1/x.log", 1..3).await.unwrap(), "at");
    assert_eq!(server.keys(), ["logs/a b/v1/x.log", "logs/a b/v1/x.meta"]);

    let seen = server.seen();
    let header = |at: usize, name: &str| seen[at].header(name).to_owned();
    assert_eq!(seen[0].method, Method::PUT);
    assert_eq!(seen[0].target(), "/bucket/logs/a%20b/v1/x.log");
    assert_eq!(header(0, "x-amz-storage-class"), "STANDARD_IA");
    assert_eq!(header(0, "x-amz-server-side-encryption"), "aws:kms");
    let kms = "x-amz-server-side-encryption-aws-kms-key-id";
    assert_eq!(header(0, kms), "kms-1");
    assert_eq!(header(0, "x-amz-security-token"), "tok");
    assert_eq!(header(0, "if-none-match"), "");
    assert_eq!(header(1, "if-none-match"), "*");
    assert_eq!(header(2, "range"), "bytes=1-2");
    let signed = header(0, "authorization");
    for name in ["x-amz-server-side-encryption", "x-amz-storage-class"] {
        assert!(signed.contains(name), "{name} is not signed: {signed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_upload_is_aborted() {
    let big: Bytes = vec![7; (16 << 20) + 5].into();
    for dialect in [Dialect::S3, Dialect::Gcs] {
        let server = CloudServer::start(dialect).await;
        let storage = server.open_with(&server.url("p", ""), CloudOptions::default());
        server.fail(&[Method::PUT], Trouble::Status(503), 1000);
        let data = big.clone();
        let put = tokio::spawn(async move { storage.put("big.log", data.into()).await });
        while server.unfinished_uploads() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        put.abort();
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while server.unfinished_uploads() > 0 {
            assert!(
                tokio::time::Instant::now() < end,
                "{dialect:?} was not aborted"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A look before a write would be no lock: the server's "no" is passed on.
#[tokio::test]
async fn a_server_without_conditional_writes_is_told_and_not_worked_around() {
    let server = start().await;
    let storage = open(&server, "");
    server.fail(&[Method::PUT], Trouble::Status(501), 100);
    let error = storage.put_new("a", Payload::default()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::InvalidConfig, "{error}");
    assert_eq!(server.keys(), [""; 0]);
}

#[tokio::test]
async fn credentials_of_the_caller_are_used_where_the_place_has_none() {
    let server = start().await;
    let url = format!("s3://bucket?endpoint={}", server.endpoint);
    let options = CloudOptions {
        s3_access_key: Some(Secret::new(s3::KEY_ID.into())),
        s3_secret_access_key: Some(Secret::new(s3::SECRET.into())),
        ..impatient()
    };
    let storage = server.open_with(&url, options.clone());
    storage.put("a", "x".into()).await.unwrap();
    assert_eq!(server.keys(), ["a"]);
    // Those of the place win: wrong ones are not replaced by good ones of the caller.
    let wrong = format!("{url}&access-key={}&secret-access-key=wrong", s3::KEY_ID);
    let error = server
        .open_with(&wrong, options)
        .get("a")
        .await
        .unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::PermissionDenied, "{error}");
}

#[tokio::test]
async fn no_error_shows_what_a_server_repeats_of_a_session_token() {
    let server = start().await;
    let storage = open(&server, "&session-token=toktoktok");
    server.fail(&[Method::GET], Trouble::Status(403), 100);
    let error = storage.get("a").await.unwrap_err();
    let text = format!("{error} {error:?} {}", storage.uri());
    assert!(text.contains("the server says redacted"), "{text}");
    assert!(
        !text.contains("canary42") && !text.contains("toktoktok"),
        "{text}"
    );
}

/// A clock that is wrong by more than a quarter of an hour, another region: the server's refusals
/// reach the user as refusals, not as something to wait for.
#[tokio::test]
async fn a_signature_for_another_region_is_refused_for_good() {
    let server = start().await;
    let storage = open(&server, "&region=eu-north-1");
    let error = storage.put("a", "x".into()).await.unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::PermissionDenied, "{error}");
    assert_eq!(server.requests(), 1);
}
