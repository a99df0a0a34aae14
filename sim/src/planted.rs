//! A flush table that trusts whatever it is told: the stage for planted mistakes.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_format::object_name::checkpoint_path;
use pitr_format::{EncodedRange, Ts, checkpoint_ts};
use pitr_observer::{FrontierMap, RangeProgress};
use pitr_storage::Storage;

use crate::bug::Bug;
use crate::doubles::SimStorage;
use crate::node::{Board, TableLine};

/// Tells instead of the product's publisher.
pub struct Planted {
    bug: Bug,
    frontier: FrontierMap,
    ranges: Vec<EncodedRange>,
    storage: Arc<SimStorage>,
    board: Arc<Mutex<Board>>,
    store_id: u64,
    published: Ts,
}

impl Planted {
    /// Begins where the product's publisher does.
    pub fn new(
        bug: Bug,
        start: Ts,
        ranges: Vec<EncodedRange>,
        doubles: (Arc<SimStorage>, Arc<Mutex<Board>>),
        store_id: u64,
    ) -> Self {
        Planted {
            bug,
            frontier: FrontierMap::new(start),
            ranges,
            storage: doubles.0,
            board: doubles.1,
            store_id,
            published: start,
        }
    }

    /// The global checkpoint is this.
    pub fn learn(&mut self, global: Ts) {
        for range in &self.ranges {
            self.frontier.raise(range, global);
        }
    }

    /// Believes `claims`; with [`Bug::ScanFromResolved`] whatever they rest on, with
    /// [`Bug::RegionIgnored`] without the region that holds the others back.
    fn believe(&mut self, claims: &[RangeProgress]) {
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

    /// Tells what it believes.
    pub async fn tell(&mut self, claims: &[RangeProgress]) {
        self.believe(claims);
        let line = |claim: &RangeProgress| TableLine {
            region: 0,
            version: 0,
            range: claim.range.clone(),
            ts: self.frontier.min_over(&claim.range),
        };
        let lines = claims.iter().map(line).collect();
        self.board.lock().flushed(lines);
        let ts = self.frontier.global(&self.ranges);
        if self.bug == Bug::ObjectBeforeGlobal && ts > self.published {
            let object = Bytes::copy_from_slice(&checkpoint_ts::encode(ts));
            let path = checkpoint_path(self.store_id);
            if self.storage.put(&path, object.into()).await.is_ok() {
                self.published = ts;
            }
        }
    }
}
