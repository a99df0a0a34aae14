//! Sends a generation: its merged objects side by side, then its meta.
//!
//! The plan is made once, at the first attempt, and fixes names, order, flush ts and bytes. Later
//! attempts send only what is not known to be there, so that a failed flush leaves no object that
//! nothing refers to. A write that failed *after* its effect is repeated with the same bytes under
//! the same name. Called by [`crate::Flusher`].

use std::ops::Range;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pitr_budget::Reservation;
use pitr_budget::spill::{Extent, SpillError};
use pitr_env::{Random, unblock};
use pitr_format::Ts;
use pitr_format::meta::build_group;
use pitr_format::object_name::log_path;
use pitr_storage::{Payload, Segment, Storage, StorageError, StorageErrorKind};
use tokio::sync::{Mutex, MutexGuard};

use crate::encode::{Pieces, Place, StoredSlice};
use crate::env::Env;
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
    /// A temporary file does not hold what was written to it.
    Spill(SpillError),
    /// The meta's name is taken by other content.
    Collision(String),
}

impl Upload {
    /// Lays `slices` into objects and names everything.
    pub(super) fn plan(
        slices: &[StoredSlice],
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
            let bound = |pick: fn(&StoredSlice) -> u64| inside.iter().map(pick);
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
        slices: &[StoredSlice],
        storage: &dyn Storage,
        concurrency: usize,
        env: &Env,
    ) -> Result<(), SendError> {
        let pass = Mutex::new(());
        let mut waiting = self
            .objects
            .iter_mut()
            .filter(|object| !object.uploaded)
            .map(|object| send_object(object, slices, storage, env, &pass));
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
        failed.map_or(Ok(()), Err)
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

/// Writes one object. Bytes of temporary files are proven before they are sent, so that nothing
/// of a damaged file goes out, and again before the object counts, because it is the backend that
/// read them in between.
async fn send_object(
    object: &mut MergedObject,
    slices: &[StoredSlice],
    storage: &dyn Storage,
    env: &Env,
    pass: &Mutex<()>,
) -> Result<(), SendError> {
    let body = MergedBody::of(&slices[object.members.clone()]);
    let size = body.payload.len();
    let _room = Room::take(env, body.payload.memory(), pass).await;
    body.prove(env).await?;
    let written = storage.put(&object.path, body.payload.clone()).await;
    body.prove(env).await?;
    written.map_err(SendError::Storage)?;
    object.uploaded = true;
    env.metrics.flush_file_size.observe(size as f64);
    let uploaded = &env.metrics.upload_file_size_bytes;
    uploaded.with_label_values(&["log"]).inc_by(size);
    Ok(())
}

/// Memory for the buffers of one write.
enum Room<'a> {
    /// Reserved.
    Reserved { _held: Reservation },
    /// Not reserved: one write at a time may go on like that, or a full budget would wait for a
    /// flush that waits for the budget.
    Pass { _guard: MutexGuard<'a, ()> },
}

impl<'a> Room<'a> {
    async fn take(env: &Env, bytes: u64, pass: &'a Mutex<()>) -> Self {
        tokio::select! {
            biased;
            held = env.budget.reserve(bytes) => Room::Reserved { _held: held },
            guard = pass.lock() => Room::Pass { _guard: guard },
        }
    }
}

/// The stored bytes of an object's slices, one after another.
struct MergedBody {
    payload: Payload,
    extents: Vec<Extent>,
    /// Keeps the reservations of what is in memory.
    _pieces: Vec<std::sync::Arc<Pieces>>,
}

impl MergedBody {
    fn of(members: &[StoredSlice]) -> Self {
        let mut segments = Vec::new();
        let mut extents = Vec::new();
        let mut held = Vec::new();
        for member in members {
            match member.body.place() {
                Place::Memory(pieces) => {
                    segments.extend(pieces.pieces.iter().cloned().map(Segment::Memory));
                    held.push(pieces);
                }
                Place::Disk(extent) => {
                    segments.push(Segment::File {
                        file: extent.file().clone(),
                        range: extent.range(),
                    });
                    extents.push(extent);
                }
            }
        }
        MergedBody {
            payload: Payload::new(segments),
            extents,
            _pieces: held,
        }
    }

    /// Compares what is in temporary files with what was written there.
    async fn prove(&self, env: &Env) -> Result<(), SendError> {
        if self.extents.is_empty() {
            return Ok(());
        }
        let extents = self.extents.clone();
        let prove = move || extents.iter().try_for_each(Extent::verify);
        let proven = unblock(env.spawner.as_ref(), prove).await;
        let lost = |source| SpillError::Io {
            action: "read back from",
            path: "temporary files".into(),
            source,
        };
        proven.map_err(lost).flatten().map_err(SendError::Spill)
    }
}
