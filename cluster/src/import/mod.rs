//! Putting SST files into a running cluster: upload to every peer, ingest through the leader.
//!
//! The caller cuts files at the target's region bounds and repeats with fresh regions on
//! [`pitr_format::Class::Refresh`]. Used by the restore driver.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_format::Class;
use pitr_proto::import_sstpb::import_sst_client::ImportSstClient;
use pitr_proto::import_sstpb::{self as pb, SstMeta};
use pitr_proto::{errorpb, kvrpcpb};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::kv::region_error_text;
use crate::net::describe;
use crate::pd::Region;
use crate::stores::{CALL_TIMEOUT, StoreChannels, StoreError};

/// Bytes per upload message.
const CHUNK: usize = 1 << 20;
/// Messages read ahead of the transport.
const CHUNKS_AHEAD: usize = 4;
/// An upload of one file, an ingest behind a busy store.
const LONG_CALL: Duration = Duration::from_secs(300);

/// Failure of an import call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// The store cannot be dialled.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The region is not what the caller thinks it is; `error` says how.
    #[error(
        "{call} on store {store_id} for region {region_id}: {}",
        region_error_text(error)
    )]
    Region {
        /// The call.
        call: &'static str,
        /// The store.
        store_id: u64,
        /// The region.
        region_id: u64,
        /// As the store sent it.
        error: Box<errorpb::Error>,
    },
    /// PD names no leader for the region.
    #[error("region {region_id} has no leader now")]
    NoLeader {
        /// The region.
        region_id: u64,
    },
    /// The call failed as a whole.
    #[error("{call} on store {store_id}: {text}")]
    Call {
        /// The call.
        call: &'static str,
        /// The store.
        store_id: u64,
        /// The status.
        text: String,
        /// Whether trying again may help.
        class: Class,
    },
    /// The file cannot be read.
    #[error("cannot read the file to upload: {text}")]
    Read {
        /// The system's words.
        text: String,
    },
}

impl ImportError {
    /// What the caller can do: on `Refresh` look the region up again, upload and ingest there.
    pub fn class(&self) -> Class {
        match self {
            ImportError::Store(error) => error.class(),
            ImportError::Region { error, .. } => region_class(error),
            ImportError::NoLeader { .. } => Class::Refresh,
            ImportError::Call { class, .. } => *class,
            ImportError::Read { .. } => Class::Permanent,
        }
    }
}

impl ImportError {
    /// How long a busy store asks to be left alone.
    pub fn wait(&self) -> Option<Duration> {
        let ImportError::Region { error, .. } = self else {
            return None;
        };
        let busy = error.server_is_busy.as_ref()?;
        (busy.backoff_ms > 0).then(|| Duration::from_millis(busy.backoff_ms))
    }
}

/// A busy or full store is waited for; everything else means another region, leader or file state.
fn region_class(error: &errorpb::Error) -> Class {
    match error.server_is_busy.is_some() || error.disk_full.is_some() {
        true => Class::Retry,
        false => Class::Refresh,
    }
}

/// Import calls to the stores of one cluster; cheap to share.
#[derive(Clone)]
pub struct ImportClient {
    stores: Arc<StoreChannels>,
}

impl ImportClient {
    /// A client over known stores.
    pub fn new(stores: Arc<StoreChannels>) -> Self {
        ImportClient { stores }
    }

    /// Sends one file to one store. `meta` carries uuid, CF, region, range, length and crc32; the
    /// store compares the checksum. A file that is there already is a permanent error: take a new
    /// uuid for a new try.
    pub async fn upload(
        &self,
        store_id: u64,
        meta: SstMeta,
        file: impl AsyncRead + Unpin + Send,
    ) -> Result<(), ImportError> {
        let mut stub = self.stub(store_id).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let call = async {
            let answer = stub.upload(ReceiverStream::new(receiver)).await;
            answer
                .map(|_| ())
                .map_err(|status| self.failed("Upload", store_id, &status))
        };
        let both = async {
            let (sent, answered) = tokio::join!(send_file(meta, file, sender), call);
            // The store's refusal explains a closed stream.
            answered.and(sent)
        };
        match timeout(LONG_CALL, both).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.late("Upload", store_id)),
        }
    }

    /// Makes the leader of `region` ingest files that every peer has. All files become visible at
    /// once; `Refresh` with `stale_command` means that they probably are already.
    pub async fn multi_ingest(
        &self,
        region: &Region,
        ssts: Vec<SstMeta>,
    ) -> Result<(), ImportError> {
        let region_id = region.meta.id;
        let leader = region.leader.ok_or(ImportError::NoLeader { region_id })?;
        let store_id = leader.store_id;
        let mut stub = self.stub(store_id).await?;
        let request = pb::MultiIngestRequest {
            context: Some(kvrpcpb::Context {
                region_id,
                region_epoch: region.meta.region_epoch,
                peer: Some(leader),
                ..Default::default()
            }),
            ssts,
        };
        let answer = match timeout(LONG_CALL, stub.multi_ingest(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(self.failed("MultiIngest", store_id, &status)),
            Err(_) => return Err(self.late("MultiIngest", store_id)),
        };
        match answer.error {
            None => Ok(()),
            Some(error) => Err(ImportError::Region {
                call: "MultiIngest",
                store_id,
                region_id,
                error: Box::new(error),
            }),
        }
    }

    /// Turns a store's import mode on or off. It falls back by itself after 10 minutes: repeat it
    /// every 5 while importing. The store answers OK even if it could not switch.
    pub async fn switch_mode(&self, store_id: u64, import: bool) -> Result<(), ImportError> {
        let mut stub = self.stub(store_id).await?;
        let mode = match import {
            true => pb::SwitchMode::Import,
            false => pb::SwitchMode::Normal,
        };
        let request = pb::SwitchModeRequest {
            mode: mode as i32,
            ranges: Vec::new(),
        };
        match timeout(CALL_TIMEOUT, stub.switch_mode(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(self.failed("SwitchMode", store_id, &status)),
            Err(_) => Err(self.late("SwitchMode", store_id)),
        }
    }

    async fn stub(&self, store_id: u64) -> Result<ImportSstClient<Channel>, ImportError> {
        Ok(ImportSstClient::new(self.stores.of(store_id).await?))
    }

    fn failed(&self, call: &'static str, store_id: u64, status: &Status) -> ImportError {
        let class = status_class(status);
        if class == Class::Retry {
            self.stores.forget(store_id);
        }
        ImportError::Call {
            call,
            store_id,
            text: describe(status),
            class,
        }
    }

    fn late(&self, call: &'static str, store_id: u64) -> ImportError {
        self.stores.forget(store_id);
        ImportError::Call {
            call,
            store_id,
            text: "no answer in time".to_owned(),
            class: Class::Retry,
        }
    }
}

/// The store reports its own errors as UNKNOWN with the debug form of the error as text.
fn status_class(status: &Status) -> Class {
    let text = status.message();
    let permanent = [
        "FileExists",
        "FileCorrupted",
        "InvalidChunk",
        "IncompatibleApiVersion",
    ];
    match status.code() {
        Code::Unimplemented
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated => Class::Permanent,
        _ if permanent.iter().any(|name| text.contains(name)) => Class::Permanent,
        _ if text.contains("rescan region later") => Class::Refresh,
        _ => Class::Retry,
    }
}

/// Meta first, then the bytes in chunks, none of them empty.
async fn send_file(
    meta: SstMeta,
    mut file: impl AsyncRead + Unpin,
    sender: mpsc::Sender<pb::UploadRequest>,
) -> Result<(), ImportError> {
    use pb::upload_request::Chunk;
    let message = |chunk| pb::UploadRequest { chunk: Some(chunk) };
    // A closed stream is explained by the call's own answer.
    if sender.send(message(Chunk::Meta(meta))).await.is_err() {
        return Ok(());
    }
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await;
        read.map_err(|e| ImportError::Read {
            text: e.to_string(),
        })?;
        if chunk.is_empty() {
            return Ok(());
        }
        let data = Chunk::Data(Bytes::from(chunk));
        if sender.send(message(data)).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_goes_out_as_meta_and_full_chunks_and_no_empty_one() {
        use pb::upload_request::Chunk;
        for (size, chunks) in [(0, vec![]), (1, vec![1]), (CHUNK, vec![CHUNK])] {
            let (sender, mut receiver) = mpsc::channel(16);
            let bytes = vec![7; size];
            send_file(SstMeta::default(), &bytes[..], sender)
                .await
                .unwrap();
            let first = receiver.recv().await.unwrap();
            assert!(matches!(first.chunk, Some(Chunk::Meta(_))));
            let mut sizes = Vec::new();
            while let Some(message) = receiver.recv().await {
                match message.chunk {
                    Some(Chunk::Data(data)) => sizes.push(data.len()),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(sizes, chunks);
        }
    }

    #[test]
    fn region_errors_ask_for_a_fresh_region_and_a_busy_store_for_patience() {
        let stale = errorpb::Error {
            stale_command: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(region_class(&stale), Class::Refresh);
        let busy = errorpb::Error {
            server_is_busy: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(region_class(&busy), Class::Retry);
        let told = |backoff_ms| ImportError::Region {
            call: "MultiIngest",
            store_id: 1,
            region_id: 2,
            error: Box::new(errorpb::Error {
                server_is_busy: Some(errorpb::ServerIsBusy {
                    backoff_ms,
                    ..Default::default()
                }),
                ..Default::default()
            }),
        };
        assert_eq!(told(1_500).wait(), Some(Duration::from_millis(1_500)));
        assert_eq!(told(0).wait(), None);
        assert_eq!(
            status_class(&Status::unknown("FileExists(..)")),
            Class::Permanent
        );
        assert_eq!(status_class(&Status::unavailable("")), Class::Retry);
    }
}
