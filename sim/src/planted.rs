//! A publication that trusts whatever it is told: the stage for planted mistakes.

use std::sync::Arc;

use bytes::Bytes;
use pitr_format::object_name::checkpoint_path;
use pitr_format::{EncodedRange, Ts, checkpoint_ts};
use pitr_observer::{FrontierMap, ProgressSink, RangeProgress};
use pitr_storage::Storage;

use crate::bug::Bug;
use crate::doubles::{SimPd, SimStorage};

/// Publishes instead of the product's publisher.
pub struct Planted {
    bug: Bug,
    frontier: FrontierMap,
    ranges: Vec<EncodedRange>,
    storage: Arc<SimStorage>,
    pd: Arc<SimPd>,
    store_id: u64,
    published: Ts,
}

impl Planted {
    /// Begins where the product's publisher does.
    pub fn new(
        bug: Bug,
        start: Ts,
        ranges: Vec<EncodedRange>,
        doubles: (Arc<SimStorage>, Arc<SimPd>),
        store_id: u64,
    ) -> Self {
        Planted {
            bug,
            frontier: FrontierMap::new(start),
            ranges,
            storage: doubles.0,
            pd: doubles.1,
            store_id,
            published: start,
        }
    }

    /// Believes `claims`; with [`Bug::ScanFromResolved`] whatever they rest on, with
    /// [`Bug::RegionIgnored`] without the region that holds the others back.
    pub fn believe(&mut self, claims: &[RangeProgress]) {
        let slowest = claims.iter().min_by_key(|claim| claim.ts);
        let fastest = claims.iter().map(|claim| claim.ts).max();
        for claim in claims {
            match self.bug {
                Bug::ScanFromResolved => self.frontier.raise(&claim.range, claim.ts),
                _ => {
                    self.frontier.apply(claim);
                }
            }
        }
        if let (Bug::RegionIgnored, Some(slowest), Some(ts)) = (self.bug, slowest, fastest) {
            self.frontier.raise(&slowest.range, ts);
        }
    }

    /// One attempt.
    pub async fn publish(&mut self) {
        let ts = self.frontier.global(&self.ranges);
        if ts <= self.published {
            return;
        }
        let object = Bytes::copy_from_slice(&checkpoint_ts::encode(ts));
        let path = checkpoint_path(self.store_id);
        if self.bug == Bug::ObjectBeforeGlobal {
            let written = self.storage.put(&path, object.into()).await;
            if written.is_ok() && self.pd.raise_global(ts).await.is_ok() {
                self.published = ts;
            }
        } else if self.pd.raise_global(ts).await.is_ok()
            && self.storage.put(&path, object.into()).await.is_ok()
        {
            self.published = ts;
        }
    }
}
