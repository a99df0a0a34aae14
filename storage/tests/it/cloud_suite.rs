//! The promises of a storage over real HTTP, for each of the three clouds' protocols: the conformance
//! suite (and that it finds a lying server), failures that pass and failures that stay, refusals, and
//! what messages may show.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::Method;
use bytes::Bytes;
use pitr_proto::backup::storage_backend::Backend;
use pitr_storage::cloud::{CloudOptions, Secret};
use pitr_storage::{Location, Result, SharedStorage, StorageError, StorageErrorKind};

use crate::clouds::{CloudServer, DIALECTS, Dialect, MISTAKES, Trouble, azure, gcs, impatient};
use crate::conformance::conformance;

const WRITES: [Method; 2] = [Method::PUT, Method::POST];
/// Azure deletes by a batch that is posted.
const DELETES: [Method; 2] = [Method::DELETE, Method::POST];

const BIG: usize = (16 << 20) + 5;

fn big() -> Bytes {
    (0..BIG as u32).map(|i| (i % 251) as u8).collect()
}

/// Every call once, on `a.log` of ten bytes; `new.log` does not exist.
async fn every_call(storage: &SharedStorage) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("put", storage.put("b.log", "x".into()).await),
        ("put_new", storage.put_new("new.log", "x".into()).await),
        ("get", storage.get("a.log").await.map(drop)),
        (
            "get_range",
            storage.get_range("a.log", 1..3).await.map(drop),
        ),
        ("head", storage.head("a.log").await.map(drop)),
        ("list", storage.list("").await.map(drop)),
        ("delete", storage.delete("a.log").await),
    ]
}

fn all_methods() -> Vec<Method> {
    vec![
        Method::PUT,
        Method::POST,
        Method::GET,
        Method::HEAD,
        Method::DELETE,
    ]
}

/// A server with `a.log`, and a storage on it.
async fn with_an_object(dialect: Dialect) -> (CloudServer, SharedStorage) {
    let server = CloudServer::start(dialect).await;
    let storage = server.open("logs/a b");
    storage.put("a.log", "0123456789".into()).await.unwrap();
    server.requests();
    (server, storage)
}

async fn conforms(dialect: Dialect) {
    let server = CloudServer::start(dialect).await;
    conformance(server.open("some/prefix")).await;
    assert_eq!(server.keys(), [""; 0], "nothing outside of the prefix");
    assert_eq!(server.unfinished_uploads(), 0);
    // The whole bucket, without a prefix.
    conformance(server.open("")).await;
    assert_eq!(server.keys(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms_over_http_with_signed_requests() {
    conforms(Dialect::S3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_conforms_over_http_with_signed_tokens() {
    conforms(Dialect::Gcs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_conforms_over_http_with_signed_requests() {
    conforms(Dialect::Azure).await;
}

/// A suite that a wrong backend passes proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_finds_every_mistake_that_a_server_can_make() {
    for dialect in DIALECTS {
        for mistake in MISTAKES {
            let server = CloudServer::start(dialect).await;
            server.make(mistake);
            let storage = server.open_with(
                &server.url("p", ""),
                CloudOptions {
                    max_retries: 0,
                    ..impatient()
                },
            );
            let passed = tokio::spawn(conformance(storage)).await.is_ok();
            assert!(!passed, "{dialect:?}: {mistake:?} was not found");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_fails_twice_succeeds_the_third_time() {
    for dialect in DIALECTS {
        for status in [429, 500, 503] {
            let (server, storage) = with_an_object(dialect).await;
            // Each call by itself: its first two requests fail.
            for call in 0..7 {
                server.fail(&all_methods(), Trouble::Status(status), 2);
                let told = match call {
                    0 => storage.put("b.log", "x".into()).await,
                    1 => storage.put_new("new.log", "x".into()).await,
                    2 => storage
                        .get("a.log")
                        .await
                        .map(|got| assert_eq!(got, "0123456789")),
                    3 => storage
                        .get_range("a.log", 1..3)
                        .await
                        .map(|got| assert_eq!(got, "12")),
                    4 => storage
                        .head("a.log")
                        .await
                        .map(|got| assert!(got.is_some())),
                    5 => storage.list("").await.map(|got| assert_eq!(got.len(), 3)),
                    _ => storage.delete("a.log").await,
                };
                told.unwrap_or_else(|error| panic!("{dialect:?} {call} after {status}: {error}"));
                assert_eq!(
                    server.requests(),
                    3,
                    "{dialect:?} {call}: two failures, one success"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_failing_is_told_as_transient_and_names_object_and_place() {
    for dialect in DIALECTS {
        let (server, storage) = with_an_object(dialect).await;
        server.fail(&all_methods(), Trouble::Status(503), u32::MAX);
        for (call, told) in every_call(&storage).await {
            let error = told.unwrap_err();
            assert_eq!(
                error.kind,
                StorageErrorKind::Transient,
                "{dialect:?} {call}: {error}"
            );
            let text = error.to_string();
            assert!(text.contains("503"), "{dialect:?} {call}: {text}");
            assert!(text.contains(&storage.uri()), "{dialect:?} {call}: {text}");
        }
        server.fail(&[], Trouble::Status(503), 0);
        assert_eq!(storage.get("a.log").await.unwrap(), "0123456789");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers_is_given_up_in_time() {
    for dialect in DIALECTS {
        let (server, _) = with_an_object(dialect).await;
        let hasty = CloudOptions {
            request_timeout: Duration::from_millis(150),
            max_retries: 1,
            ..CloudOptions::default()
        };
        let storage = server.open_with(&server.url("logs/a b", ""), hasty);
        server.fail(&all_methods(), Trouble::Silence, u32::MAX);
        let began = Instant::now();
        for (call, told) in every_call(&storage).await {
            let error = told.unwrap_err();
            assert_eq!(
                error.kind,
                StorageErrorKind::Transient,
                "{dialect:?} {call}: {error}"
            );
        }
        // Seven calls of at most two tries and a pause each; a head may follow a range.
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_listening_is_transient() {
    for dialect in DIALECTS {
        let mut server = CloudServer::start(dialect).await;
        // A port that was free a moment ago.
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        server.endpoint = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        for (call, told) in every_call(&server.open("p")).await {
            let error = told.unwrap_err();
            assert_eq!(
                error.kind,
                StorageErrorKind::Transient,
                "{dialect:?} {call}: {error}"
            );
        }
    }
}

/// Half a body is never a whole object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_is_fetched_on_or_told_but_never_shortened() {
    for dialect in DIALECTS {
        let server = CloudServer::start(dialect).await;
        let storage = server.open("p");
        let data: Bytes = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        storage.put("a.log", data.clone().into()).await.unwrap();
        server.fail(&[Method::GET], Trouble::Cut, 1);
        assert!(storage.get("a.log").await.unwrap() == data, "{dialect:?}");
        server.fail(&[Method::GET], Trouble::Cut, 1);
        let range = storage.get_range("a.log", 10..500_000).await.unwrap();
        assert!(range == data.slice(10..500_000), "{dialect:?}");
        server.fail(&[Method::GET], Trouble::Cut, u32::MAX);
        for told in [
            storage.get("a.log").await.map(drop),
            storage.get_range("a.log", 10..500_000).await.map(drop),
            storage.list("").await.map(drop),
        ] {
            let error = told.unwrap_err();
            assert_eq!(
                error.kind,
                StorageErrorKind::Transient,
                "{dialect:?}: {error}"
            );
        }
    }
}

/// The write is done and the answer is lost: the most common doubt of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_after_the_effect_leaves_the_object_of_this_caller_and_no_other() {
    for dialect in DIALECTS {
        let server = CloudServer::start(dialect).await;
        let storage = server.open("p");
        server.fail(&[Method::PUT], Trouble::AfterEffect(500), 1);
        storage.put("a.log", "mine".into()).await.unwrap();
        server.fail(&[Method::PUT], Trouble::AfterEffect(500), 1);
        match storage.put_new("once.meta", "mine".into()).await {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind, StorageErrorKind::AlreadyExists, "{error}"),
        }
        server.fail(&DELETES, Trouble::AfterEffect(500), 1);
        storage.delete("a.log").await.unwrap();
        assert_eq!(storage.head("a.log").await.unwrap(), None);
        assert_eq!(storage.get("once.meta").await.unwrap(), "mine");
        storage
            .put_new("once.meta", "other".into())
            .await
            .unwrap_err();
        assert_eq!(storage.get("once.meta").await.unwrap(), "mine");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_callers_and_missing_buckets_are_told_apart_for_every_call() {
    for dialect in DIALECTS {
        let (server, _) = with_an_object(dialect).await;
        let url = server.url("logs/a b", "");
        let stranger = match dialect {
            Dialect::S3 => url.replace("top+secret", "top+secreT"),
            Dialect::Azure => url.replace(&azure::key(), "c29tZWJvZHkgZWxzZQ=="),
            // Another project's key is as good as none for this one: the account is renamed.
            Dialect::Gcs => url.clone(),
        };
        let options = match dialect {
            Dialect::Gcs => {
                let other = gcs::account_key().replace("canary42.iam", "other.iam");
                CloudOptions {
                    gcs_credentials: Some(Secret::new(other)),
                    ..impatient()
                }
            }
            _ => impatient(),
        };
        let stranger = Location::parse(&stranger).unwrap().open(&options).unwrap();
        for (call, told) in every_call(&stranger).await {
            let error = told.unwrap_err();
            let kind = StorageErrorKind::PermissionDenied;
            assert_eq!(error.kind, kind, "{dialect:?} {call}: {error}");
        }
        assert_eq!(server.keys(), ["logs/a b/a.log"], "{dialect:?}");
        server.requests();

        let gone = server.open_with(&url.replace("//bucket/", "//gone/"), impatient());
        assert_eq!(
            gone.list("").await.unwrap_err().kind,
            StorageErrorKind::NotFound
        );
        assert_eq!(
            gone.get("a.log").await.unwrap_err().kind,
            StorageErrorKind::NotFound
        );
        let lost = gone.put("a.log", "x".into()).await.unwrap_err();
        assert_eq!(lost.kind, StorageErrorKind::NotFound, "{dialect:?}: {lost}");
        assert_eq!(
            server.requests(),
            3,
            "{dialect:?}: what is final is not repeated"
        );
    }
}

/// Azure answers a batch of deletions with 202 whatever became of each.
#[tokio::test]
async fn a_deletion_that_azure_refuses_inside_of_a_batch_keeps_its_kind() {
    let (server, storage) = with_an_object(Dialect::Azure).await;
    for (status, kind) in [
        (403, StorageErrorKind::PermissionDenied),
        (401, StorageErrorKind::PermissionDenied),
        (503, StorageErrorKind::Transient),
        (500, StorageErrorKind::Transient),
    ] {
        server.refuse_deletions(status);
        let error = storage.delete("a.log").await.unwrap_err();
        assert_eq!(error.kind, kind, "{status}: {error}");
    }
    server.refuse_deletions(404);
    storage.delete("a.log").await.unwrap();
}

fn shown(error: &StorageError) -> String {
    format!("{error} {error:?} {error:#?}")
}

/// The servers here repeat every secret they know, and the request that was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_shows_a_secret_that_a_server_repeats() {
    for dialect in DIALECTS {
        let (server, storage) = with_an_object(dialect).await;
        for trouble in [
            Trouble::Status(400),
            Trouble::Status(403),
            Trouble::Status(404),
            Trouble::Status(409),
            Trouble::Status(412),
            Trouble::Status(503),
        ] {
            server.fail(&all_methods(), trouble, u32::MAX);
            let mut told = every_call(&storage).await;
            told.push(("large put", storage.put("big.log", big().into()).await));
            for (call, told) in told {
                // What is not there is no failure of every call.
                let Err(error) = told else { continue };
                let text = format!("{} {} {:?}", shown(&error), storage.uri(), error.path);
                for secret in server.secrets() {
                    assert!(
                        !text.contains(&secret),
                        "{dialect:?} {call} {trouble:?}: {text}"
                    );
                }
                // A signature is no key, but it is good for requests for a while.
                for sign in ["Signature=", "SharedKey ", "Bearer "] {
                    for after in text.split(sign).skip(1) {
                        assert!(after.starts_with("redacted"), "{dialect:?} {call}: {text}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_shared_access_signature_goes_out_as_it_was_given_and_is_never_shown() {
    let server = CloudServer::start(Dialect::Azure).await;
    for spelling in [azure::SAS.to_owned(), format!("?{}", azure::SAS)] {
        let url = format!(
            "azure://bucket/p?endpoint={}/{}&account-name={}",
            server.endpoint,
            azure::ACCOUNT,
            azure::ACCOUNT
        );
        let options = CloudOptions {
            azure_sas: Some(Secret::new(spelling)),
            ..impatient()
        };
        let storage = Location::parse(&url).unwrap().open(&options).unwrap();
        storage.put("a b.log", "data".into()).await.unwrap();
        assert_eq!(storage.get_range("a b.log", 1..3).await.unwrap(), "at");
        assert_eq!(storage.list("").await.unwrap().len(), 1);
        server.fail(&all_methods(), Trouble::Status(503), u32::MAX);
        for (call, told) in every_call(&storage).await {
            let text = shown(&told.unwrap_err());
            for secret in [
                "c2lnQ2FuYXJ5NDJ+k",
                "c2lnQ2FuYXJ5NDJ%2Bk",
                "c2lnQ2FuYXJ5NDJ",
            ] {
                assert!(!text.contains(secret), "{call}: {text}");
            }
        }
        server.fail(&[], Trouble::Status(503), 0);
        storage.delete("a b.log").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_goes_in_parts_and_a_failed_one_leaves_nothing_to_see() {
    for dialect in DIALECTS {
        let server = CloudServer::start(dialect).await;
        let storage = server.open("p");
        storage.put("big.log", big().into()).await.unwrap();
        let parts = server.seen().into_iter().filter(|asked| {
            asked.query("partNumber").is_some() || asked.query("blockid").is_some()
        });
        assert_eq!(parts.count(), 3, "{dialect:?}");
        assert!(storage.get("big.log").await.unwrap() == big());
        server.fail(&WRITES, Trouble::Status(503), u32::MAX);
        let error = storage.put("more.log", big().into()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Transient, "{error}");
        server.fail(&[Method::PUT], Trouble::Status(403), u32::MAX);
        let error = storage.put("more.log", big().into()).await.unwrap_err();
        assert_eq!(
            error.kind,
            StorageErrorKind::PermissionDenied,
            "{dialect:?}: {error}"
        );
        server.fail(&[], Trouble::Status(503), 0);
        assert_eq!(server.keys(), ["p/big.log"], "{dialect:?}");
        assert_eq!(storage.head("more.log").await.unwrap(), None);
        // Azure forgets blocks by itself, nobody can remove them.
        if dialect != Dialect::Azure {
            assert_eq!(server.unfinished_uploads(), 0, "{dialect:?}");
        }
        storage.put("more.log", big().into()).await.unwrap();
        assert!(storage.get("more.log").await.unwrap() == big());
    }
}

/// A task of another tool may name its endpoint with a slash at the end.
#[tokio::test]
async fn a_slash_behind_the_endpoint_changes_nothing() {
    for dialect in DIALECTS {
        let (server, _) = with_an_object(dialect).await;
        let place = Location::parse(&server.url("logs/a b", "")).unwrap();
        let mut message = place.to_backend().unwrap();
        match message.backend.as_mut().unwrap() {
            Backend::S3(s3) => s3.endpoint.push('/'),
            Backend::Gcs(gcs) => gcs.endpoint.push('/'),
            Backend::AzureBlobStorage(azure) => azure.endpoint.push('/'),
            other => panic!("{other:?}"),
        }
        let options = CloudOptions {
            gcs_credentials: Some(Secret::new(gcs::account_key().to_owned())),
            ..impatient()
        };
        let storage = Location::from_backend(&message).unwrap();
        let storage = storage.open(&options).unwrap();
        let listed = storage.list("").await.unwrap();
        assert_eq!(listed.len(), 1, "{dialect:?}");
        storage.put("b.log", "x".into()).await.unwrap();
        assert_eq!(
            server.keys(),
            ["logs/a b/a.log", "logs/a b/b.log"],
            "{dialect:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_one_new_object_have_one_winner_even_when_answers_fail() {
    for dialect in DIALECTS {
        let server = CloudServer::start(dialect).await;
        let storage = server.open("p");
        server.fail(&[Method::PUT], Trouble::Status(503), 4);
        let tries = (0..8u8).map(|i| {
            let storage = Arc::clone(&storage);
            tokio::spawn(async move { storage.put_new("lock", vec![i; 4].into()).await.is_ok() })
        });
        let mut winners = Vec::new();
        for (i, task) in tries.collect::<Vec<_>>().into_iter().enumerate() {
            if task.await.unwrap() {
                winners.push(i as u8);
            }
        }
        assert_eq!(winners.len(), 1, "{dialect:?}");
        assert_eq!(storage.get("lock").await.unwrap(), vec![winners[0]; 4]);
    }
}
