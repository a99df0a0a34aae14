//! A region as PD reports it, and the part of a region list that can be trusted.

use bytes::Bytes;
use pitr_format::EncodedRange;
use pitr_proto::metapb;

/// A region with its leader. Bounds are encoded keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Id, bounds, epoch, peers.
    pub meta: metapb::Region,
    /// `None` while PD knows of no leader.
    pub leader: Option<metapb::Peer>,
}

impl Region {
    /// Wraps PD's message; a leader without id means "unknown".
    pub fn new(meta: metapb::Region, leader: Option<metapb::Peer>) -> Self {
        Region {
            meta,
            leader: leader.filter(|peer| peer.id != 0),
        }
    }

    /// The encoded key range.
    pub fn range(&self) -> EncodedRange {
        EncodedRange::new(self.meta.start_key.clone(), self.meta.end_key.clone())
    }

    /// Store of the leader, 0 while unknown.
    pub fn leader_store(&self) -> u64 {
        self.leader.as_ref().map_or(0, |peer| peer.store_id)
    }

    /// `epoch.version`, which every split and merge raises.
    pub fn version(&self) -> u64 {
        self.meta.region_epoch.as_ref().map_or(0, |e| e.version)
    }
}

/// Cuts a list from a region scan at the first hole or overlap: while splits are being reported PD
/// may return both. The list must begin at or before `start`; what is returned covers
/// `[start, end of the last region)` without a gap and may be empty.
pub fn contiguous_prefix(mut regions: Vec<Region>, start: &[u8]) -> Vec<Region> {
    let mut covered = Bytes::copy_from_slice(start);
    let mut keep = 0;
    for (i, region) in regions.iter().enumerate() {
        let fits = match i {
            0 => region.meta.start_key <= covered,
            _ => region.meta.start_key == covered,
        };
        if !fits {
            break;
        }
        keep = i + 1;
        covered = region.meta.end_key.clone();
        if covered.is_empty() {
            break;
        }
    }
    regions.truncate(keep);
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, start: &'static str, end: &'static str) -> Region {
        let meta = metapb::Region {
            id,
            start_key: start.into(),
            end_key: end.into(),
            ..Default::default()
        };
        Region::new(meta, Some(metapb::Peer::default()))
    }

    fn ids(regions: Vec<Region>) -> Vec<u64> {
        regions.iter().map(|r| r.meta.id).collect()
    }

    #[test]
    fn a_region_list_is_cut_at_the_first_hole_or_overlap() {
        let whole = vec![region(1, "", "b"), region(2, "b", "d"), region(3, "d", "")];
        assert_eq!(ids(contiguous_prefix(whole, b"a")), [1, 2, 3]);
        let hole = vec![region(1, "", "b"), region(2, "c", "d")];
        assert_eq!(ids(contiguous_prefix(hole, b"")), [1]);
        let overlap = vec![region(1, "", "c"), region(2, "b", "d")];
        assert_eq!(ids(contiguous_prefix(overlap, b"")), [1]);
        let late = vec![region(1, "b", "c")];
        assert_eq!(ids(contiguous_prefix(late, b"a")), Vec::<u64>::new());
    }

    #[test]
    fn a_leader_without_id_counts_as_unknown() {
        assert_eq!(region(1, "", "").leader, None);
    }
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod list_tests;
