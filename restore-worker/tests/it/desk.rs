//! An import service without a socket: one region over an engine of maps, a directory as the
//! storage, virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_budget::MemoryBudget;
use pitr_format::slice::{SliceBuilder, SliceId};
use pitr_format::{EncodedKey, KvRecord, RecordBatch};
use pitr_proto::backup::storage_backend::Backend;
use pitr_proto::backup::{Local, StorageBackend};
use pitr_proto::import_sstpb::import_sst_server::ImportSst;
use pitr_proto::import_sstpb::{
    ApplyRequest, ApplyResponse, DownloadRequest, DownloadResponse, KvMeta, RewriteRule,
    SetDownloadSpeedLimitRequest, SwitchModeRequest,
};
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::{Region, RegionEpoch};
use pitr_proto::{errorpb, import_sstpb};
use pitr_restore_worker::Env;
use pitr_restore_worker::engine::{Engine, EngineOp};
use pitr_restore_worker::service::{
    ImportHost, ImportLimits, ImportService, RegionError, WriteFailure,
};
use pitr_restore_worker::sst::Tables;
use tempfile::TempDir;
use tonic::Request;

use super::environment::{TestClock, Threads, env};
use super::memory_engine::MemoryEngine;
use super::service::{EPOCH, context};

/// A store with region 4, until it is told to refuse.
pub struct Stub {
    pub engine: MemoryEngine,
    /// The answer to every question about the region from now on.
    pub refusal: Mutex<Option<errorpb::Error>>,
    /// Writes until the region is refused with the epoch; negative is never.
    pub writes_left: AtomicI64,
    /// Records of each write.
    pub writes: Mutex<Vec<usize>>,
    pub modes: Mutex<Vec<bool>>,
}

impl ImportHost for Stub {
    type Engine = MemoryEngine;

    fn store_id(&self) -> u64 {
        1
    }

    fn engine(&self) -> Arc<MemoryEngine> {
        Arc::new(self.engine.clone())
    }

    fn region(&self, _: &Context) -> Result<Region, RegionError> {
        match self.refusal.lock().clone() {
            Some(refusal) => Err(Box::new(refusal)),
            None => Ok(region()),
        }
    }

    fn region_epoch(&self, region_id: u64) -> Option<RegionEpoch> {
        (region_id == 4).then_some(EPOCH)
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
        Ok(change(&self.region(context)?))
    }

    fn write(&self, context: &Context, ops: &[EngineOp]) -> Result<(), WriteFailure> {
        if self.writes_left.fetch_sub(1, SeqCst) == 0 {
            *self.refusal.lock() = Some(epoch_not_match());
        }
        let written = self.change(context, |_| self.engine.write(ops));
        written
            .map_err(WriteFailure::Region)?
            .map_err(WriteFailure::Engine)?;
        self.writes.lock().push(ops.len());
        Ok(())
    }
}

fn region() -> Region {
    Region {
        id: 4,
        region_epoch: Some(EPOCH),
        ..Region::default()
    }
}

pub fn epoch_not_match() -> errorpb::Error {
    errorpb::Error {
        message: "epoch not match".to_owned(),
        epoch_not_match: Some(errorpb::EpochNotMatch {
            current_regions: vec![region()],
        }),
        ..errorpb::Error::default()
    }
}

/// The service and everything around it.
pub struct Desk {
    pub dir: TempDir,
    pub host: Arc<Stub>,
    pub service: ImportService<Stub>,
    pub budget: Arc<MemoryBudget>,
    pub clock: TestClock,
    pub threads: Arc<Threads>,
}

impl Desk {
    pub fn new() -> Desk {
        Desk::with(MemoryBudget::new(256 << 20), ImportLimits::default())
    }

    pub fn with(budget: Arc<MemoryBudget>, limits: ImportLimits) -> Desk {
        let clock = TestClock::hurried();
        Desk::build(
            tempfile::tempdir().unwrap(),
            Threads::endless(),
            clock,
            budget,
            limits,
        )
    }

    /// A new process over what another one left.
    pub fn reopened(dir: TempDir, threads: Arc<Threads>) -> Desk {
        let (clock, budget) = (TestClock::hurried(), MemoryBudget::new(256 << 20));
        Desk::build(dir, threads, clock, budget, ImportLimits::default())
    }

    pub fn build(
        dir: TempDir,
        threads: Arc<Threads>,
        clock: TestClock,
        budget: Arc<MemoryBudget>,
        limits: ImportLimits,
    ) -> Desk {
        let host = Arc::new(Stub {
            engine: MemoryEngine::default(),
            refusal: Mutex::default(),
            writes_left: AtomicI64::new(-1),
            writes: Mutex::default(),
            modes: Mutex::default(),
        });
        std::fs::create_dir_all(dir.path().join("storage")).unwrap();
        let env: Env = env(&clock, &threads, &budget);
        let import = dir.path().join("import");
        let service = ImportService::new(Arc::clone(&host), &import, limits, env).unwrap();
        Desk {
            dir,
            host,
            service,
            budget,
            clock,
            threads,
        }
    }

    /// Makes or replaces an object of the storage.
    pub fn object(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join("storage").join(name), bytes).unwrap();
    }

    pub fn read_object(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join("storage").join(name)).unwrap()
    }

    pub fn backend(&self) -> StorageBackend {
        let path = self.dir.path().join("storage").display().to_string();
        StorageBackend {
            backend: Some(Backend::Local(Local { path })),
        }
    }

    /// An object of one slice, in the middle of other bytes, and what a driver says about it.
    pub fn slice(&self, name: &str, records: &[KvRecord]) -> KvMeta {
        let sealed = sealed(records);
        let object = [&b"before"[..], &sealed.stored, b"behind"].concat();
        self.object(name, &object);
        KvMeta {
            name: name.to_owned(),
            range_offset: 6,
            length: sealed.info.length,
            range_length: sealed.info.range_length,
            cf: sealed.info.cf,
            sha256: sealed.info.sha256,
            compression_type: sealed.info.compression_type,
            restore_ts: u64::MAX,
            ..KvMeta::default()
        }
    }

    /// The same without compression, as a whole object.
    pub fn plain(&self, name: &str, cf: &str, records: &[(Vec<u8>, Vec<u8>)]) -> KvMeta {
        let mut bytes = Vec::new();
        for (key, value) in records {
            pitr_format::record::append_record(&mut bytes, key, value).unwrap();
        }
        self.object(name, &bytes);
        KvMeta {
            name: name.to_owned(),
            length: bytes.len() as u64,
            cf: cf.to_owned(),
            restore_ts: u64::MAX,
            ..KvMeta::default()
        }
    }

    pub fn request(&self, metas: &[KvMeta]) -> ApplyRequest {
        ApplyRequest {
            storage_backend: Some(self.backend()),
            context: Some(context()),
            rewrite_rules: vec![RewriteRule::default(); metas.len()],
            metas: metas.to_vec(),
            ..ApplyRequest::default()
        }
    }

    pub async fn send(&self, request: ApplyRequest) -> ApplyResponse {
        let answer = self.service.apply(Request::new(request)).await;
        answer.unwrap().into_inner()
    }

    /// Applies the slices one after the other in one request; the range of what was taken.
    pub async fn apply(&self, metas: &[KvMeta]) -> Result<Option<import_sstpb::Range>, String> {
        let answer = self.send(self.request(metas)).await;
        match answer.error {
            None => Ok(answer.range),
            Some(error) => Err(error.message),
        }
    }

    /// Applies one slice under a rule.
    pub async fn apply_renamed(&self, meta: &KvMeta, old: &[u8], new: &[u8]) -> Result<(), String> {
        let mut request = self.request(std::slice::from_ref(meta));
        request.rewrite_rules[0] = rule(old, new);
        match self.send(request).await.error {
            None => Ok(()),
            Some(error) => Err(error.message),
        }
    }

    pub async fn download(&self, request: DownloadRequest) -> Result<DownloadResponse, String> {
        let answer = self.service.download(Request::new(request)).await;
        let answer = answer.unwrap().into_inner();
        match answer.error {
            Some(error) => Err(error.message),
            None => Ok(answer),
        }
    }

    pub async fn limit_speed(&self, speed_limit: u64, task_id: &str, ttl_seconds: u64) {
        let task_id = task_id.to_owned();
        let request = SetDownloadSpeedLimitRequest {
            speed_limit,
            task_id,
            ttl_seconds,
        };
        let answer = self.service.set_download_speed_limit(Request::new(request));
        answer.await.unwrap();
    }

    pub async fn switch_mode(&self, mode: import_sstpb::SwitchMode) {
        let request = SwitchModeRequest {
            mode: mode as i32,
            ..SwitchModeRequest::default()
        };
        self.service
            .switch_mode(Request::new(request))
            .await
            .unwrap();
    }

    /// User keys and values that a reader sees at the end of time.
    pub fn seen(&self) -> Vec<(String, String)> {
        let text = |bytes: Vec<u8>| bytes.escape_ascii().to_string();
        let seen = self.host.engine.visible(u64::MAX).into_iter();
        seen.map(|(key, value)| (text(key), text(value))).collect()
    }

    /// Names below the import directory, by part: finished, in the making, fetched in part.
    pub fn files(&self) -> [Vec<String>; 3] {
        ["import", "import/.temp", "import/.partial"].map(|part| {
            let listed = std::fs::read_dir(self.dir.path().join(part)).unwrap();
            let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
            names.sort();
            names
        })
    }
}

pub fn rule(old: &[u8], new: &[u8]) -> RewriteRule {
    RewriteRule {
        old_key_prefix: Bytes::copy_from_slice(old),
        new_key_prefix: Bytes::copy_from_slice(new),
        ..RewriteRule::default()
    }
}

/// The first `groups` groups of 8 bytes of an encoded key, which is how drivers send prefixes.
pub fn encoded_prefix(key: &[u8]) -> Vec<u8> {
    assert_eq!(key.len() % 8, 0);
    let encoded = EncodedKey::encode(key);
    encoded.as_bytes()[..key.len() / 8 * 9].to_vec()
}

pub fn sealed(records: &[KvRecord]) -> pitr_format::slice::SealedSlice {
    let (cf, op) = (records[0].cf, records[0].op);
    let mut builder = SliceBuilder::new(SliceId {
        table_id: 0,
        region_id: 4,
        cf,
        op,
        is_meta: false,
    });
    for record in &RecordBatch::of(records).unwrap() {
        builder.append(record).unwrap();
    }
    builder.seal().unwrap()
}
