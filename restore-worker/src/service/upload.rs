//! `Upload`: a stream of one metadata message and data, into a file that appears whole or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use pitr_proto::import_sstpb::upload_request::Chunk;
use pitr_proto::import_sstpb::{DownloadResponse, UploadRequest};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tonic::Status;

use super::import_dir::{ImportDir, ImportDirError, Record, io_error};

/// Receives one file. The first message must be the metadata, the later ones non-empty data.
pub(super) async fn upload(
    dir: &Arc<ImportDir>,
    mut stream: impl Stream<Item = Result<UploadRequest, Status>> + Unpin,
) -> Result<(), ImportDirError> {
    let Some(Chunk::Meta(meta)) = next_chunk(&mut stream).await? else {
        return Err(ImportDirError::InvalidChunk);
    };
    let (path, temp) = (dir.path(&meta)?, dir.temp_path(&meta)?);
    if tokio::fs::try_exists(&path)
        .await
        .map_err(io_error("look for", &path))?
    {
        return Err(ImportDirError::FileExists(path));
    }
    let file = File::create_new(&temp)
        .await
        .map_err(io_error("create", &temp))?;
    let guard = TempFile(Some(temp.clone()));
    let (crc32, length) = receive(&mut stream, file, &temp).await?;
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
    let finished = tokio::task::spawn_blocking(finish).await;
    finished.map_err(|e| io_error("finish", Path::new(""))(std::io::Error::other(e)))??;
    guard.keep();
    Ok(())
}

async fn receive(
    stream: &mut (impl Stream<Item = Result<UploadRequest, Status>> + Unpin),
    mut file: File,
    temp: &Path,
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
        file.write_all(&data)
            .await
            .map_err(io_error("write", temp))?;
    }
    file.flush().await.map_err(io_error("write", temp))?;
    file.sync_all().await.map_err(io_error("sync", temp))?;
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
