//! The promises of [`Storage`] on an object store.
//!
//! * Small objects are one request. Larger ones go in parts of [`PART`] bytes, [`PARTS_UNDER_WAY`] at
//!   a time: the store shows nothing of them before the last request, and a failed or cancelled
//!   upload is aborted. What a killed process leaves is invisible; a life-cycle rule of the bucket
//!   that ends unfinished uploads removes it.
//! * `put_new` is one conditional request (`If-None-Match: *`, or the precondition of the cloud). A
//!   server that does not know it answers "not implemented", which is told, never worked around: a
//!   look before a write is no lock.
//! * A prefix without objects is an empty archive, because object stores know no directories. A
//!   bucket that does not exist is [`StorageErrorKind::NotFound`].
//! * Every error passes [`scrub`], because a client's words can hold signed URLs.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, MultipartUpload, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    UploadPart,
};

use super::connect::{connect, secrets_of};
use super::{CloudLocation, CloudOptions};
use crate::error::{Context, StorageErrorKind};
use crate::object_reader::ObjectReader;
use crate::payload::MAX_BUFFERED;
use crate::redact::{Secret, scrub};
use crate::{ObjectInfo, Payload, Result, SharedStorage, Storage, StorageError, name};

/// Bytes of a part but the last one. S3 allows 5 MiB to 5 GiB.
const PART: u64 = 8 << 20;
/// Together with [`PART`] the memory that [`Payload::memory`] promises.
const PARTS_UNDER_WAY: usize = (MAX_BUFFERED / PART) as usize;
/// S3 allows so many.
const MAX_PARTS: u64 = 10_000;

/// A bucket, or a prefix of one.
pub(crate) struct CloudStorage {
    objects: ObjectReader,
    secrets: Vec<Secret>,
    storage_class: String,
}

impl CloudStorage {
    pub(super) fn open(place: &CloudLocation, options: &CloudOptions) -> Result<SharedStorage> {
        let uri = place.uri();
        let built = connect(place, options).map_err(|error| {
            let context = Context {
                action: "open",
                path: "",
                uri: &uri,
            };
            let told = StorageError {
                kind: StorageErrorKind::InvalidConfig,
                ..context.object_store(&error)
            };
            scrubbed(told, &secrets_of(place, options))
        })?;
        Ok(Arc::new(Self {
            objects: ObjectReader {
                store: built.store,
                uri,
            },
            secrets: built.secrets,
            storage_class: built.storage_class,
        }))
    }

    /// Passes an answer on without what its error must not show.
    fn clean<T>(&self, answer: Result<T>) -> Result<T> {
        answer.map_err(|error| scrubbed(error, &self.secrets))
    }

    fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new();
        if !self.storage_class.is_empty() {
            let class = self.storage_class.clone();
            attributes.insert(Attribute::StorageClass, class.into());
        }
        attributes
    }

    async fn put_whole(&self, path: &str, data: &Payload, mode: PutMode) -> Result<()> {
        let context = self.objects.context("write", path);
        let location = name::object_path(path, context)?;
        let body = read(data, 0..data.len())
            .await
            .map_err(|e| context.io(&e))?;
        let options = PutOptions {
            mode,
            attributes: self.attributes(),
            ..Default::default()
        };
        data.check_permit().map_err(|e| context.io(&e))?;
        let written = self.objects.store.put_opts(&location, body, options).await;
        written.map(drop).map_err(|e| context.object_store(&e))
    }

    async fn put_parts(&self, path: &str, data: &Payload) -> Result<()> {
        let context = self.objects.context("write", path);
        let location = name::object_path(path, context)?;
        let mut upload = self
            .begin(&location)
            .await
            .map_err(|e| context.object_store(&e))?;
        let sent = send_parts(&mut upload, data, context).await;
        let sent = sent.and_then(|()| data.check_permit().map_err(|e| context.io(&e)));
        let ended = match sent {
            Ok(()) => {
                let done = upload.get().complete().await;
                done.map(drop).map_err(|e| context.object_store(&e))
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => upload.forget(),
            Err(_) => upload.abort().await,
        }
        ended
    }

    async fn begin(&self, location: &Path) -> object_store::Result<Upload> {
        let options = PutMultipartOptions {
            attributes: self.attributes(),
            ..Default::default()
        };
        let store = &self.objects.store;
        let upload = store.put_multipart_opts(location, options).await?;
        Ok(Upload(Some(upload)))
    }

    /// An answer "exists already" can also mean that another writer is at it just now and fails
    /// later; then nothing exists, and the caller should try again.
    async fn is_there(&self, path: &str, refused: StorageError) -> StorageError {
        match self.objects.head(path).await {
            Ok(None) => StorageError {
                kind: StorageErrorKind::Transient,
                ..refused
            },
            _ => refused,
        }
    }
}

#[async_trait]
impl Storage for CloudStorage {
    async fn put(&self, path: &str, data: Payload) -> Result<()> {
        let written = if data.len() <= MAX_BUFFERED {
            self.put_whole(path, &data, PutMode::Overwrite).await
        } else {
            self.put_parts(path, &data).await
        };
        self.clean(written)
    }

    async fn put_new(&self, path: &str, data: Payload) -> Result<()> {
        let written = match self.put_whole(path, &data, PutMode::Create).await {
            Err(error) if error.kind == StorageErrorKind::AlreadyExists => {
                Err(self.is_there(path, error).await)
            }
            other => other,
        };
        self.clean(written)
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        self.clean(self.objects.get(path).await)
    }

    async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        self.clean(self.objects.get_range(path, range).await)
    }

    async fn head(&self, path: &str) -> Result<Option<ObjectInfo>> {
        self.clean(self.objects.head(path).await)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.clean(self.objects.list_below(prefix).await)
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.clean(self.objects.delete(path).await)
    }

    fn uri(&self) -> String {
        self.objects.uri.clone()
    }
}

fn scrubbed(error: StorageError, secrets: &[Secret]) -> StorageError {
    StorageError {
        detail: scrub(&error.detail, secrets),
        ..error
    }
}

/// Sends the parts in order; returns after the last one arrived, or at the first failure.
async fn send_parts(upload: &mut Upload, data: &Payload, context: Context<'_>) -> Result<()> {
    let part = PART.max(data.len().div_ceil(MAX_PARTS));
    let mut under_way: FuturesUnordered<UploadPart> = FuturesUnordered::new();
    let mut start = 0;
    while start < data.len() {
        if under_way.len() == PARTS_UNDER_WAY
            && let Some(sent) = under_way.next().await
        {
            sent.map_err(|e| context.object_store(&e))?;
        }
        let range = start..(start + part).min(data.len());
        start = range.end;
        let body = read(data, range).await.map_err(|e| context.io(&e))?;
        under_way.push(upload.get().put_part(body));
    }
    while let Some(sent) = under_way.next().await {
        sent.map_err(|e| context.object_store(&e))?;
    }
    Ok(())
}

/// Bytes for one request. Files are read on a thread that may block.
async fn read(data: &Payload, range: Range<u64>) -> io::Result<PutPayload> {
    let in_memory = data.file_bytes() == 0;
    let data = data.clone();
    let read = move || data.pieces(range).collect::<io::Result<PutPayload>>();
    if in_memory {
        return read();
    }
    let done = tokio::task::spawn_blocking(read).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// A multi-part upload that is aborted unless it was completed.
struct Upload(Option<Box<dyn MultipartUpload>>);

impl Upload {
    #[expect(
        clippy::expect_used,
        reason = "only `abort` and `forget` take it, and both end it"
    )]
    fn get(&mut self) -> &mut dyn MultipartUpload {
        self.0.as_deref_mut().expect("the upload is under way")
    }

    fn forget(mut self) {
        self.0 = None;
    }

    async fn abort(mut self) {
        if let Some(mut upload) = self.0.take() {
            // The first error is the one to tell; what stays is invisible.
            let _ = upload.abort().await;
        }
    }
}

impl Drop for Upload {
    /// The caller stopped waiting.
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                let _ = upload.abort().await;
            });
        }
    }
}
