//! `import_sstpb.ImportSST` over an [`Engine`]: the calls that a restore driver makes on a store.
//!
//! Served: `Upload`, `Download`, `BatchDownload`, `SetDownloadSpeedLimit`, `Ingest`, `MultiIngest`,
//! `Apply`, `ClearFiles`, `SwitchMode`. The forms of answers are those of TiKV (tikv/tikv
//! `src/import/sst_service.rs`, `src/import/ingest.rs`); where TiKV accepts in silence what it
//! cannot have meant, this service refuses: see [`apply`] and [`download`].
//!
//! The owner of the store implements [`ImportHost`], serves [`ImportService::into_server`] and
//! runs [`ImportService::upkeep`] beside it.

pub mod apply;
mod cache;
mod cipher;
mod disk;
mod download;
pub mod error;
pub mod host;
pub mod import_dir;
mod ingest;
mod mode;
mod slices;
mod speed;
mod storages;
mod sweep;
mod turns;
mod upload;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pitr_proto::errorpb;
use pitr_proto::import_sstpb::import_sst_server::{ImportSst, ImportSstServer};
use pitr_proto::import_sstpb::{
    self, ApplyRequest, ApplyResponse, ClearRequest, ClearResponse, DownloadRequest,
    DownloadResponse, IngestRequest, IngestResponse, MultiIngestRequest,
    SetDownloadSpeedLimitRequest, SetDownloadSpeedLimitResponse, SwitchModeRequest,
    SwitchModeResponse, UploadRequest, UploadResponse,
};
use tonic::{Request, Response, Status, Streaming};

use crate::env::Env;
use cache::SliceCache;
use download::Form;
pub use error::ImportError;
pub use host::{ImportHost, RegionError, Replica, WriteFailure};
pub use import_dir::{ImportDir, ImportDirError};
use mode::Mode;
use speed::SpeedLimits;
use storages::Storages;

/// TiKV does not limit what it receives; senders of SST files use a few MiB a message.
const MAX_MESSAGE: usize = 64 << 20;
/// How often caches are looked through (TiKV: the same).
const TICK: Duration = Duration::from_secs(10);

/// Bounds of the service.
#[derive(Clone, Debug)]
pub struct ImportLimits {
    /// Plaintext bytes of slices that are kept although no call uses them.
    pub cache_bytes: u64,
    /// Largest slice, stored or decompressed.
    pub max_slice_bytes: u64,
    /// Bytes of changes that are written to the engine at once (TiKV: half of a raft entry).
    pub write_bytes: usize,
}

impl Default for ImportLimits {
    fn default() -> Self {
        ImportLimits {
            cache_bytes: 256 << 20,
            max_slice_bytes: 1 << 30,
            write_bytes: 4 << 20,
        }
    }
}

/// The gRPC service.
pub struct ImportService<H> {
    shared: Arc<Shared<H>>,
}

/// What calls share.
struct Shared<H> {
    env: Env,
    host: Arc<H>,
    dir: Arc<ImportDir>,
    cache: SliceCache,
    storages: Storages,
    speed: SpeedLimits,
    mode: Mode,
    limits: ImportLimits,
}

impl<H: ImportHost> ImportService<H> {
    /// A service that keeps files in `import_dir` (created if missing) and reserves what it holds
    /// in memory from the budget of `env`; when that has no room, the store answers "busy".
    pub fn new(
        host: Arc<H>,
        import_dir: &Path,
        limits: ImportLimits,
        env: Env,
    ) -> Result<Self, ImportDirError> {
        Ok(ImportService {
            shared: Arc::new(Shared {
                host,
                dir: Arc::new(ImportDir::open(import_dir, Arc::clone(&env.random))?),
                cache: SliceCache::new(&env, limits.cache_bytes),
                storages: Storages::new(Arc::clone(&env.clock)),
                speed: SpeedLimits::new(Arc::clone(&env.clock)),
                mode: Mode::new(Arc::clone(&env.clock)),
                limits,
                env,
            }),
        })
    }

    /// Where uploaded files lie.
    pub fn dir(&self) -> Arc<ImportDir> {
        Arc::clone(&self.shared.dir)
    }

    /// The tonic server, which takes data messages of up to 64 MiB.
    pub fn into_server(self) -> ImportSstServer<Self> {
        ImportSstServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Gives back what is unused: cached slices and clients, import mode after its time, stale
    /// files. Never ends; runs beside the server.
    pub fn upkeep(&self) -> impl Future<Output = ()> + Send + 'static + use<H> {
        let shared = Arc::clone(&self.shared);
        async move {
            let clock = Arc::clone(&shared.env.clock);
            let mut swept: Option<Duration> = None;
            loop {
                shared.cache.sweep();
                shared.storages.sweep();
                shared.mode.tick(shared.host.as_ref());
                let now = clock.now();
                if swept.is_none_or(|at| now.saturating_sub(at) >= sweep::EVERY) {
                    swept = Some(now);
                    shared.sweep_files().await;
                }
                clock.sleep(TICK).await;
            }
        }
    }
}

impl<H: ImportHost> Shared<H> {
    async fn sweep_files(&self) {
        let (dir, host) = (Arc::clone(&self.dir), Arc::clone(&self.host));
        let now = self.env.clock.wall();
        let sweep = move || dir.sweep(now, |region| host.region_epoch(region));
        match self.env.unblock(sweep).await {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => tracing::info!(removed, "import directory swept"),
            Ok(Err(error)) => tracing::warn!(%error, "import directory not swept"),
            Err(error) => tracing::warn!(%error, "import directory not swept"),
        }
    }

    async fn ingest(
        &self,
        request: MultiIngestRequest,
    ) -> Result<Response<IngestResponse>, Status> {
        let (host, dir) = (Arc::clone(&self.host), Arc::clone(&self.dir));
        let ingest = move || ingest::multi_ingest(host.as_ref(), &dir, &request);
        let result = self.env.unblock(ingest).await;
        let result = result.map_err(|e| Status::unknown(e.to_string()))?;
        Ok(Response::new(IngestResponse {
            error: result.err().map(|e| *e),
        }))
    }
}

fn downloaded(answer: Result<DownloadResponse, ImportError>) -> Response<DownloadResponse> {
    Response::new(answer.unwrap_or_else(|e| DownloadResponse {
        error: Some(e.into_message()),
        ..DownloadResponse::default()
    }))
}

/// The region error of a context that names another store; TiKV tests it first.
fn check_store<H: ImportHost>(
    host: &H,
    context: &pitr_proto::kvrpcpb::Context,
) -> Result<(), RegionError> {
    let mine = host.store_id();
    let asked = context.peer.as_ref().map_or(0, |peer| peer.store_id);
    if asked == mine {
        return Ok(());
    }
    Err(Box::new(errorpb::Error {
        message: format!("to store id {asked}, mine {mine}"),
        store_not_match: Some(errorpb::StoreNotMatch {
            request_store_id: asked,
            actual_store_id: mine,
        }),
        ..errorpb::Error::default()
    }))
}

#[async_trait]
impl<H: ImportHost> ImportSst for ImportService<H> {
    /// Always successful, as in TiKV.
    async fn switch_mode(
        &self,
        request: Request<SwitchModeRequest>,
    ) -> Result<Response<SwitchModeResponse>, Status> {
        let import = request.get_ref().mode == import_sstpb::SwitchMode::Import as i32;
        self.shared.mode.switch(import, self.shared.host.as_ref());
        Ok(Response::new(SwitchModeResponse::default()))
    }

    async fn set_download_speed_limit(
        &self,
        request: Request<SetDownloadSpeedLimitRequest>,
    ) -> Result<Response<SetDownloadSpeedLimitResponse>, Status> {
        match self.shared.speed.set(request.get_ref()) {
            Ok(()) => Ok(Response::new(SetDownloadSpeedLimitResponse::default())),
            Err(what) => Err(Status::unknown(what)),
        }
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let (env, dir) = (&self.shared.env, &self.shared.dir);
        match upload::upload(env, dir, request.into_inner()).await {
            Ok(()) => Ok(Response::new(UploadResponse::default())),
            Err(e) => Err(Status::unknown(e.to_string())),
        }
    }

    async fn download(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<DownloadResponse>, Status> {
        let answer = download::download(&self.shared, request.get_ref(), Form::Single).await;
        Ok(downloaded(answer))
    }

    async fn batch_download(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<DownloadResponse>, Status> {
        let answer = download::download(&self.shared, request.get_ref(), Form::Batch).await;
        Ok(downloaded(answer))
    }

    async fn ingest(
        &self,
        request: Request<IngestRequest>,
    ) -> Result<Response<IngestResponse>, Status> {
        let IngestRequest { context, sst } = request.into_inner();
        let ssts = sst.into_iter().collect();
        self.shared
            .ingest(MultiIngestRequest { context, ssts })
            .await
    }

    async fn multi_ingest(
        &self,
        request: Request<MultiIngestRequest>,
    ) -> Result<Response<IngestResponse>, Status> {
        self.shared.ingest(request.into_inner()).await
    }

    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let answer = apply::apply(&self.shared, request.get_ref()).await;
        Ok(Response::new(match answer {
            Ok(range) => ApplyResponse { range, error: None },
            Err(e) => ApplyResponse {
                range: None,
                error: Some(e.into_message()),
            },
        }))
    }

    async fn clear_files(
        &self,
        request: Request<ClearRequest>,
    ) -> Result<Response<ClearResponse>, Status> {
        let (dir, prefix) = (Arc::clone(&self.shared.dir), request.into_inner().prefix);
        let result = self.shared.env.unblock(move || dir.remove(&prefix)).await;
        let result = result.map_err(|e| Status::unknown(e.to_string()))?;
        let error = result.err().map(|e| import_sstpb::Error {
            message: format!("failed to remove directory: {e}"),
            store_error: None,
        });
        Ok(Response::new(ClearResponse { error }))
    }
}
