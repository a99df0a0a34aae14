//! Which of the regions that PD or an error names is to be subscribed.
//!
//! PD's view is older than the stream's after a split or merge, and newer when an error is still
//! on its way. `epoch.version`, which both raise, decides: a region is taken only if it is newer
//! than everything tracked in its range. Source: pingcap/ticdc `logservice/logpuller/regionlock`.

use pitr_format::EncodedRange;
use pitr_proto::metapb;
use tokio::time::Instant;

use super::core::{Action, Core};
use crate::cdc::{EndKind, EndReason};

impl Core {
    /// A region that PD says our store leads.
    pub fn consider(&mut self, region: metapb::Region, now: Instant) {
        let range = range_of(&region);
        if !self.penalties.blocks(&range, now) {
            self.take(region, range);
        }
    }

    /// A region that an `EpochNotMatch` of our store names: probably led by it. If not, the answer
    /// is `NotLeader`.
    pub fn consider_hint(&mut self, region: metapb::Region) {
        let store_id = self.store_id;
        if region.peers.iter().any(|peer| peer.store_id == store_id) {
            let range = range_of(&region);
            self.take(region, range);
        }
    }

    fn take(&mut self, region: metapb::Region, range: EncodedRange) {
        let overlaps = |other: &EncodedRange| other.intersect(&range).is_some();
        if !self.wanted.iter().any(overlaps) || self.lost.iter().any(overlaps) {
            return;
        }
        let version = version_of(&region);
        let tracked: Vec<_> = self.tracked.overlapping(&range).map(|(_, t)| *t).collect();
        let mut waiting = Vec::new();
        let mut newer_waits = false;
        for (other_range, other) in self.ready.overlapping(&range) {
            waiting.push(other_range.clone());
            newer_waits |= version_of(other) >= version;
        }
        if newer_waits || tracked.iter().any(|(_, known)| *known >= version) {
            return;
        }
        for other in waiting {
            self.ready.remove(&other);
        }
        for (sub, _) in tracked {
            let text = format!("region {} has a newer epoch", region.id);
            self.actions.push_back(Action::Unsubscribe(sub));
            self.end(sub, EndReason::new(EndKind::EpochNotMatch, text));
        }
        self.ready.insert(range, region);
    }
}

fn range_of(region: &metapb::Region) -> EncodedRange {
    EncodedRange::new(region.start_key.clone(), region.end_key.clone())
}

fn version_of(region: &metapb::Region) -> u64 {
    region.region_epoch.as_ref().map_or(0, |e| e.version)
}
