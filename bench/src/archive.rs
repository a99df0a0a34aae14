//! An archive of the corpus, written by the observer as a daemon would.

use bytes::Bytes;
use pitr_format::backup_meta::{self, LogBackupMeta, SCHEMA_VERSION};
use pitr_format::{Ts, object_name};
use pitr_observer::SourceEvent;
use pitr_restore_worker::plan::{Plan, Slice, Window, plan};
use pitr_restore_worker::{Archive, Env};
use pitr_storage::SharedStorage;

use crate::Result;
use crate::capture::{Capture, END, send};

/// Writes `events` of the regions 1 to `regions`, slices closed at `slice_limit`.
pub async fn write(
    storage: SharedStorage,
    regions: u64,
    slice_limit: u64,
    events: Vec<SourceEvent>,
) -> Result<()> {
    let meta = backup_meta::encode(&LogBackupMeta {
        cluster_id: 1,
        cluster_version: String::new(),
        start_ts: Ts::new(1),
        backup_schema_version: SCHEMA_VERSION,
    });
    storage.put(object_name::BACKUP_META, meta.into()).await?;
    let mut capture = Capture::start(storage.clone(), 1..=regions, slice_limit).await?;
    for event in events {
        send(capture.observer(), event).await?;
    }
    capture.flush().await?;
    let checkpoint = Bytes::copy_from_slice(&END.get().to_le_bytes());
    let path = object_name::checkpoint_path(1);
    Ok(storage.put(&path, checkpoint.into()).await?)
}

/// What a restore of everything reads.
pub async fn plan_all(storage: SharedStorage) -> Result<(Plan, Archive)> {
    let archive = Archive::open(storage, Env::default()).await?;
    let window = Window {
        start: None,
        restored: END,
        ranges: Vec::new(),
        log_only: true,
    };
    Ok((plan(&archive, &window).await?, archive))
}

/// Every slice of every meta.
pub async fn slices(storage: SharedStorage) -> Result<Vec<Slice>> {
    let mut walk = Archive::open(storage, Env::default()).await?.walk().await?;
    let mut slices = Vec::new();
    while let Some(meta) = walk.next().await? {
        slices.extend(meta.content?.slices);
    }
    Ok(slices)
}
