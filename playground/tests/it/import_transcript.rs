//! `ImportSST` against the calls of a real TiKV: what is served answers the same; damage that
//! the real server takes in silence is refused here.

use std::collections::HashMap;

use bytes::Bytes;
use pitr_proto::backup::FileType;
use pitr_proto::import_sstpb::import_sst_client::ImportSstClient;
use pitr_proto::import_sstpb::upload_request::Chunk;
use pitr_proto::import_sstpb::{
    ApplyRequest, DownloadResponse, KvMeta, MultiIngestRequest, RewriteRule, SstMeta, UploadRequest,
};
use prost::Message;
use prost_reflect::DynamicMessage;
use tonic::Code;

use super::archive_data::{scan, slices, time};
use super::raw;
use super::system::{SELDOM, System, decode};
use super::transcript::{
    Call, Translation, comparable, expected, golden, load, message, method, parse,
};

/// What is asserted of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Equal to the recorded one, free text aside, whose pieces these are.
    Same(&'static [&'static str]),
    /// The real server accepts it and loses or damages data.
    Refused(&'static [&'static str]),
    /// TiKV has no handler for it either.
    Unimplemented,
}

/// The recording keeps this much of a request.
const CUT_AT: usize = 3000;
const ABSENT: &str = "absent.log";
const OBJECT: &str = "470630701673742338-595b39ff-8270-4882-8f5a-78e0ff01ed5a.log";

fn wanted(step: &str) -> Wanted {
    match step {
        "error: object missing" => Wanted::Same(&["Cannot read", ABSENT]),
        "error: sha256 differs" | "error: range beyond the object" | "error: length differs" => {
            Wanted::Same(&["Cannot read", OBJECT])
        }
        "error: compression lz4" => Wanted::Same(&["compression"]),
        "error: epoch not match" | "error: region not found" => {
            Wanted::Same(&["failed to complete raft command"])
        }
        "error: ClearFiles without a prefix" => Wanted::Same(&["failed to remove directory"]),
        "odd: two metas, one rule" | "odd: unknown cf" => Wanted::Refused(&[]),
        "cached: sha256 differs" | "cached: length differs" => Wanted::Refused(&[OBJECT]),
        "cached: compression lz4" => Wanted::Refused(&["compression"]),
        "GetMode" => Wanted::Unimplemented,
        "error: download of a missing object" => Wanted::Same(&["Cannot read", "absent_write.sst"]),
        _ => Wanted::Same(&[]),
    }
}

struct Scene {
    system: System,
    translation: Translation,
}

impl Scene {
    async fn new() -> Scene {
        let system = System::start(SELDOM).await;
        let translation = Translation::prepare(&system).await.keep_times();
        Scene {
            system,
            translation,
        }
    }

    /// Sends a call; `Err` describes how the answer differs.
    async fn step(&self, call: &Call) -> Result<(), String> {
        let wanted = wanted(&call.step);
        let method = method("import_sstpb.ImportSST", &call.rpc);
        let path = format!("/import_sstpb.ImportSST/{}", call.rpc);
        let request = method.as_ref().map(|m| {
            let mut request = parse(&m.input(), &request_text(call));
            self.translation.apply(&mut request);
            Bytes::from(request.encode_to_vec())
        });
        let request = request.unwrap_or_default();
        let answer = raw::unary(&self.system.store_channel, &path, request).await;
        let place = format!("{} ({})", call.step, call.rpc);
        let answer = match (answer, wanted) {
            (Err(status), Wanted::Unimplemented) if status.code() == Code::Unimplemented => {
                return Ok(());
            }
            (Err(status), _) => return Err(format!("{place}: {status}")),
            (Ok(_), Wanted::Unimplemented) => return Err(format!("{place}: served")),
            (Ok(answer), _) => answer,
        };
        let output = method.expect("served").output();
        let text = message_text(&output, answer.clone());
        let actual = comparable(&output, without_checksum(&call.rpc, answer));
        let pieces = match wanted {
            Wanted::Same(pieces) => {
                let expected = expected(&self.translation, &output, &call.answer);
                if expected != actual {
                    return Err(format!(
                        "{place}:\n  expected {expected}\n  actual   {actual} {text}"
                    ));
                }
                pieces
            }
            Wanted::Refused(pieces) if actual.starts_with("error") => pieces,
            Wanted::Refused(_) => return Err(format!("{place}: accepted: {actual}")),
            Wanted::Unimplemented => unreachable!("answered above"),
        };
        for piece in pieces {
            if !text.contains(piece) {
                return Err(format!("{place}: {text:?} does not say {piece:?}"));
            }
        }
        Ok(())
    }
}

/// The request of a call in text, with our archive; what the recording cut off is put back.
fn request_text(call: &Call) -> String {
    let quoted = |name| {
        let path = golden(name);
        format!("{:?}", path.to_str().expect("a path in UTF-8"))
    };
    let archive = quoted("log-basic/archive");
    if call.request.len() < CUT_AT {
        let request = call.request.replace("\"ARCHIVE\"", &archive);
        return request.replace("\"SNAPSHOT\"", &quoted("txn-snapshot/archive"));
    }
    assert_eq!(call.step, "apply region 2 cf write (9 slices)");
    let complete = &call.request[..call.request.rfind(" metas {").expect("several metas")];
    let apply = message("import_sstpb.ApplyRequest");
    let known = parse(&apply, complete).encode_to_vec();
    let mut request = ApplyRequest::decode(known.as_slice()).expect("decodes");
    let first = request.metas[0].clone();
    let all = slices("log-basic", 8, "write")
        .into_iter()
        .map(|(name, info)| KvMeta {
            name,
            is_delete: info.r#type() == FileType::Delete,
            length: info.length,
            sha256: info.sha256,
            range_offset: info.range_offset,
            range_length: info.range_length,
            ..first.clone()
        });
    let all: Vec<KvMeta> = all.collect();
    assert_eq!(all.len(), 9);
    assert_eq!(request.metas[..], all[..request.metas.len()]);
    request.rewrite_rules = vec![RewriteRule::default(); all.len()];
    request.metas = all;
    let request = DynamicMessage::decode(apply, request.encode_to_vec().as_slice());
    request
        .expect("decodes")
        .to_text_format()
        .replace("\"ARCHIVE\"", &archive)
}

/// TiKV leaves crc32 and length of a downloaded file at 0.
fn without_checksum(rpc: &str, answer: Bytes) -> Bytes {
    if rpc != "Download" {
        return answer;
    }
    let downloaded = DownloadResponse::decode(answer).expect("decodes");
    let bare = DownloadResponse {
        crc32: 0,
        length: 0,
        ..downloaded
    };
    bare.encode_to_vec().into()
}

/// `error.message` of an answer.
fn message_text(output: &prost_reflect::MessageDescriptor, answer: Bytes) -> String {
    let answer = DynamicMessage::decode(output.clone(), answer).expect("decodes");
    let Some(error) = answer.get_field_by_name("error") else {
        return String::new();
    };
    let Some(error) = error.as_message() else {
        return String::new();
    };
    let text = error
        .get_field_by_name("message")
        .and_then(|m| m.as_str().map(str::to_owned));
    text.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_applied_as_tikv_applies_it_and_nothing_damaged_is() {
    let scene = Scene::new().await;
    let calls: Vec<Call> = load("import-transcript.json");
    let mid = time("log-basic", "mid_ts");
    let mut differences = Vec::new();
    for call in calls
        .iter()
        .filter(|c| !c.rpc.is_empty() && c.rpc != "MultiIngest")
    {
        if call.step.starts_with("apply region 0 cf default") {
            let left = scene.system.scan_all(mid).await;
            assert!(left.is_empty(), "a refused call wrote {} keys", left.len());
        }
        if call.step.starts_with("cached: sha256") {
            let found = scene.system.scan_all(mid).await;
            assert_eq!(found.len(), 648, "{}", differences.join("\n"));
            assert_eq!(found, scan("log-basic/scan-mid.tsv.gz"));
        }
        if let Err(difference) = scene.step(call).await {
            differences.push(difference);
        }
    }
    let found = scene.system.scan_all(mid).await;
    assert_eq!(
        found,
        scan("log-basic/scan-mid.tsv.gz"),
        "nothing after it changed the store"
    );
    assert!(
        differences.is_empty(),
        "{} differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
    scene.system.stop().await;
}

/// The two files of a real snapshot that the recording downloads, by column family.
fn snapshot_files() -> HashMap<&'static str, Bytes> {
    let folder = golden("txn-snapshot/archive/1");
    let stem =
        "18_7_f0887003a92c9b385e979bf4db40a54aad951fc8ba2683bd5acddc7c1f4ec5e1_1795313719656";
    ["default", "write"]
        .into_iter()
        .map(|cf| {
            (
                cf,
                std::fs::read(folder.join(format!("{stem}_{cf}.sst")))
                    .expect(cf)
                    .into(),
            )
        })
        .collect()
}

impl Scene {
    fn ingest_request(&self, call: &Call) -> MultiIngestRequest {
        let mut request = parse(&message("import_sstpb.MultiIngestRequest"), &call.request);
        self.translation.apply(&mut request);
        MultiIngestRequest::decode(request.encode_to_vec().as_slice()).expect("decodes")
    }

    /// Uploads a file in two chunks.
    async fn upload(&self, meta: SstMeta, data: &Bytes) -> Result<(), tonic::Status> {
        let half = data.len() / 2;
        let chunks = [
            Chunk::Meta(meta),
            Chunk::Data(data.slice(..half)),
            Chunk::Data(data.slice(half..)),
        ];
        upload(&self.system, chunks.into()).await
    }
}

/// Sends chunks as they are.
pub async fn upload(system: &System, chunks: Vec<Chunk>) -> Result<(), tonic::Status> {
    let mut client = ImportSstClient::new(system.store_channel.clone());
    let messages = chunks.into_iter().map(|c| UploadRequest { chunk: Some(c) });
    client
        .upload(futures::stream::iter(messages))
        .await
        .map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_real_snapshot_are_ingested_once() {
    let scene = Scene::new().await;
    let calls: Vec<Call> = load("import-transcript.json");
    let call = |step: &str| calls.iter().find(|c| c.step == step).expect(step);
    scene
        .step(call("odd: empty MultiIngest (capability probe)"))
        .await
        .unwrap();
    let request = scene.ingest_request(call("multi ingest"));
    let files = snapshot_files();
    for meta in &request.ssts {
        let data = &files[meta.cf_name.as_str()];
        let meta = SstMeta {
            crc32: crc32fast::hash(data),
            length: u64::try_from(data.len()).unwrap(),
            ..meta.clone()
        };
        scene.upload(meta.clone(), data).await.unwrap();
        let again = scene.upload(meta, data).await.unwrap_err();
        assert_eq!(again.code(), Code::Unknown, "FileExists: {again}");
    }
    scene.step(call("multi ingest, stale epoch")).await.unwrap();
    scene.step(call("multi ingest")).await.unwrap();
    scene
        .step(call("multi ingest again (files consumed)"))
        .await
        .unwrap();
    let range = |meta: &SstMeta| {
        let range = meta.range.clone().expect("range");
        let user = |k: &Bytes| decode(&k[..k.len() - 8]);
        (user(&range.start), user(&range.end))
    };
    let write = request
        .ssts
        .iter()
        .find(|s| s.cf_name == "write")
        .expect("write");
    let (first, last) = range(write);
    let expected: Vec<_> = scan("txn-snapshot/scan.tsv.gz")
        .into_iter()
        .filter(|(key, _)| first <= *key && *key <= last)
        .collect();
    assert!(!expected.is_empty());
    let found = scene.system.scan_all(time("log-splits", "end_ts")).await;
    assert_eq!(found, expected);
    scene.system.stop().await;
}
