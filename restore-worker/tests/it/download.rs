//! Downloads over a socket, as far as the recorded calls and the foreign client do not go.

use pitr_format::Cf;
use pitr_proto::backup;
use pitr_proto::import_sstpb::{
    DownloadRequest, DownloadResponse, Range, RewriteRule, SetDownloadSpeedLimitRequest, SstMeta,
};
use pitr_restore_worker::service::ImportLimits;

use super::service::{EPOCH, Server, context, serve};
use super::synthetic;

fn meta(uuid: u8, cf: Cf) -> SstMeta {
    SstMeta {
        uuid: vec![uuid; 16].into(),
        cf_name: cf.as_str().to_owned(),
        region_id: 4,
        region_epoch: Some(EPOCH),
        ..SstMeta::default()
    }
}

/// A storage below the server's directory with one table per list of write records.
fn objects(server: &Server, tables: &[(&str, Vec<pitr_format::KvRecord>)]) {
    let storage = server.dir.path().join("storage");
    std::fs::create_dir_all(&storage).unwrap();
    for (name, records) in tables {
        let (_, bytes) = server.sst(Cf::Write, records);
        std::fs::write(storage.join(name), bytes).unwrap();
    }
}

fn request(server: &Server, name: &str, sst: SstMeta) -> DownloadRequest {
    let path = server.dir.path().join("storage").display().to_string();
    DownloadRequest {
        sst: Some(sst),
        name: name.to_owned(),
        storage_backend: Some(backup::StorageBackend {
            backend: Some(backup::storage_backend::Backend::Local(backup::Local {
                path,
            })),
        }),
        ..DownloadRequest::default()
    }
}

async fn download(server: &Server, request: DownloadRequest) -> DownloadResponse {
    let mut client = server.client.clone();
    client.download(request).await.unwrap().into_inner()
}

fn message(answer: DownloadResponse) -> String {
    answer.error.map(|e| e.message).unwrap_or_default()
}

#[tokio::test]
async fn a_file_is_only_taken_for_a_region_that_is_here_and_a_form_that_is_known() {
    let server = serve(ImportLimits::default()).await;
    objects(&server, &[("a", vec![synthetic::short(b"a", 20, 30, "v")])]);
    let elsewhere = SstMeta {
        region_id: 9,
        ..meta(1, Cf::Write)
    };
    let answer = download(&server, request(&server, "a", elsewhere)).await;
    assert!(message(answer).starts_with("region 9 not found"));
    let unknown = DownloadRequest {
        request_type: 9,
        ..request(&server, "a", meta(1, Cf::Write))
    };
    assert!(message(download(&server, unknown).await).contains("unknown request type"));
    let nowhere = DownloadRequest {
        storage_backend: Some(backup::StorageBackend::default()),
        ..request(&server, "a", meta(1, Cf::Write))
    };
    assert!(message(download(&server, nowhere).await).contains("no storage backend"));
    assert_eq!(server.import_files(), 0);
}

#[tokio::test]
async fn nothing_left_after_the_filter_is_an_empty_answer_and_no_file() {
    let server = serve(ImportLimits::default()).await;
    objects(&server, &[("a", vec![synthetic::short(b"a", 20, 30, "v")])]);
    let rule = |ignore_after_timestamp| RewriteRule {
        ignore_after_timestamp,
        ..RewriteRule::default()
    };
    let mut none = request(&server, "a", meta(1, Cf::Write));
    none.rewrite_rule = Some(rule(29));
    let answer = download(&server, none.clone()).await;
    assert!(answer.is_empty && answer.error.is_none(), "{answer:?}");
    assert_eq!(server.import_files(), 0);
    none.rewrite_rule = Some(rule(30));
    let answer = download(&server, none).await;
    assert!(!answer.is_empty && answer.range.is_some(), "{answer:?}");
    assert!(answer.length > 0 && answer.crc32 > 0);
    assert_eq!(server.import_files(), 2, "the file and its record");
}

#[tokio::test]
async fn equal_records_of_a_batch_are_taken_once_and_different_ones_are_damage() {
    let mut server = serve(ImportLimits::default()).await;
    let record = |key: &[u8], value| synthetic::short(key, 20, 30, value);
    objects(
        &server,
        &[
            ("1", vec![record(b"a", "v"), record(b"b", "v")]),
            ("2", vec![record(b"b", "v"), record(b"c", "v")]),
            ("3", vec![record(b"b", "w")]),
        ],
    );
    let batch = |uuid, names: &[&str]| {
        let mut batch = request(&server, "", meta(uuid, Cf::Write));
        for name in names {
            batch.ssts.insert((*name).to_owned(), meta(uuid, Cf::Write));
        }
        batch
    };
    let (good, bad) = (batch(1, &["1", "2"]), batch(2, &["1", "3"]));
    let mut client = server.client.clone();
    let answer = client.batch_download(good).await.unwrap().into_inner();
    assert_eq!(answer.error, None);
    let file = SstMeta {
        range: answer.range,
        ..meta(1, Cf::Write)
    };
    assert_eq!(server.ingest(context(), vec![file]).await, None);
    assert_eq!(server.scan(30).len(), 3);
    let answer = client.batch_download(bad).await.unwrap().into_inner();
    assert!(message(answer).contains("has another value in"));
    assert_eq!(server.import_files(), 0);
}

#[tokio::test]
async fn two_downloads_of_one_object_at_once_do_not_disturb_each_other() {
    let server = serve(ImportLimits::default()).await;
    let keys: Vec<_> = (0..2_000u32)
        .map(|i| synthetic::short(&i.to_be_bytes(), 20, 30, "value"))
        .collect();
    objects(&server, &[("a", keys)]);
    let size = server
        .dir
        .path()
        .join("storage/a")
        .metadata()
        .unwrap()
        .len();
    let limit = SetDownloadSpeedLimitRequest {
        speed_limit: size * 4,
        ..Default::default()
    };
    let mut client = server.client.clone();
    client.set_download_speed_limit(limit).await.unwrap();
    let part = |uuid, start: u32, end: u32| {
        let bound = |i: u32| pitr_format::EncodedKey::encode(&i.to_be_bytes()).into_bytes();
        let sst = SstMeta {
            range: Some(Range {
                start: bound(start),
                end: bound(end),
            }),
            end_key_exclusive: true,
            length: size,
            ..meta(uuid, Cf::Write)
        };
        request(&server, "a", sst)
    };
    let (one, two) = tokio::join!(
        download(&server, part(1, 0, 1_000)),
        download(&server, part(2, 1_000, 3_000)),
    );
    for answer in [&one, &two] {
        assert_eq!(answer.error, None);
    }
    let (one, two) = (one.range.unwrap(), two.range.unwrap());
    assert!(one.end < two.start, "each took its half");
    assert_eq!(server.import_files(), 4, "two files and their records");
}
