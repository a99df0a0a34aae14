//! Merging a region (the source) into its neighbour (the target).
//!
//! A real store does it in two steps: `PrepareMerge` raises the epoch of the source, so that every
//! command that is still addressed to its old shape fails; `CommitMerge` gives its range to the target
//! and leaves a tombstone of the source; a target that changed meanwhile ends in `RollbackMerge`.
//! Here these are two holdings of the write lock, so that clients can meet the state between them; all
//! regions share one database, so no data move. A process that dies between the steps leaves the source
//! as a region of its own with the raised epoch.
//! Source: tikv/tikv `components/raftstore/src/store/fsm/apply.rs` (`exec_prepare_merge`,
//! `exec_commit_merge`, `exec_rollback_merge`). Called by the admin page, PD's operators and tests.

use std::sync::Arc;

use pitr_format::Class;
use pitr_proto::metapb::{Region, RegionEpoch};
use pitr_restore_worker::engine::{EngineCf, EngineError};
use prost::Message;

use super::change::RegionChange;
use super::kernel::{Store, WriteGuard};
use super::region::{RegionMap, meta_key};

/// Why regions were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// No such region.
    #[error("region {0} does not exist; look the regions up again")]
    Region(u64),
    /// The regions do not touch.
    #[error("regions {source_id} and {target_id} are no neighbours; look the regions up again")]
    Apart {
        /// The one to be merged.
        source_id: u64,
        /// The one that was to take it.
        target_id: u64,
    },
    /// Nobody can decide on the merge.
    #[error("region {0} has no leader; start a store")]
    Leaderless(u64),
    /// A region changed between the two steps.
    #[error("region {0} changed while it was merged; look the regions up again")]
    Changed(u64),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl MergeError {
    /// What the caller can do.
    pub fn class(&self) -> Class {
        match self {
            MergeError::Engine(error) => error.class(),
            _ => Class::Refresh,
        }
    }
}

/// The source after `PrepareMerge`. The raised `conf_ver` fends off changes of peers.
pub(crate) fn prepared(source: &Region) -> Region {
    raised(source, 1)
}

/// The source after `RollbackMerge`.
pub(crate) fn rolled_back(source: &Region) -> Region {
    raised(source, 0)
}

fn raised(region: &Region, conf_ver: u64) -> Region {
    let epoch = region.region_epoch.unwrap_or_default();
    Region {
        region_epoch: Some(RegionEpoch {
            conf_ver: epoch.conf_ver + conf_ver,
            version: epoch.version + 1,
        }),
        ..region.clone()
    }
}

/// The target after `CommitMerge` of a prepared source; `None` if they are no neighbours. Its version is
/// above both, so that whoever compares regions of the same keys keeps this one.
pub(crate) fn absorbed(target: &Region, source: &Region) -> Option<Region> {
    let (ours, theirs) = (
        target.region_epoch.unwrap_or_default(),
        source.region_epoch.unwrap_or_default(),
    );
    let mut merged = Region {
        region_epoch: Some(RegionEpoch {
            conf_ver: ours.conf_ver,
            version: ours.version.max(theirs.version) + 1,
        }),
        ..target.clone()
    };
    // An empty key is the end of everything on one side and its start on the other.
    if !target.end_key.is_empty() && target.end_key == source.start_key {
        merged.end_key = source.end_key.clone();
    } else if !target.start_key.is_empty() && target.start_key == source.end_key {
        merged.start_key = source.start_key.clone();
    } else {
        return None;
    }
    Some(merged)
}

impl Store {
    /// Merges a region into its neighbour and gives the grown target.
    pub fn merge(&self, source_id: u64, target_id: u64) -> Result<Region, MergeError> {
        let version = self.prepare_merge(source_id, target_id)?;
        self.commit_merge(source_id, version, target_id)
    }

    /// The first step; the version that the source has from now on.
    pub(super) fn prepare_merge(&self, source_id: u64, target_id: u64) -> Result<u64, MergeError> {
        let mut guard = self.lock_writes();
        let regions = guard.regions();
        let (source, target) = (led(&regions, source_id)?, led(&regions, target_id)?);
        let prepared = prepared(source);
        if absorbed(target, &prepared).is_none() {
            return Err(MergeError::Apart {
                source_id,
                target_id,
            });
        }
        let version = version_of(&prepared);
        guard.apply_epoch(prepared)?;
        Ok(version)
    }

    /// The second step, or the way back.
    pub(super) fn commit_merge(
        &self,
        source_id: u64,
        version: u64,
        target_id: u64,
    ) -> Result<Region, MergeError> {
        let mut guard = self.lock_writes();
        let regions = guard.regions();
        let source = regions.get(source_id);
        let source = source.filter(|region| version_of(region) == version);
        let source = source.ok_or(MergeError::Changed(source_id))?;
        let target = regions.get(target_id);
        let Some(merged) = target.and_then(|target| absorbed(target, source)) else {
            guard.apply_epoch(rolled_back(source))?;
            return Err(MergeError::Changed(target_id));
        };
        guard.apply_merge(Region::clone(source), merged.clone())?;
        Ok(merged)
    }
}

fn version_of(region: &Region) -> u64 {
    region.region_epoch.map_or(0, |epoch| epoch.version)
}

fn led(regions: &RegionMap, id: u64) -> Result<&Arc<Region>, MergeError> {
    let region = regions.get(id).ok_or(MergeError::Region(id))?;
    match regions.leader(id) {
        Some(_) => Ok(region),
        None => Err(MergeError::Leaderless(id)),
    }
}

impl WriteGuard<'_> {
    /// Replaces a region by itself with another epoch.
    fn apply_epoch(&mut self, region: Region) -> Result<(), EngineError> {
        self.write_everywhere(|engine, batch| {
            let cf = engine.cf(EngineCf::Lock)?;
            batch.put_cf(cf, meta_key(region.id), region.encode_to_vec());
            Ok(())
        })?;
        self.publish(|regions| regions.with_epoch(&region));
        self.tell(&RegionChange::Merging { region });
        Ok(())
    }

    /// Removes the source and replaces the target. PD gives no id twice, so nothing has to remember
    /// the source.
    fn apply_merge(&mut self, source: Region, merged: Region) -> Result<(), EngineError> {
        self.write_everywhere(|engine, batch| {
            let cf = engine.cf(EngineCf::Lock)?;
            batch.delete_cf(cf, meta_key(source.id));
            batch.put_cf(cf, meta_key(merged.id), merged.encode_to_vec());
            Ok(())
        })?;
        self.publish(|regions| regions.with_merged(&source, &merged));
        self.tell(&RegionChange::Merged {
            source,
            target: merged,
        });
        Ok(())
    }
}
