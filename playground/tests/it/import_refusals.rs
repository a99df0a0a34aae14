//! What `ImportSST` refuses besides the recorded cases (restore 1.6, 1.9, 1.10).

use pitr_proto::import_sstpb::import_sst_client::ImportSstClient;
use pitr_proto::import_sstpb::upload_request::Chunk;
use pitr_proto::import_sstpb::{ClearRequest, MultiIngestRequest, Range, SstMeta};
use tonic::Code;

use super::import_transcript::upload;
use super::system::{SELDOM, System, context, encode};

fn meta(system_region: &pitr_proto::metapb::Region, uuid: u8, data: &[u8]) -> SstMeta {
    SstMeta {
        uuid: vec![uuid; 16].into(),
        range: Some(Range {
            start: encode(b"a"),
            end: encode(b"b"),
        }),
        crc32: crc32fast::hash(data),
        length: u64::try_from(data.len()).unwrap(),
        cf_name: "write".to_owned(),
        region_id: system_region.id,
        region_epoch: system_region.region_epoch,
        ..SstMeta::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_a_meta_then_chunks_with_the_announced_checksum() {
    let system = System::start(SELDOM).await;
    let region = system.regions().await.remove(0);
    let data =
        bytes::Bytes::from_static(b"not a table, which nobody looks at before it is ingested");
    let refused = [
        ("data before the meta", vec![Chunk::Data(data.clone())]),
        (
            "an empty chunk",
            vec![
                Chunk::Meta(meta(&region, 1, &data)),
                Chunk::Data(data.clone()),
                Chunk::Data("".into()),
            ],
        ),
        (
            "a second meta",
            vec![
                Chunk::Meta(meta(&region, 2, &data)),
                Chunk::Meta(meta(&region, 2, &data)),
            ],
        ),
        (
            "another checksum",
            vec![
                Chunk::Meta(SstMeta {
                    crc32: 1,
                    ..meta(&region, 3, &data)
                }),
                Chunk::Data(data.clone()),
            ],
        ),
    ];
    for (what, chunks) in refused {
        let status = upload(&system, chunks).await.expect_err(what);
        assert_eq!(status.code(), Code::Unknown, "{what}: {status}");
    }
    // A refused upload leaves nothing in the way of the right one.
    let chunks = vec![Chunk::Meta(meta(&region, 3, &data)), Chunk::Data(data)];
    let again = upload(&system, chunks).await;
    assert!(again.is_ok(), "{again:?}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_names_the_region_error_before_it_looks_for_files() {
    let system = System::start(SELDOM).await;
    let region = system.regions().await.remove(0);
    let mut client = ImportSstClient::new(system.store_channel.clone());
    let mut request = MultiIngestRequest {
        context: Some(context(&region)),
        ssts: vec![meta(&region, 7, b"absent")],
    };
    let missing = client
        .multi_ingest(request.clone())
        .await
        .unwrap()
        .into_inner()
        .error
        .unwrap();
    assert!(missing.stale_command.is_some(), "{missing:?}");
    request.context.as_mut().unwrap().region_id += 1_000_000;
    let lost = client
        .multi_ingest(request.clone())
        .await
        .unwrap()
        .into_inner()
        .error
        .unwrap();
    assert!(lost.region_not_found.is_some(), "{lost:?}");
    system.split(&[b"k"]).await;
    request.context.as_mut().unwrap().region_id = region.id;
    let stale = client
        .multi_ingest(request)
        .await
        .unwrap()
        .into_inner()
        .error
        .unwrap();
    let current = stale
        .epoch_not_match
        .expect("epoch not match")
        .current_regions;
    assert!(current.iter().any(|r| r.id == region.id));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_files_stays_inside_its_directory() {
    let system = System::start(SELDOM).await;
    let mut client = ImportSstClient::new(system.store_channel.clone());
    for prefix in ["", ".", "/", "..", "v1/../..", "/tmp"] {
        let request = ClearRequest {
            prefix: prefix.to_owned(),
        };
        let answer = client.clear_files(request).await.unwrap().into_inner();
        assert!(answer.error.is_some(), "{prefix:?}");
    }
    for prefix in ["v1", "v1/deep/absent"] {
        let request = ClearRequest {
            prefix: prefix.to_owned(),
        };
        let answer = client.clear_files(request).await.unwrap().into_inner();
        assert_eq!(answer.error, None, "{prefix:?}");
    }
    system.stop().await;
}
