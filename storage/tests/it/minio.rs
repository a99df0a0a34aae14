//! The promises of a storage on a real S3 server.

use bytes::Bytes;
use pitr_storage::cloud::CloudOptions;
use pitr_storage::{Location, SharedStorage, StorageErrorKind};

use crate::conformance::conformance;
use crate::minio_server::{KEY, Minio};

fn open(url: &str) -> SharedStorage {
    let place = Location::parse(url).unwrap();
    place.open(&CloudOptions::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_holds_on_a_real_minio() {
    let Some(minio) = tokio::task::block_in_place(Minio::start) else {
        return;
    };
    conformance(open(&minio.url("some/prefix"))).await;
    conformance(open(&minio.url(""))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_of_many_parts_is_whole_and_ranges_of_it_are_exact() {
    let Some(minio) = tokio::task::block_in_place(Minio::start) else {
        return;
    };
    let storage = open(&minio.url("big"));
    let bytes: Bytes = (0..40_000_007u32).map(|i| (i % 251) as u8).collect();
    storage.put("a.log", bytes.clone().into()).await.unwrap();
    assert_eq!(storage.get("a.log").await.unwrap(), bytes);
    let middle = storage.get_range("a.log", 16_777_210..16_777_230).await;
    assert_eq!(middle.unwrap(), bytes.slice(16_777_210..16_777_230));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_and_a_missing_bucket_are_told_apart_without_a_secret() {
    let Some(minio) = tokio::task::block_in_place(Minio::start) else {
        return;
    };
    let wrong = minio.url("x").replace(
        &format!("secret-access-key={KEY}"),
        "secret-access-key=nottherightone",
    );
    let refused = open(&wrong).get("a.log").await.unwrap_err();
    assert_eq!(
        refused.kind,
        StorageErrorKind::PermissionDenied,
        "{refused}"
    );
    assert!(!refused.to_string().contains("nottherightone"), "{refused}");
    let nowhere = minio.url("x").replace("s3://logs/", "s3://missing/");
    let refused = open(&nowhere).put("a.log", "x".into()).await.unwrap_err();
    assert_ne!(refused.kind, StorageErrorKind::Transient, "{refused}");
    assert!(!refused.to_string().contains(KEY), "{refused}");
}
