//! `import_sstpb.ImportSST` over an [`Engine`]: the calls that a restore driver makes on a store.
//!
//! Served: `Upload`, `MultiIngest`, `Apply`, `ClearFiles`, `SwitchMode`. The forms of answers are
//! those of TiKV (tikv/tikv `src/import/sst_service.rs`, `src/import/ingest.rs`); where TiKV
//! accepts in silence what it cannot have meant, this service refuses: see [`apply`].
//!
//! The owner of the store implements [`ImportHost`] and serves [`ImportService::into_server`].

pub mod apply;
pub mod host;
pub mod import_dir;
mod ingest;
mod quota;
mod upload;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pitr_proto::errorpb;
use pitr_proto::import_sstpb::import_sst_server::{ImportSst, ImportSstServer};
use pitr_proto::import_sstpb::{
    self, ApplyRequest, ApplyResponse, ClearRequest, ClearResponse, IngestResponse,
    MultiIngestRequest, SwitchModeRequest, SwitchModeResponse, UploadRequest, UploadResponse,
};
use tonic::{Request, Response, Status, Streaming};

pub use host::{ImportHost, RegionError, WriteFailure};
pub use import_dir::{ImportDir, ImportDirError};
use quota::Quota;

/// TiKV does not limit what it receives; senders of SST files use a few MiB a message.
const MAX_MESSAGE: usize = 64 << 20;

/// Bounds of the service.
#[derive(Clone, Debug)]
pub struct ImportLimits {
    /// Plaintext bytes of all `Apply` calls at once; beyond, the store answers "busy".
    pub apply_memory: u64,
    /// Largest plaintext of one slice.
    pub max_slice_bytes: u64,
    /// Bytes of changes that are written to the engine at once (TiKV: half of a raft entry).
    pub write_bytes: usize,
}

impl Default for ImportLimits {
    fn default() -> Self {
        ImportLimits {
            apply_memory: 512 << 20,
            max_slice_bytes: 1 << 30,
            write_bytes: 4 << 20,
        }
    }
}

/// The gRPC service.
pub struct ImportService<H> {
    host: Arc<H>,
    dir: Arc<ImportDir>,
    quota: Quota,
    limits: ImportLimits,
}

impl<H: ImportHost> ImportService<H> {
    /// A service that keeps uploaded files in `import_dir` (created if missing).
    pub fn new(
        host: Arc<H>,
        import_dir: &Path,
        limits: ImportLimits,
    ) -> Result<Self, ImportDirError> {
        Ok(ImportService {
            host,
            dir: Arc::new(ImportDir::open(import_dir)?),
            quota: Quota::new(limits.apply_memory),
            limits,
        })
    }

    /// The tonic server, which takes data messages of up to 64 MiB.
    pub fn into_server(self) -> ImportSstServer<Self> {
        ImportSstServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }
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
    /// There is no separate import mode: nothing to switch, always successful as in TiKV.
    async fn switch_mode(
        &self,
        _: Request<SwitchModeRequest>,
    ) -> Result<Response<SwitchModeResponse>, Status> {
        Ok(Response::new(SwitchModeResponse::default()))
    }

    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        match upload::upload(&self.dir, request.into_inner()).await {
            Ok(()) => Ok(Response::new(UploadResponse::default())),
            Err(e) => Err(Status::unknown(e.to_string())),
        }
    }

    async fn multi_ingest(
        &self,
        request: Request<MultiIngestRequest>,
    ) -> Result<Response<IngestResponse>, Status> {
        let (host, dir) = (Arc::clone(&self.host), Arc::clone(&self.dir));
        let request = request.into_inner();
        let worker = tokio::task::spawn_blocking(move || {
            ingest::multi_ingest(host.as_ref(), &dir, &request)
        });
        let result = worker.await.map_err(|e| Status::unknown(e.to_string()))?;
        Ok(Response::new(IngestResponse {
            error: result.err().map(|e| *e),
        }))
    }

    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let answer =
            apply::apply(&self.host, &self.quota, &self.limits, request.into_inner()).await;
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
        let (dir, prefix) = (Arc::clone(&self.dir), request.into_inner().prefix);
        let worker = tokio::task::spawn_blocking(move || dir.remove(&prefix));
        let result = worker.await.map_err(|e| Status::unknown(e.to_string()))?;
        let error = result.err().map(|e| import_sstpb::Error {
            message: format!("failed to remove directory: {e}"),
            store_error: None,
        });
        Ok(Response::new(ClearResponse { error }))
    }
}
