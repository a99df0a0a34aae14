//! Sends a generation: its merged objects side by side, then its meta.
//!
//! The plan is made once, at the first attempt, and fixes names, order, flush ts and bytes. Later
//! attempts send only what is not known to be there, so that a failed flush leaves no object that
//! nothing refers to. A write that failed *after* its effect is repeated with the same bytes under
//! the same name. Called by [`crate::Flusher`].

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pitr_env::Random;
use pitr_format::Ts;
use pitr_format::meta::build_group;
use pitr_format::object_name::log_path;
use pitr_format::slice::SealedSlice;
use pitr_storage::{Storage, StorageError, StorageErrorKind};

use crate::flush::merge::{Piece, merge};
use crate::flush::meta::{self, MetaFacts, MetaObject};
use crate::metrics::Metrics;

/// One merged object of a generation.
pub(super) struct MergedObject {
    path: String,
    members: Range<usize>,
    uploaded: bool,
}

/// The fixed plan of a generation's flush, and how far it is.
pub(super) struct Upload {
    pub(super) flush_ts: Ts,
    pub(super) objects: Vec<MergedObject>,
    pub(super) meta: MetaObject,
    meta_written: bool,
}

/// A write of the plan failed.
#[derive(Debug)]
pub(super) enum SendError {
    Storage(StorageError),
    /// The meta's name is taken by other content.
    Collision(String),
}

impl Upload {
    /// Lays `slices` into objects and names everything.
    pub(super) fn plan(
        slices: &[SealedSlice],
        facts: MetaFacts,
        merge_limit: u64,
        random: &dyn Random,
    ) -> Self {
        let pieces: Vec<_> = slices
            .iter()
            .map(|slice| Piece {
                plain_len: slice.info.length,
                is_meta: slice.id.is_meta,
            })
            .collect();
        let mut objects = Vec::new();
        let mut groups = Vec::new();
        for members in merge(&pieces, merge_limit) {
            let inside = &slices[members.clone()];
            let bound = |pick: fn(&SealedSlice) -> u64| inside.iter().map(pick);
            let path = log_path(
                facts.store_id,
                Ts::new(bound(|s| s.info.min_ts).min().unwrap_or(0)),
                Ts::new(bound(|s| s.info.max_ts).max().unwrap_or(0)),
                random.uuid(),
                pieces[members.start].is_meta,
            );
            let infos = inside.iter().map(|slice| slice.info.clone()).collect();
            groups.push(build_group(path.clone(), infos));
            objects.push(MergedObject {
                path,
                members,
                uploaded: false,
            });
        }
        Upload {
            flush_ts: facts.flush_ts,
            objects,
            meta: meta::build(facts, groups),
            meta_written: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.meta_written && self.objects.iter().all(|object| object.uploaded)
    }

    /// Sends the objects that are not known to be there, at most `concurrency` at a time. After
    /// the first failure no further one begins, but those under way are waited for and remembered.
    pub(super) async fn send_objects(
        &mut self,
        slices: &[SealedSlice],
        storage: &dyn Storage,
        concurrency: usize,
        metrics: &Metrics,
    ) -> Result<(), SendError> {
        let mut waiting = self
            .objects
            .iter_mut()
            .filter(|object| !object.uploaded)
            .map(|object| send_object(object, slices, storage, metrics));
        let mut under_way: FuturesUnordered<_> =
            waiting.by_ref().take(concurrency.max(1)).collect();
        let mut failed = None;
        while let Some(result) = under_way.next().await {
            match (result, &failed) {
                (Ok(()), None) => under_way.extend(waiting.next()),
                (Ok(()), Some(_)) => {}
                (Err(error), _) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), |error| Err(SendError::Storage(error)))
    }

    /// Writes the meta. Created, never replaced: if the name is taken, the content tells whether
    /// an earlier attempt had its effect or a stranger writes under this store id.
    pub(super) async fn send_meta(
        &mut self,
        storage: &dyn Storage,
        metrics: &Metrics,
    ) -> Result<(), SendError> {
        let MetaObject { path, bytes } = &self.meta;
        match storage.put_new(path, bytes.clone().into()).await {
            Ok(()) => {}
            Err(error) if error.kind == StorageErrorKind::AlreadyExists => {
                let found = storage.get(path).await.map_err(SendError::Storage)?;
                if found != *bytes {
                    return Err(SendError::Collision(path.clone()));
                }
            }
            Err(error) => return Err(SendError::Storage(error)),
        }
        let uploaded = &metrics.upload_file_size_bytes;
        uploaded
            .with_label_values(&["metadata"])
            .inc_by(bytes.len() as u64);
        self.meta_written = true;
        Ok(())
    }
}

async fn send_object(
    object: &mut MergedObject,
    slices: &[SealedSlice],
    storage: &dyn Storage,
    metrics: &Metrics,
) -> Result<(), StorageError> {
    let body = body_of(&slices[object.members.clone()]);
    let size = body.len();
    storage.put(&object.path, body.into()).await?;
    object.uploaded = true;
    metrics.flush_file_size.observe(size as f64);
    let uploaded = &metrics.upload_file_size_bytes;
    uploaded.with_label_values(&["log"]).inc_by(size as u64);
    Ok(())
}

/// The stored bytes of the members one after another; no copy for a single one.
fn body_of(members: &[SealedSlice]) -> Bytes {
    if let [only] = members {
        return only.stored.clone();
    }
    let mut body = BytesMut::with_capacity(members.iter().map(|m| m.stored.len()).sum());
    for member in members {
        body.extend_from_slice(&member.stored);
    }
    body.freeze()
}
