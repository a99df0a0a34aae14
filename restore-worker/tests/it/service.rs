//! The import service over a socket: files and slices into an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_env::SystemRandom;
use pitr_format::{Cf, EncodedKey, Ts};
use pitr_proto::import_sstpb::import_sst_client::ImportSstClient;
use pitr_proto::import_sstpb::upload_request::Chunk;
use pitr_proto::import_sstpb::{
    ApplyRequest, ApplyResponse, ClearRequest, KvMeta, MultiIngestRequest, RewriteRule, SstMeta,
    UploadRequest,
};
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::{Peer, Region, RegionEpoch};
use pitr_proto::{backup, errorpb};
use pitr_restore_worker::Env;
use pitr_restore_worker::browse::visible_at;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::service::{ImportHost, ImportLimits, ImportService, RegionError};
use pitr_restore_worker::sst::rocks::RocksSstFactory;
use pitr_restore_worker::sst::{SstFactory, SstFile, SstWriter, Tables};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::golden::{Golden, Pairs};
use super::synthetic;

pub const EPOCH: RegionEpoch = RegionEpoch {
    conf_ver: 1,
    version: 5,
};

/// A store with one region.
struct Host {
    engine: Arc<RocksEngine>,
    region: Region,
    lock: Mutex<()>,
    ingests: AtomicU64,
    modes: Mutex<Vec<bool>>,
}

impl ImportHost for Host {
    type Engine = RocksEngine;

    fn store_id(&self) -> u64 {
        1
    }

    fn engine(&self) -> Arc<RocksEngine> {
        Arc::clone(&self.engine)
    }

    fn region(&self, context: &Context) -> Result<Region, RegionError> {
        if context.region_id != self.region.id {
            return Err(Box::new(errorpb::Error {
                region_not_found: Some(errorpb::RegionNotFound {
                    region_id: context.region_id,
                }),
                ..Default::default()
            }));
        }
        if context.region_epoch != self.region.region_epoch {
            let current_regions = vec![self.region.clone()];
            return Err(Box::new(errorpb::Error {
                epoch_not_match: Some(errorpb::EpochNotMatch { current_regions }),
                ..Default::default()
            }));
        }
        Ok(self.region.clone())
    }

    fn region_epoch(&self, region_id: u64) -> Option<RegionEpoch> {
        (region_id == self.region.id).then_some(EPOCH)
    }

    fn tables(&self) -> Tables {
        Tables::rocks()
    }

    fn import_mode(&self, import: bool) {
        self.modes.lock().push(import);
    }

    fn change<R>(
        &self,
        context: &Context,
        change: impl FnOnce(&Region) -> R,
    ) -> Result<R, RegionError> {
        let _guard = self.lock.lock();
        Ok(change(&self.region(context)?))
    }

    fn ingested(&self, _: u64) {
        self.ingests.fetch_add(1, SeqCst);
    }
}

pub struct Server {
    pub dir: TempDir,
    host: Arc<Host>,
    pub client: ImportSstClient<Channel>,
}

pub async fn serve(limits: ImportLimits) -> Server {
    serve_with(limits, MemoryBudget::new(512 << 20)).await
}

async fn serve_with(limits: ImportLimits, budget: Arc<MemoryBudget>) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let region = Region {
        id: 4,
        start_key: Bytes::new(),
        end_key: EncodedKey::encode(b"zzz").into_bytes(),
        region_epoch: Some(EPOCH),
        peers: vec![Peer {
            id: 5,
            store_id: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    let host = Arc::new(Host {
        engine: Arc::new(RocksEngine::open(&dir.path().join("db")).unwrap()),
        region,
        lock: Mutex::new(()),
        ingests: AtomicU64::new(0),
        modes: Mutex::default(),
    });
    let import = dir.path().join("import");
    let service =
        ImportService::new(Arc::clone(&host), &import, limits, Env::system(budget)).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service.into_server());
    tokio::spawn(server.serve_with_incoming(incoming));
    let client = ImportSstClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    Server { dir, host, client }
}

pub fn context() -> Context {
    Context {
        region_id: 4,
        region_epoch: Some(EPOCH),
        peer: Some(Peer {
            id: 5,
            store_id: 1,
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Server {
    pub fn sst(&self, cf: Cf, records: &[pitr_format::KvRecord]) -> (SstFile, Bytes) {
        let factory: Box<dyn SstFactory> = Box::new(RocksSstFactory::default());
        let mut writer =
            SstWriter::create(factory.as_ref(), &SystemRandom, self.dir.path(), cf).unwrap();
        for record in records {
            writer.put(&record.key, &record.value).unwrap();
        }
        let file = writer.finish().unwrap();
        let content = std::fs::read(&file.path).unwrap().into();
        (file, content)
    }

    async fn upload(&mut self, meta: &SstMeta, content: &[u8]) -> Result<(), String> {
        let mut messages = vec![UploadRequest {
            chunk: Some(Chunk::Meta(meta.clone())),
        }];
        for data in content.chunks(100) {
            let data = Bytes::copy_from_slice(data);
            messages.push(UploadRequest {
                chunk: Some(Chunk::Data(data)),
            });
        }
        self.send(messages).await
    }

    async fn send(&mut self, messages: Vec<UploadRequest>) -> Result<(), String> {
        let sent = self.client.upload(tokio_stream::iter(messages)).await;
        sent.map(drop).map_err(|status| {
            assert_eq!(status.code(), tonic::Code::Unknown);
            status.message().to_owned()
        })
    }

    pub async fn ingest(&mut self, context: Context, ssts: Vec<SstMeta>) -> Option<errorpb::Error> {
        let request = MultiIngestRequest {
            context: Some(context),
            ssts,
        };
        self.client
            .multi_ingest(request)
            .await
            .unwrap()
            .into_inner()
            .error
    }

    async fn apply(&mut self, request: ApplyRequest) -> ApplyResponse {
        self.client.apply(request).await.unwrap().into_inner()
    }

    pub fn scan(&self, ts: u64) -> Pairs {
        visible_at(self.host.engine.as_ref(), Ts::new(ts))
            .map(Result::unwrap)
            .collect()
    }

    pub fn import_files(&self) -> usize {
        let files = |dir: &str| std::fs::read_dir(self.dir.path().join(dir)).unwrap();
        // Two of them are the directories for what is in the making.
        files("import").count() - 2
            + files("import/.temp").count()
            + files("import/.partial").count()
    }
}

#[tokio::test]
async fn uploaded_files_are_ingested_once_and_then_are_stale() {
    let mut server = serve(ImportLimits::default()).await;
    let (value, value_bytes) = server.sst(Cf::Default, &[synthetic::value(b"a", 20, "long value")]);
    let (write, write_bytes) = server.sst(Cf::Write, &[synthetic::long(b"a", 20, 30)]);
    let metas = vec![
        write.upload_meta(&write_bytes, 4, EPOCH),
        value.upload_meta(&value_bytes, 4, EPOCH),
    ];
    server.upload(&metas[0], &write_bytes).await.unwrap();
    let early = server.ingest(context(), metas.clone()).await.unwrap();
    assert!(
        early.stale_command.is_some(),
        "one file is not there: nothing is ingested"
    );
    assert!(server.scan(u64::MAX).is_empty());
    server.upload(&metas[1], &value_bytes).await.unwrap();
    assert_eq!(server.ingest(context(), metas.clone()).await, None);
    assert_eq!(
        server.scan(30),
        [(b"a".to_vec(), b"long value".to_vec())].into()
    );
    let again = server.ingest(context(), metas).await.unwrap();
    assert!(again.stale_command.is_some());
    assert_eq!(
        again.message,
        "The file which would be ingested doest not exist."
    );
    assert_eq!(
        (server.host.ingests.load(SeqCst), server.import_files()),
        (1, 0)
    );
}

#[tokio::test]
async fn an_upload_that_is_damaged_repeated_or_out_of_order_leaves_no_file() {
    let mut server = serve(ImportLimits::default()).await;
    let (file, bytes) = server.sst(Cf::Write, &[synthetic::short(b"a", 20, 30, "v")]);
    let meta = file.upload_meta(&bytes, 4, EPOCH);
    let error = server.upload(&meta, &bytes[1..]).await.unwrap_err();
    assert!(error.starts_with("FileCorrupted"), "{error}");
    let data = |data: &'static [u8]| UploadRequest {
        chunk: Some(Chunk::Data(Bytes::from(data))),
    };
    let begin = || UploadRequest {
        chunk: Some(Chunk::Meta(meta.clone())),
    };
    for messages in [
        vec![],
        vec![data(b"x")],
        vec![begin(), data(b"")],
        vec![begin(), begin()],
        vec![begin(), UploadRequest { chunk: None }],
    ] {
        assert_eq!(server.send(messages).await.unwrap_err(), "InvalidChunk");
    }
    let bad = SstMeta {
        uuid: Bytes::from("short"),
        ..meta.clone()
    };
    assert!(
        server
            .upload(&bad, &bytes)
            .await
            .unwrap_err()
            .starts_with("Invalid SST path")
    );
    assert_eq!(server.import_files(), 0);
    server.upload(&meta, &bytes).await.unwrap();
    let error = server.upload(&meta, &bytes).await.unwrap_err();
    assert!(error.starts_with("FileExists"), "{error}");
}

#[tokio::test]
async fn ingest_checks_store_then_region_then_each_file() {
    let mut server = serve(ImportLimits::default()).await;
    let empty = server.ingest(Context::default(), vec![]).await.unwrap();
    assert_eq!(empty.message, "to store id 0, mine 1");
    assert_eq!(empty.store_not_match.unwrap().actual_store_id, 1);
    let unknown = Context {
        region_id: 9,
        ..context()
    };
    assert!(
        server
            .ingest(unknown, vec![])
            .await
            .unwrap()
            .region_not_found
            .is_some()
    );

    let (file, bytes) = server.sst(Cf::Write, &[synthetic::short(b"b", 20, 30, "v")]);
    let not_there = file.upload_meta(&bytes, 4, EPOCH);
    let split_since = Context {
        region_epoch: Some(RegionEpoch::default()),
        ..context()
    };
    let error = server.ingest(split_since, vec![not_there]).await.unwrap();
    assert!(error.epoch_not_match.is_some() && error.stale_command.is_none());

    let (file, bytes) = server.sst(Cf::Write, &[synthetic::short(b"zzzz", 20, 30, "v")]);
    let outside = file.upload_meta(&bytes, 4, EPOCH);
    server.upload(&outside, &bytes).await.unwrap();
    let error = server.ingest(context(), vec![outside]).await.unwrap();
    assert!(error.key_not_in_region.is_some(), "{error:?}");

    let (file, bytes) = server.sst(Cf::Write, &[synthetic::short(b"a", 20, 30, "v")]);
    let older = RegionEpoch {
        conf_ver: 1,
        version: 4,
    };
    let stale = file.upload_meta(&bytes, 4, older);
    server.upload(&stale, &bytes).await.unwrap();
    let error = server.ingest(context(), vec![stale]).await.unwrap();
    assert!(error.epoch_not_match.is_some(), "{error:?}");
    assert!(server.scan(u64::MAX).is_empty());
}

/// Requests that apply every slice of `log-basic` up to mid_ts, put slices before delete slices.
async fn golden_slices(golden: &Golden) -> Vec<KvMeta> {
    let metas = golden.metas().await.into_iter();
    let mut slices: Vec<_> = metas
        .flat_map(|meta| meta.content.unwrap().slices)
        .collect();
    slices.sort_by_key(|s| (s.info.r#type == backup::FileType::Delete as i32, s.cf));
    let meta = |s: &pitr_restore_worker::plan::Slice| KvMeta {
        name: s.object.clone(),
        length: s.info.length,
        cf: s.info.cf.clone(),
        is_delete: s.info.r#type == backup::FileType::Delete as i32,
        restore_ts: golden.times.mid_ts,
        start_ts: if s.cf == Cf::Write {
            golden.times.start_ts
        } else {
            0
        },
        sha256: s.info.sha256.clone(),
        range_offset: s.info.range_offset,
        range_length: s.info.range_length,
        compression_type: s.info.compression_type,
        ..Default::default()
    };
    slices.iter().map(meta).collect()
}

fn request(golden: &Golden, metas: Vec<KvMeta>) -> ApplyRequest {
    let path = golden.path().display().to_string();
    ApplyRequest {
        storage_backend: Some(backup::StorageBackend {
            backend: Some(backup::storage_backend::Backend::Local(backup::Local {
                path,
            })),
        }),
        context: Some(context()),
        rewrite_rules: vec![RewriteRule::default(); metas.len()],
        metas,
        ..Default::default()
    }
}

#[tokio::test]
async fn apply_of_a_golden_archive_equals_the_scan_of_the_real_store() {
    let golden = Golden::bare("log-basic");
    let limits = ImportLimits {
        write_bytes: 10_000,
        ..ImportLimits::default()
    };
    let mut server = serve(limits).await;
    for metas in golden_slices(&golden).await.chunks(5) {
        let answer = server.apply(request(&golden, metas.to_vec())).await;
        assert_eq!(answer.error, None);
    }
    assert_eq!(
        server.scan(golden.times.mid_ts),
        golden.scan("scan-mid.tsv.gz")
    );
}

#[tokio::test]
async fn apply_keeps_every_version_of_a_key_within_one_request() {
    let golden = Golden::bare("log-basic");
    let mut server = serve(ImportLimits::default()).await;
    let all: Vec<KvMeta> = golden_slices(&golden)
        .await
        .into_iter()
        .filter(|m| !m.is_delete)
        .collect();
    assert_eq!(server.apply(request(&golden, all)).await.error, None);
    let versions = |key: &[u8]| {
        let key = pitr_format::key::data_key(EncodedKey::encode(key).as_bytes());
        let engine = server.host.engine.as_ref();
        use pitr_restore_worker::engine::{Engine, EngineCf};
        engine
            .scan(EngineCf::Write, &key, &[])
            .take_while(|p| p.as_ref().unwrap().0.starts_with(&key))
            .count()
    };
    let most = (0..30)
        .map(|i| versions(format!("upd/{i:03}").as_bytes()))
        .max()
        .unwrap();
    assert!(
        most > 1,
        "some key of the workload was updated before mid_ts"
    );
}

#[tokio::test]
async fn apply_refuses_what_it_cannot_prove() {
    let golden = Golden::bare("log-basic");
    let mut server = serve(ImportLimits::default()).await;
    let good = golden_slices(&golden).await.remove(0);
    let with = |edit: &dyn Fn(&mut KvMeta)| {
        let mut meta = good.clone();
        edit(&mut meta);
        request(&golden, vec![meta])
    };
    let mut two_metas_one_rule = request(&golden, vec![good.clone(), good.clone()]);
    two_metas_one_rule.rewrite_rules.pop();
    let mut wrong_prefix = request(&golden, vec![good.clone()]);
    wrong_prefix.rewrite_rules[0].old_key_prefix = Bytes::from("no key begins so");
    wrong_prefix.rewrite_rules[0].new_key_prefix = Bytes::from("nor so");
    for (request, words) in [
        (
            with(&|m| m.name = "v1/absent.log".to_owned()),
            "Cannot read",
        ),
        (
            with(&|m| m.sha256 = vec![1; 32].into()),
            "checksums do not match",
        ),
        (with(&|m| m.length += 1), "Cannot read"),
        (with(&|m| m.length -= 1), "Cannot read"),
        (with(&|m| m.range_offset = 1_000_000_000), "Cannot read"),
        (with(&|m| m.range_offset = u64::MAX), "Cannot read"),
        (
            with(&|m| m.compression_type = 1),
            "compression type is unimplemented",
        ),
        (with(&|m| m.cf = "lock".to_owned()), "unknown column family"),
        (with(&|m| m.length = u64::MAX), "at most"),
        (two_metas_one_rule, "2 metas but 1 rewrite rules"),
        (wrong_prefix, "wrong prefix"),
    ] {
        let error = server.apply(request).await.error.unwrap();
        assert!(
            error.message.contains(words),
            "{} lacks {words}",
            error.message
        );
        assert_eq!(error.store_error, None);
    }
    assert!(server.scan(u64::MAX).is_empty());
    let mut stale = request(&golden, vec![good]);
    stale.context = Some(Context {
        region_id: 9,
        ..context()
    });
    let error = server.apply(stale).await.error.unwrap();
    assert!(error.message.starts_with("failed to complete raft command"));
    assert!(error.store_error.unwrap().region_not_found.is_some());
    assert_eq!(
        server.apply(request(&golden, vec![])).await,
        ApplyResponse::default()
    );
}

#[tokio::test]
async fn files_are_cleared_only_below_the_import_directory() {
    let mut server = serve(ImportLimits::default()).await;
    std::fs::create_dir_all(server.dir.path().join("import/v1/20260101")).unwrap();
    let mut clear = async |prefix: &str| {
        let request = ClearRequest {
            prefix: prefix.to_owned(),
        };
        server
            .client
            .clear_files(request)
            .await
            .unwrap()
            .into_inner()
            .error
            .map(|e| e.message)
    };
    let expected = "failed to remove directory: Invalid SST path \"\"".to_owned();
    assert_eq!(clear("").await, Some(expected));
    assert!(clear("../db").await.is_some());
    assert_eq!(clear("v1").await, None);
    assert!(!server.dir.path().join("import/v1").exists());
}

#[tokio::test]
async fn without_memory_the_answer_is_the_one_on_which_br_waits() {
    let golden = Golden::bare("log-basic");
    let budget = MemoryBudget::new(1 << 20);
    let mut server = serve_with(ImportLimits::default(), Arc::clone(&budget)).await;
    let slices = golden_slices(&golden).await;
    let others = budget.try_reserve(1 << 20).unwrap();
    let error = server
        .apply(request(&golden, slices.clone()))
        .await
        .error
        .unwrap();
    assert_eq!(error.message, "resource is not enough memory is limited");
    let busy = error.store_error.unwrap();
    assert_eq!(busy.message, "memory is limited");
    assert!(busy.server_is_busy.unwrap().backoff_ms > 0);
    assert!(server.scan(u64::MAX).is_empty());
    drop(others);
    for metas in slices.chunks(3) {
        let answer = server.apply(request(&golden, metas.to_vec())).await;
        assert_eq!(answer.error, None);
    }
    assert!(budget.peak() <= 1 << 20, "{}", budget.peak());
    assert_eq!(
        server.scan(golden.times.mid_ts),
        golden.scan("scan-mid.tsv.gz")
    );
}

#[tokio::test]
async fn whole_objects_and_slices_without_a_length_count_as_memory() {
    let golden = Golden::bare("log-basic");
    let budget = MemoryBudget::new(100_000);
    let mut server = serve_with(ImportLimits::default(), Arc::clone(&budget)).await;
    let records: Vec<u8> = (0..9_000u32)
        .flat_map(|i| {
            let record = synthetic::short(&i.to_be_bytes(), 20, 30, "v");
            let mut bytes = Vec::new();
            pitr_format::record::append_record(&mut bytes, &record.key, &record.value).unwrap();
            bytes
        })
        .collect();
    assert!(records.len() > 200_000);
    let path = server.dir.path().join("whole.log");
    std::fs::write(&path, &records).unwrap();
    let meta = KvMeta {
        name: "whole.log".to_owned(),
        cf: "write".to_owned(),
        restore_ts: u64::MAX,
        ..Default::default()
    };
    let mut whole = request(&golden, vec![meta]);
    let backend = whole.storage_backend.as_mut().unwrap();
    backend.backend = Some(backup::storage_backend::Backend::Local(backup::Local {
        path: server.dir.path().display().to_string(),
    }));
    let others = budget.try_reserve(1).unwrap();
    let error = server.apply(whole.clone()).await.error.unwrap();
    assert!(error.message.contains("memory is limited"), "{error:?}");
    drop(others);
    let answer = server.apply(whole).await;
    assert_eq!(answer.error, None, "alone it may be larger than the budget");
    assert!(budget.peak() >= records.len() as u64);
    assert_eq!(server.scan(u64::MAX).len(), 9_000);
}

#[tokio::test]
async fn import_mode_is_told_to_the_host_once_per_change() {
    use pitr_proto::import_sstpb::{SwitchMode, SwitchModeRequest};
    let mut server = serve(ImportLimits::default()).await;
    let import = SwitchMode::Import as i32;
    for mode in [0, import, import, 0, 0] {
        let request = SwitchModeRequest {
            mode,
            ..Default::default()
        };
        server.client.switch_mode(request).await.unwrap();
    }
    assert_eq!(*server.host.modes.lock(), [true, false]);
}
