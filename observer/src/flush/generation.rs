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
use std::sync::Arc;

use pitr_format::slice::SliceBuildError;
use pitr_format::{Class, Ts};
use pitr_proto::metapb::RegionEpoch;

use crate::encode::{Closed, StoredSlice, Tools};
use crate::flush::upload::Upload;
use crate::frontier::RangeProgress;
use crate::shard::{Fault, ShardSeal};
use crate::slices::order_of;
use crate::source::RegionMeta;
use crate::tracker::TrackerSeal;

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
    slices: Vec<StoredSlice>,
    progress: Vec<RangeProgress>,
    /// Every region and version that was tailed.
    regions: Vec<Arc<RegionMeta>>,
    live_min: Option<Ts>,
    faults: Vec<Fault>,
    pub(super) upload: Option<Upload>,
}

/// What one shard answered to a seal, with its slices stored.
pub(crate) struct SealedShard {
    /// Of one key in the order in which they were filled.
    pub slices: Vec<StoredSlice>,
    /// What they prove.
    pub claims: TrackerSeal,
    /// Subscriptions that lost a row.
    pub faults: Vec<Fault>,
}

impl Generation {
    /// Puts the answers of all shards together and compresses their slices on the calling thread,
    /// for those who drive [`crate::ShardCore`] themselves. `id` counts the seals of one observer
    /// from 1.
    pub fn assemble(id: u64, seals: Vec<ShardSeal>) -> Result<Self, SealError> {
        let mut tools = Tools::unlimited();
        let shards = seals
            .into_iter()
            .map(|seal| store_here(seal, &mut tools))
            .collect::<Result<_, _>>()?;
        Ok(Self::of_shards(id, shards))
    }

    /// Puts the answers of all shards to seal `id` together.
    pub(crate) fn of_shards(id: u64, shards: Vec<SealedShard>) -> Self {
        let mut slices = Vec::new();
        let mut progress = Vec::new();
        let mut faults = Vec::new();
        let mut regions = BTreeMap::<u64, Vec<Arc<RegionMeta>>>::new();
        let mut live_min = None;
        for shard in shards {
            slices.extend(shard.slices);
            progress.extend(shard.claims.claims.iter().map(|claim| claim.progress()));
            faults.extend(shard.faults);
            live_min = live_min.into_iter().chain(shard.claims.live_min).min();
            for claim in shard.claims.claims {
                regions
                    .entry(claim.region.id)
                    .or_default()
                    .push(claim.region);
            }
        }
        // Stable: slices of one key stay in the order in which they were filled.
        slices.sort_by_key(|slice| order_of(&slice.id));
        for slice in &mut slices {
            describe_region(slice, &regions);
        }
        let mut regions: Vec<_> = regions.into_values().flatten().collect();
        regions.sort_by_key(|region| (region.id, region.version));
        regions.dedup_by_key(|region| (region.id, region.version));
        Generation {
            id,
            slices,
            progress,
            regions,
            live_min,
            faults,
            upload: None,
        }
    }

    /// Its number: 1, 2, 3… for one observer.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its slices: data before meta, then by table, region, column family, operation.
    pub fn slices(&self) -> &[StoredSlice] {
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
    pub(super) fn upload_parts(&mut self) -> Option<(&[StoredSlice], &mut Upload)> {
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
            regions: self.regions.clone(),
        };
        self.slices = Vec::new();
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
    regions: Vec<Arc<RegionMeta>>,
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

    /// The regions that were tailed, in every version, ascending.
    pub fn regions(&self) -> &[Arc<RegionMeta>] {
        &self.regions
    }
}

fn store_here(seal: ShardSeal, tools: &mut Tools) -> Result<SealedShard, SliceBuildError> {
    let mut reservation = seal.reservation;
    let open = seal.slots.into_slices().map(|(slice, bytes)| Closed {
        slice,
        held: reservation.as_mut().map(|held| held.split(bytes)),
    });
    let slices = seal.backlog.into_iter().chain(open);
    Ok(SealedShard {
        slices: slices
            .map(|slice| slice.store(tools))
            .collect::<Result<_, _>>()?,
        claims: seal.claims,
        faults: seal.faults,
    })
}

/// Fills bounds and epochs of the slice's region. With one epoch the bounds belong to it, as
/// readers that split by them expect; with several they are those of the newest version.
fn describe_region(slice: &mut StoredSlice, regions: &BTreeMap<u64, Vec<Arc<RegionMeta>>>) {
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
