//! Where restored records go: regions that take SST files.
//!
//! The driver cuts files at the bounds of the regions it was told, and reloads them when the
//! target answers [`Class::Refresh`]. A cluster's adapter lives with the cluster's client; the
//! local one, a single engine, is here.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pitr_env::{Spawn, unblock};
use pitr_format::{Cf, Class, EncodedRange};

use crate::engine::{Engine, EngineCf};
use crate::sst::SstFile;

/// Why the target did not take files.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TargetError {
    /// What to do about it.
    pub class: Class,
    /// What failed, where.
    pub message: String,
    /// How long the target asks to be left alone before the next try.
    pub wait: Option<Duration>,
}

impl TargetError {
    /// An error of the given class.
    pub fn new(class: Class, message: impl fmt::Display) -> Self {
        TargetError {
            class,
            message: message.to_string(),
            wait: None,
        }
    }

    /// The same, to be repeated after `wait` at the earliest.
    #[must_use]
    pub fn after(mut self, wait: Option<Duration>) -> Self {
        self.wait = wait;
        self
    }

    /// What to do about it.
    pub fn class(&self) -> Class {
        self.class
    }
}

/// A region of the target.
#[derive(Clone)]
pub struct TargetRegion {
    /// Encoded bounds.
    pub range: EncodedRange,
    /// Whatever the target needs to address the region again (id, epoch, peers).
    pub handle: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for TargetRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetRegion")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// Takes SST files region by region.
#[async_trait]
pub trait Target: Send + Sync {
    /// Regions that cover `range` without a hole, in key order. They may reach beyond it.
    async fn regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError>;

    /// Ingests files that lie inside `region`, those of `default` first. Files of one column
    /// family do not overlap. The call must be repeatable: after an error of class `Retry` it
    /// comes again with the same files, which must then still exist.
    async fn ingest(&self, region: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError>;
}

/// One local engine as a single region, or as several for those who want files cut.
pub struct EngineTarget<E> {
    engine: Arc<E>,
    spawner: Arc<dyn Spawn>,
    bounds: Vec<EncodedRange>,
}

impl<E: Engine> EngineTarget<E> {
    /// The engine as one region; `spawner` runs its ingests.
    pub fn new(engine: Arc<E>, spawner: Arc<dyn Spawn>) -> Self {
        EngineTarget {
            engine,
            spawner,
            bounds: vec![EncodedRange::ALL],
        }
    }

    /// The engine as regions that are split at `keys` (encoded, ascending).
    pub fn with_splits(engine: Arc<E>, spawner: Arc<dyn Spawn>, keys: &[bytes::Bytes]) -> Self {
        let mut bounds = Vec::with_capacity(keys.len() + 1);
        let mut start = bytes::Bytes::new();
        for key in keys {
            bounds.push(EncodedRange::new(start, key.clone()));
            start = key.clone();
        }
        bounds.push(EncodedRange::new(start, bytes::Bytes::new()));
        EngineTarget {
            bounds,
            ..EngineTarget::new(engine, spawner)
        }
    }
}

#[async_trait]
impl<E: Engine> Target for EngineTarget<E> {
    async fn regions(&self, range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        let overlapping = self.bounds.iter().filter(|b| b.intersect(range).is_some());
        let region = |range: &EncodedRange| TargetRegion {
            range: range.clone(),
            handle: Arc::new(()),
        };
        Ok(overlapping.map(region).collect())
    }

    async fn ingest(&self, _: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError> {
        let engine = Arc::clone(&self.engine);
        let of = |cf: Cf| -> Vec<PathBuf> {
            ssts.iter()
                .filter(|s| s.cf == cf)
                .map(|s| s.path.clone())
                .collect()
        };
        let (default, write) = (of(Cf::Default), of(Cf::Write));
        let ingest = move || {
            engine.ingest(EngineCf::Default, &default)?;
            engine.ingest(EngineCf::Write, &write)
        };
        match unblock(self.spawner.as_ref(), ingest).await {
            Ok(result) => result.map_err(|e| TargetError::new(e.class(), e)),
            Err(lost) => {
                let what = format!("ingest task: {lost}");
                Err(TargetError::new(Class::Permanent, what))
            }
        }
    }
}
