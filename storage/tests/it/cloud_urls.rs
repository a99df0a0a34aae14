//! Cloud URLs as BR writes them, to the message of a task and back; and what must never be shown.

use pitr_proto::backup::storage_backend::Backend;
use pitr_proto::backup::{AzureBlobStorage, AzureCustomerKey, Gcs, S3, StorageBackend};
use pitr_storage::redact::{Secret, redact_url, scrub};
use pitr_storage::{Location, StorageErrorKind, backend_of_url, open_url};
use proptest::prelude::*;

fn message(url: &str) -> Backend {
    backend_of_url(url).unwrap().backend.unwrap()
}

fn refusal(url: &str) -> String {
    let error = Location::parse(url).unwrap_err();
    assert_eq!(error.kind, StorageErrorKind::InvalidConfig, "{url}");
    error.detail
}

#[test]
fn an_s3_url_becomes_the_message_that_br_registers() {
    let url = "s3://bkt/logs/2026/?endpoint=http://127.0.0.1:19000/&Region=us-west-2\
               &access_key=ak&secret-access-key=s+k/%2F=&session-token=st&provider=minio\
               &storage-class=STANDARD&sse=aws:kms&sse-kms-key-id=k&acl=private";
    let expected = S3 {
        endpoint: "http://127.0.0.1:19000".into(),
        region: "us-west-2".into(),
        bucket: "bkt".into(),
        prefix: "logs/2026".into(),
        storage_class: "STANDARD".into(),
        sse: "aws:kms".into(),
        sse_kms_key_id: "k".into(),
        acl: "private".into(),
        access_key: "ak".into(),
        secret_access_key: "s+k//=".into(),
        session_token: "st".into(),
        provider: "minio".into(),
        force_path_style: true,
        ..Default::default()
    };
    assert_eq!(message(url), Backend::S3(expected));
}

#[test]
fn paths_are_of_style_path_unless_told_otherwise() {
    let style = |query: &str| match message(&format!("s3://b?{query}")) {
        Backend::S3(s3) => s3.force_path_style,
        other => panic!("{other:?}"),
    };
    assert!(style("") && style("force-path-style=1") && style("provider=ceph"));
    assert!(!style("force-path-style=false"));
    assert!(!style("provider=alibaba") && !style("provider=netease&force-path-style=true"));
}

#[test]
fn gcs_and_azure_urls_become_their_messages() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cred.json");
    std::fs::write(&file, "{\"private_key\":\"canary42\"}").unwrap();
    let endpoint = "http://127.0.0.1:24443/storage/v1/";
    for scheme in ["gcs", "gs"] {
        let file = file.display();
        let url = format!("{scheme}://gb/logs?endpoint={endpoint}&credentials-file={file}");
        let expected = Gcs {
            endpoint: endpoint.into(),
            bucket: "gb".into(),
            prefix: "logs".into(),
            credentials_blob: "{\"private_key\":\"canary42\"}".into(),
            ..Default::default()
        };
        assert_eq!(message(&url), Backend::Gcs(expected));
    }
    for scheme in ["azure", "azblob"] {
        let url = format!(
            "{scheme}://cont/logs?endpoint=http://127.0.0.1:10000/devstoreaccount1\
             &account-name=devstoreaccount1&account-key=Eby8+/=&access-tier=Cool"
        );
        let expected = AzureBlobStorage {
            endpoint: "http://127.0.0.1:10000/devstoreaccount1".into(),
            bucket: "cont".into(),
            prefix: "logs".into(),
            account_name: "devstoreaccount1".into(),
            shared_key: "Eby8+/=".into(),
            storage_class: "Cool".into(),
            ..Default::default()
        };
        assert_eq!(message(&url), Backend::AzureBlobStorage(expected));
    }
}

#[test]
fn a_place_reads_back_from_its_uri_and_opens() {
    for url in [
        "s3://bkt/logs/a b%25?endpoint=http://127.0.0.1:9000",
        "s3://bkt",
        "azure://cont/x?endpoint=http://127.0.0.1:1/acc",
        "gcs://gb",
    ] {
        let location = Location::parse(url).unwrap();
        let again = Location::parse(&location.uri()).unwrap();
        assert_eq!(again, location, "{url}");
        let backend = location.to_backend().unwrap();
        assert_eq!(Location::from_backend(&backend).unwrap(), location);
    }
    let storage = open_url("s3://bkt/logs?access-key=a&secret-access-key=b").unwrap();
    assert_eq!(storage.uri(), "s3://bkt/logs");
    let azure = "azure://cont/logs?account-name=acc&account-key=YWJjZA==";
    assert_eq!(open_url(azure).unwrap().uri(), "azure://cont/logs");
}

#[test]
fn unknown_options_are_refused_and_the_nearest_one_named() {
    for (url, nearest) in [
        ("s3://b?see=AES256", "sse"),
        ("s3://b?secret-acces-key=canary42", "secret-access-key"),
        ("s3://b?region=x&endpiont=http://h", "endpoint"),
        ("gcs://b?credential-file=/x", "credentials-file"),
        ("azure://b?acount-key=x", "account-key"),
    ] {
        let text = refusal(url);
        assert!(text.contains(&format!("did you mean {nearest}?")), "{text}");
        assert!(!text.contains("canary42"), "{text}");
    }
    assert!(refusal("s3://b?x/unescaped&more-of-a-long-secret=1").contains("known ones are"));
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    for (url, word) in [
        ("s3://", "bucket"),
        ("s3://user:pw@bkt/x", "credentials are options"),
        ("s3://b/a//b", "prefix"),
        ("s3://b/a/../b", "prefix"),
        ("s3://b/x#y", "%23"),
        ("s3://b?access-key=a", "together"),
        ("s3://b?session-token=a", "session-token needs"),
        ("s3://b?role-arn=arn:aws:iam::1:role/x", "assumes no role"),
        ("s3://b?acl=public-read", "acl"),
        ("s3://b?sse=rot13", "sse is"),
        ("s3://b?sse-kms-key-id=k", "needs sse"),
        ("s3://b?force-path-style=maybe", "true or false"),
        ("s3://b?region=a&region=b", "twice"),
        ("s3://b?endpoint=127.0.0.1:9000", "endpoint"),
        ("s3://b?endpoint=http://u:p@h", "endpoint"),
        (
            "s3://b?use-accelerate-endpoint=true",
            "use-accelerate-endpoint",
        ),
        ("gcs://b?predefined-acl=publicRead", "predefined-acl"),
        ("gcs://b?credentials-file=/not/there", "credentials-file"),
        ("azure://b?account-key=x", "account-name"),
        ("azure://b?encryption-scope=x", "encryption-scope"),
        ("azure://b?encryption-key=canary42", "encryption-key"),
    ] {
        let text = refusal(url);
        assert!(text.contains(word), "{url}: {text}");
        assert!(!text.contains("canary42"), "{text}");
    }
    let wrong_key = "azure://c?account-name=acc&account-key=no*base64*canary42";
    let error = open_url(wrong_key).err().unwrap();
    assert_eq!(error.kind, StorageErrorKind::InvalidConfig);
    assert!(
        !format!("{error} {error:?}").contains("canary42"),
        "{error}"
    );
}

/// Everything the crate says of a place, from the message to the errors of opening it.
fn all_words(backend: Backend) -> String {
    let backend = StorageBackend {
        backend: Some(backend),
    };
    match Location::from_backend(&backend) {
        Err(error) => format!("{error} {error:?}"),
        Ok(location) => {
            let opened = match location.open(&Default::default()) {
                Ok(storage) => storage.uri(),
                Err(error) => format!("{error} {error:?}"),
            };
            format!("{location:?} {} {opened}", location.uri())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_secret_of_a_message_survives_in_any_word(
        secret in "[A-Za-z0-9+/=:&?@ ]{0,6}CANARY[A-Za-z0-9+/=&?]{4,12}",
        place in 0..7usize,
        other in prop::sample::select(vec!["", "aws:kms", "x", "http://h", "a/b"]),
    ) {
        let secret = secret.as_str();
        let text = String::from(secret);
        let mut s3 = S3 { bucket: "b".into(), prefix: other.into(), sse: other.into(), ..Default::default() };
        let mut azure = AzureBlobStorage { bucket: "b".into(), account_name: other.into(), ..Default::default() };
        let words = match place {
            0 => { s3.access_key = text; all_words(Backend::S3(s3)) }
            1 => { s3.access_key = "k".into(); s3.secret_access_key = text; all_words(Backend::S3(s3)) }
            2 => { s3.session_token = text; all_words(Backend::S3(s3)) }
            3 => all_words(Backend::Gcs(Gcs { bucket: "b".into(), credentials_blob: text, ..Default::default() })),
            4 => { azure.shared_key = text; all_words(Backend::AzureBlobStorage(azure)) }
            5 => { azure.access_sig = text; all_words(Backend::AzureBlobStorage(azure)) }
            _ => {
                azure.encryption_key = Some(AzureCustomerKey { encryption_key: text, ..Default::default() });
                all_words(Backend::AzureBlobStorage(azure))
            }
        };
        prop_assert!(!words.contains("CANARY"), "{words}");
    }

    #[test]
    fn no_secret_of_a_url_survives_in_any_word(
        secret in "CANARY[A-Za-z0-9%+/=&?#@ ]{0,12}",
        scheme in prop::sample::select(vec!["s3", "gcs", "azure", "azblob", "hdfs", "http"]),
        key in prop::sample::select(vec!["access-key", "secret_access_key", "Session-Token", "sas-token", "account-key", "acount-key", "", "encryption-key"]),
        before in prop::sample::select(vec!["", "region=x&", "access-key=k&", "account-name=n&"]),
    ) {
        let url = format!("{scheme}://b/p?{before}{key}={secret}");
        let words = match Location::parse(&url) {
            Ok(location) => match location.open(&Default::default()) {
                Ok(storage) => format!("{location:?} {}", storage.uri()),
                Err(error) => format!("{location:?} {error} {error:?}"),
            },
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!words.contains("CANARY"), "{words}");
        prop_assert!(!redact_url(&url).contains("CANARY"));
    }

    #[test]
    fn no_secret_survives_in_the_words_of_a_client(
        secret in "[A-Za-z0-9+/=& ]{12,40}",
        style in 0..4usize,
    ) {
        let quoted = match style {
            0 => secret.clone(),
            1 => percent_encoding::utf8_percent_encode(&secret, percent_encoding::NON_ALPHANUMERIC).to_string(),
            2 => format!("https://u:{secret}@host/p"),
            _ => format!("<Key>{secret}</Key>"),
        };
        let text = scrub(&format!("failed: {quoted} at 3"), &[Secret::new(secret.clone())]);
        prop_assert!(!text.contains(&secret), "{text}");
        prop_assert!(!text.contains(&quoted), "{text}");
        let signed = scrub("GET https://h/b/k?X-Amz-Signature=abc&x=1 failed", &[]);
        prop_assert_eq!(signed, "GET https://h/b/k failed");
    }
}
