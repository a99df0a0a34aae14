//! A generation: what the shards held at one seal, and the progress that exactly this proves.
//!
//! **The only place that may advance a checkpoint.** Payload and progress come out of the shards
//! in one message and never part: progress leaves a generation only as a [`FlushedProof`], and
//! that exists only when every object of the payload and its `.meta` are durable. A retry after a
//! failed flush therefore publishes what the old payload proves, never what the store resolved
//! meanwhile. (The reference freezes the newest progress and uploads the old payload:
//! tikv/tikv `components/backup-stream/src/{endpoint,router}.rs`.)
//!
//! A claim may rest on rows of earlier generations of the same observer, so generations are
//! numbered without gaps and [`crate::Flusher`] takes them in that order only.

use std::collections::BTreeMap;
use std::thread;

use pitr_format::slice::{SealedSlice, SliceBuildError, SliceBuilder};
use pitr_format::{Class, Ts};
use pitr_proto::metapb::RegionEpoch;

use crate::flush::upload::Upload;
use crate::frontier::RangeProgress;
use crate::shard::{Fault, ShardSeal};
use crate::slices::order_of;
use crate::source::RegionMeta;
use pitr_budget::Reservation;

/// Below this plaintext size helper threads cost more than they save.
const PARALLEL_ABOVE: usize = 1 << 20;

/// A generation could not be sealed; its rows are lost to this observer, not to the store.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A slice could not be compressed or described.
    #[error("cannot seal a slice: {0}; start the observer again from the durable frontier")]
    Slice(#[from] SliceBuildError),
    /// A shard thread ended.
    #[error("a shard of the observer stopped; start the observer again from the durable frontier")]
    Stopped,
}

impl SealError {
    /// What a caller can do.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// Sealed slices, the progress they prove, and how far their upload is.
pub struct Generation {
    id: u64,
    slices: Vec<SealedSlice>,
    progress: Vec<RangeProgress>,
    live_min: Option<Ts>,
    faults: Vec<Fault>,
    pub(super) upload: Option<Upload>,
    reservation: Option<Reservation>,
}

impl Generation {
    /// Puts the answers of all shards together. `id` counts the seals of one observer from 1;
    /// `encoders` threads compress.
    pub fn assemble(id: u64, seals: Vec<ShardSeal>, encoders: usize) -> Result<Self, SealError> {
        let mut open = Vec::new();
        let mut progress = Vec::new();
        let mut faults = Vec::new();
        let mut regions = BTreeMap::<u64, Vec<RegionMeta>>::new();
        let mut live_min = None;
        let mut reservation: Option<Reservation> = None;
        for seal in seals {
            open.extend(seal.slices);
            progress.extend(seal.claims.progress);
            faults.extend(seal.faults);
            live_min = live_min.into_iter().chain(seal.claims.live_min).min();
            for region in seal.claims.regions {
                regions.entry(region.id).or_default().push(region);
            }
            reservation = match (reservation, seal.reservation) {
                (Some(mut held), Some(more)) => {
                    held.absorb(more);
                    Some(held)
                }
                (held, more) => held.or(more),
            };
        }
        // Stable: slices of one key stay in the order in which they were filled.
        open.sort_by_key(|slice| order_of(slice.id()));
        let mut slices = encode(open, encoders)?;
        for slice in &mut slices {
            describe_region(slice, &regions);
        }
        let stored: u64 = slices.iter().map(|slice| slice.stored.len() as u64).sum();
        if let Some(held) = &mut reservation {
            held.shrink_to(stored);
        }
        Ok(Generation {
            id,
            slices,
            progress,
            live_min,
            faults,
            upload: None,
            reservation,
        })
    }

    /// Its number: 1, 2, 3… for one observer.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its slices: data before meta, then by table, region, column family, operation.
    pub fn slices(&self) -> &[SealedSlice] {
        &self.slices
    }

    /// What it will prove once it is durable.
    pub fn progress(&self) -> &[RangeProgress] {
        &self.progress
    }

    /// Smallest claim of the subscriptions that ran at the seal; `None` without any.
    pub fn live_min(&self) -> Option<Ts> {
        self.live_min
    }

    /// Subscriptions that lost a row since the seal before: end them and subscribe again.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The payload and its upload, once that is planned.
    pub(super) fn upload_parts(&mut self) -> Option<(&[SealedSlice], &mut Upload)> {
        Some((&self.slices, self.upload.as_mut()?))
    }

    /// The proof, if every object and the meta are durable. Gives the memory of the payload back.
    pub(super) fn prove(&mut self) -> Option<FlushedProof> {
        let upload = self.upload.as_ref().filter(|upload| upload.is_done())?;
        let proof = FlushedProof {
            generation: self.id,
            flush_ts: upload.flush_ts,
            meta_path: upload.meta.path.clone(),
            objects: upload.objects.len(),
            progress: self.progress.clone(),
        };
        self.slices = Vec::new();
        self.reservation = None;
        Some(proof)
    }
}

/// What a durable generation proves. Made by a successful flush only, spent by
/// [`crate::Publisher::absorb`].
#[derive(Clone, Debug)]
pub struct FlushedProof {
    generation: u64,
    flush_ts: Ts,
    meta_path: String,
    objects: usize,
    progress: Vec<RangeProgress>,
}

impl FlushedProof {
    /// The generation's number.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The flush ts in the name of its meta.
    pub fn flush_ts(&self) -> Ts {
        self.flush_ts
    }

    /// Name of its `.meta` object.
    pub fn meta_path(&self) -> &str {
        &self.meta_path
    }

    /// Number of `.log` objects.
    pub fn objects(&self) -> usize {
        self.objects
    }

    /// What is proven.
    pub fn progress(&self) -> &[RangeProgress] {
        &self.progress
    }
}

/// Compresses the slices, in the same order.
#[expect(
    clippy::disallowed_methods,
    reason = "scoped helpers of one call, gone when it returns"
)]
fn encode(open: Vec<SliceBuilder>, encoders: usize) -> Result<Vec<SealedSlice>, SliceBuildError> {
    let plain: usize = open.iter().map(|slice| slice.plain_len()).sum();
    let encoders = encoders.clamp(1, open.len().max(1));
    if encoders == 1 || plain < PARALLEL_ABOVE {
        return open.into_iter().map(SliceBuilder::seal).collect();
    }
    let mut lanes: Vec<Vec<(usize, SliceBuilder)>> = (0..encoders).map(|_| Vec::new()).collect();
    for (index, slice) in open.into_iter().enumerate() {
        lanes[index % encoders].push((index, slice));
    }
    let mut sealed = thread::scope(|scope| {
        let workers: Vec<_> = lanes
            .into_iter()
            .map(|lane| {
                scope.spawn(move || {
                    lane.into_iter()
                        .map(|(index, slice)| Ok((index, slice.seal()?)))
                        .collect::<Result<Vec<_>, SliceBuildError>>()
                })
            })
            .collect();
        let mut sealed = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(part) => sealed.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, SliceBuildError>(sealed)
    })?;
    sealed.sort_by_key(|(index, _)| *index);
    Ok(sealed.into_iter().map(|(_, slice)| slice).collect())
}

/// Fills bounds and epochs of the slice's region. With one epoch the bounds belong to it, as
/// readers that split by them expect; with several they are those of the newest version.
fn describe_region(slice: &mut SealedSlice, regions: &BTreeMap<u64, Vec<RegionMeta>>) {
    let Some(seen) = regions.get(&slice.id.region_id) else {
        return;
    };
    if let Some(newest) = seen.iter().max_by_key(|r| (r.version, r.conf_ver)) {
        slice.info.region_start_key = newest.range.start.clone();
        slice.info.region_end_key = newest.range.end.clone();
    }
    let mut epochs: Vec<_> = seen.iter().map(|r| (r.version, r.conf_ver)).collect();
    epochs.sort_unstable();
    epochs.dedup();
    slice.info.region_epoch = epochs
        .into_iter()
        .map(|(version, conf_ver)| RegionEpoch { conf_ver, version })
        .collect();
}
