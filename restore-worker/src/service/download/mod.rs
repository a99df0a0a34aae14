//! `Download` and `BatchDownload`: SST files of a backup into files of a region.
//!
//! `request → fetch → prove → rewrite → finished file with its record`. As TiKV (tikv/tikv
//! `components/sst_importer/src/sst_importer.rs`), except where that accepts damage in silence:
//!
//! | TiKV | here |
//! |---|---|
//! | the object's size is not compared with `SSTMeta.length` | it is, and `total_kvs` if given |
//! | `crc32` and `length` of the answer stay 0 | those of the resulting file, proven again at ingest |
//! | a rewrite of encoded keys may leave no encoded key | refused |
//! | of equal keys in a batch one wins | refused when their values differ |
//! | a transfer begins anew after a crash | goes on where it was |

mod fetch;
mod keys;
mod produce;
mod request;

use std::path::Path;
use std::sync::Arc;

use pitr_proto::import_sstpb::{DownloadRequest, DownloadResponse};

use super::Shared;
use super::error::ImportError;
use super::host::ImportHost;
use super::import_dir::{ImportDirError, Record};
use fetch::Fetch;
use produce::Produce;
pub(super) use request::Form;
use request::Job;

/// The record of the file that an earlier call made, if it is still as it was.
async fn there<H>(shared: &Arc<Shared<H>>, path: &Path) -> Result<Option<Record>, ImportError> {
    let (dir, path) = (Arc::clone(&shared.dir), path.to_owned());
    let looked = shared.env.unblock(move || dir.intact(&path)).await;
    match looked.map_err(|e| ImportError::Engine(e.to_string()))? {
        Err(ImportDirError::FileCorrupted { path, reason }) => {
            tracing::warn!(path = %path.display(), reason, "downloaded file is fetched again");
            Ok(None)
        }
        other => Ok(other?),
    }
}

/// Serves one request.
pub(super) async fn download<H: ImportHost>(
    shared: &Arc<Shared<H>>,
    request: &DownloadRequest,
    form: Form,
) -> Result<DownloadResponse, ImportError> {
    let job = Job::of(request, form)?;
    let region_id = job.output.region_id;
    if shared.host.region_epoch(region_id).is_none() {
        return Err(ImportError::NotHere(region_id));
    }
    let path = shared.dir.path(&job.output)?;
    let _turn = shared.dir.turns().wait(&path).await;
    if let Some(record) = there(shared, &path).await? {
        if record.identity != job.identity {
            return Err(ImportError::MisMatchRequest(path.display().to_string()));
        }
        return Ok(record.response);
    }
    let opened = shared
        .storages
        .open(request.storage_backend.as_ref(), &request.storage_cache_id)?;
    let mut anew = false;
    loop {
        let fetch = Fetch {
            env: &shared.env,
            dir: &shared.dir,
            speed: &shared.speed,
            cache: &shared.cache,
            opened: &opened,
            into: path.display().to_string(),
        };
        let mut sources = Vec::with_capacity(job.sources.len());
        for source in &job.sources {
            sources.push(fetch.source(source, job.cipher.as_ref()).await?);
        }
        let resumed = sources.iter().any(|source| source.resumed);
        let produce = Produce {
            dir: Arc::clone(&shared.dir),
            tables: shared.host.tables(),
            output: job.output.clone(),
            identity: job.identity,
            rule: job.rule.clone(),
            sources,
        };
        let produced = shared.env.unblock(move || produce.run()).await;
        match produced.map_err(|e| ImportError::Engine(e.to_string()))? {
            // What an earlier attempt left may be what is damaged; the parts are gone by now.
            Err(ImportError::CannotRead { what, .. }) if resumed && !anew => {
                anew = true;
                tracing::info!(path = %path.display(), what, "a resumed download begins anew");
            }
            done => return done,
        }
    }
}
