//! `Upload`: a stream of one metadata message and data, into a file that appears whole or not.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use pitr_proto::import_sstpb::upload_request::Chunk;
use pitr_proto::import_sstpb::{DownloadResponse, UploadRequest};
use tonic::Status;

use super::disk::DiskFile;
use super::import_dir::{ImportDir, ImportDirError, Record, io_error};
use crate::env::Env;

/// Receives one file. The first message must be the metadata, the later ones non-empty data.
pub(super) async fn upload(
    env: &Env,
    dir: &Arc<ImportDir>,
    mut stream: impl Stream<Item = Result<UploadRequest, Status>> + Unpin,
) -> Result<(), ImportDirError> {
    let Some(Chunk::Meta(meta)) = next_chunk(&mut stream).await? else {
        return Err(ImportDirError::InvalidChunk);
    };
    let (path, temp) = (dir.path(&meta)?, dir.temp_path(&meta)?);
    let known = path.clone();
    let exists = env.unblock(move || known.try_exists()).await.flatten();
    if exists.map_err(io_error("look for", &path))? {
        return Err(ImportDirError::FileExists(path));
    }
    let file = DiskFile::open(env, &temp, "create", |temp| File::create_new(temp)).await?;
    let guard = TempFile(Some(temp.clone()));
    let (crc32, length) = receive(&mut stream, file).await?;
    let corrupted = |reason: String| ImportDirError::FileCorrupted {
        path: path.clone(),
        reason,
    };
    if crc32 != meta.crc32 {
        return Err(corrupted(format!("crc32 {crc32}, expected {}", meta.crc32)));
    }
    if meta.length != 0 && length != meta.length {
        return Err(corrupted(format!(
            "length {length}, expected {}",
            meta.length
        )));
    }
    let record = Record {
        identity: [0; 32],
        response: DownloadResponse {
            crc32,
            length,
            ..DownloadResponse::default()
        },
    };
    let dir = Arc::clone(dir);
    let finish = move || dir.finish(&temp, &path, &record);
    let finished = env.unblock(finish).await;
    finished.map_err(io_error("finish", Path::new("")))??;
    guard.keep();
    Ok(())
}

async fn receive(
    stream: &mut (impl Stream<Item = Result<UploadRequest, Status>> + Unpin),
    mut file: DiskFile,
) -> Result<(u32, u64), ImportDirError> {
    let (mut crc32, mut length) = (crc32fast::Hasher::new(), 0);
    while let Some(chunk) = next_chunk(stream).await? {
        let Chunk::Data(data) = chunk else {
            return Err(ImportDirError::InvalidChunk);
        };
        if data.is_empty() {
            return Err(ImportDirError::InvalidChunk);
        }
        crc32.update(&data);
        length += data.len() as u64;
        file.write(data).await?;
    }
    file.sync().await?;
    Ok((crc32.finalize(), length))
}

/// The next message's content; `None` at the end of the stream.
async fn next_chunk(
    stream: &mut (impl Stream<Item = Result<UploadRequest, Status>> + Unpin),
) -> Result<Option<Chunk>, ImportDirError> {
    match stream.next().await {
        None => Ok(None),
        Some(Ok(request)) => request.chunk.map(Some).ok_or(ImportDirError::InvalidChunk),
        Some(Err(status)) => Err(ImportDirError::Io {
            action: "receive",
            path: PathBuf::new(),
            source: std::io::Error::other(status),
        }),
    }
}

/// Removes the unfinished file when the upload fails or is cancelled.
struct TempFile(Option<PathBuf>);

impl TempFile {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(e) = std::fs::remove_file(path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(path = %path.display(), error = %e, "unfinished upload stays");
        }
    }
}
