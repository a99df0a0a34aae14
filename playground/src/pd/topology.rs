//! What PD has to know of the store: its address and its regions.

use std::sync::Arc;

use bytes::Bytes;
use pitr_proto::{metapb, pdpb};

/// Seen from PD. Implemented by the process assembly on top of the store.
pub trait Topology: Send + Sync + 'static {
    /// The stores.
    fn stores(&self) -> Vec<metapb::Store>;
    /// Stores that are listed and do not exist.
    fn ghosts(&self) -> Vec<metapb::Store> {
        Vec::new()
    }
    /// All regions in key order; together they cover the key space.
    fn regions(&self) -> Arc<Vec<Placed>>;
    /// Gives the store that leads fewest regions one more: this one, if another leads it.
    fn scatter(&self, region_id: u64);
    /// Splits at encoded keys and returns the ids of the regions that came into being. Keys that
    /// are bounds already change nothing.
    fn split(&self, keys: &[Bytes]) -> Result<Vec<u64>, String>;
}

/// A region and the peer that leads it now.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    /// The region.
    pub region: metapb::Region,
    /// Its leader, if it has one.
    pub leader: Option<metapb::Peer>,
}

/// The region that holds `key` (encoded) in a list as [`Topology::regions`] gives it.
pub fn region_at(regions: &[Placed], key: &[u8]) -> Option<usize> {
    regions
        .partition_point(|placed| placed.region.start_key <= key)
        .checked_sub(1)
}

/// Regions that touch `[start, end)` (an empty end is unbounded), at most `limit` (≤ 0 = all).
pub fn regions_between<'a>(
    regions: &'a [Placed],
    start: &[u8],
    end: &[u8],
    limit: i32,
) -> &'a [Placed] {
    let from = region_at(regions, start).unwrap_or(0);
    let mut until = match end {
        [] => regions.len(),
        end => regions.partition_point(|placed| placed.region.start_key < end),
    };
    if let Ok(limit @ 1..) = usize::try_from(limit) {
        until = until.min(from.saturating_add(limit));
    }
    regions.get(from..until).unwrap_or(&[])
}

/// A region with its leader, as the newer calls return it.
pub fn with_leader(placed: &Placed) -> pdpb::Region {
    pdpb::Region {
        region: Some(placed.region.clone()),
        leader: placed.leader,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(bounds: &[&'static str]) -> Vec<Placed> {
        bounds
            .windows(2)
            .enumerate()
            .map(|(at, pair)| Placed {
                region: metapb::Region {
                    id: at as u64 + 1,
                    start_key: Bytes::from(pair[0]),
                    end_key: Bytes::from(pair[1]),
                    ..Default::default()
                },
                leader: None,
            })
            .collect()
    }

    fn ids(found: &[Placed]) -> Vec<u64> {
        found.iter().map(|placed| placed.region.id).collect()
    }

    #[test]
    fn a_key_belongs_to_the_region_whose_start_it_reaches() {
        let all = regions(&["", "b", "d", ""]);
        assert_eq!(region_at(&all, b""), Some(0));
        assert_eq!(region_at(&all, b"azz"), Some(0));
        assert_eq!(region_at(&all, b"b"), Some(1));
        assert_eq!(region_at(&all, b"zzz"), Some(2));
    }

    #[test]
    fn a_scan_gives_every_region_it_touches_and_stops_at_the_limit() {
        let all = regions(&["", "b", "d", ""]);
        assert_eq!(ids(regions_between(&all, b"", b"", 0)), [1, 2, 3]);
        assert_eq!(ids(regions_between(&all, b"b", b"d", -1)), [2]);
        assert_eq!(ids(regions_between(&all, b"c", b"d\0", 0)), [2, 3]);
        assert_eq!(ids(regions_between(&all, b"a", b"", 2)), [1, 2]);
        assert_eq!(ids(regions_between(&all, b"z", b"a", 0)), [0u64; 0]);
    }
}
