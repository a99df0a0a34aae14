//! The regions of the store: a gapless partition of the encoded key space.
//!
//! Invariants: the first region starts at the empty key, the last ends at the empty key, each
//! ends where the next begins. A map is immutable once published; a split or a merge publishes a new one.
//! Regions are kept in the lock column family below a prefix that no data key has, so that a
//! split is one atomic write. Which store leads a region is not kept: it is chosen anew at each
//! start. Called by the store's kernel, by PD and by the change data service.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use pitr_format::EncodedRange;
use pitr_format::key::{DATA_PREFIX, data_key};
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::{Peer, Region, RegionEpoch};
use prost::Message;

/// Prefix of the keys that hold regions; data keys begin with `z`.
const META_PREFIX: &[u8] = b"\x01region/";

/// The ids that one new region takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionIds {
    /// Id of the region.
    pub region: u64,
    /// Ids of its peers, one for each store, in the order of the stores.
    pub peers: Vec<u64>,
}

/// Why a list of regions is not a partition of the key space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("regions of the store: {0}; the data directory is damaged")]
pub struct RegionMapError(String);

/// All regions, by start key and by id, and who leads them.
#[derive(Clone, Debug, Default)]
pub struct RegionMap {
    by_start: BTreeMap<Bytes, Arc<Region>>,
    by_id: BTreeMap<u64, Bytes>,
    /// Store by region; a region without an entry has no leader.
    leaders: BTreeMap<u64, u64>,
}

impl RegionMap {
    /// Takes regions that cover everything exactly once. None has a leader.
    pub fn new(regions: impl IntoIterator<Item = Region>) -> Result<Self, RegionMapError> {
        let mut map = RegionMap::default();
        for region in regions {
            map.by_id.insert(region.id, region.start_key.clone());
            map.by_start
                .insert(region.start_key.clone(), Arc::new(region));
        }
        if map.by_id.len() != map.by_start.len() {
            return Err(RegionMapError("an id or a start key occurs twice".into()));
        }
        let mut expected = Some(Bytes::new());
        for region in map.by_start.values() {
            if expected.as_ref() != Some(&region.start_key) {
                return Err(RegionMapError(format!(
                    "region {} does not start where the one before it ends",
                    region.id
                )));
            }
            expected = Some(region.end_key.clone()).filter(|end| !end.is_empty());
        }
        match expected {
            None => Ok(map),
            Some(_) => Err(RegionMapError("the last region has an end".into())),
        }
    }

    /// Region that holds an encoded key (with or without ts).
    pub fn find(&self, key: &[u8]) -> Option<&Arc<Region>> {
        self.by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .map(|(_, region)| region)
    }

    /// Region by id.
    pub fn get(&self, id: u64) -> Option<&Arc<Region>> {
        self.by_start.get(self.by_id.get(&id)?)
    }

    /// The peer that leads a region.
    pub fn leader(&self, region_id: u64) -> Option<&Peer> {
        let store = self.leaders.get(&region_id)?;
        peer_on(self.get(region_id)?, *store)
    }

    /// The context that addresses a region and its leader as they are now; the first peer if
    /// nobody leads it.
    pub fn context(&self, region: &Region) -> Context {
        let peer = self.leader(region.id).or(region.peers.first());
        Context {
            region_id: region.id,
            region_epoch: region.region_epoch,
            peer: peer.cloned(),
            ..Default::default()
        }
    }

    /// The regions that a store leads, `None` for those without a leader, in key order.
    pub fn led_by(&self, store_id: Option<u64>) -> Vec<Arc<Region>> {
        let leads = |r: &&Arc<Region>| self.leaders.get(&r.id).copied() == store_id;
        self.iter().filter(leads).cloned().collect()
    }

    /// The region that ends where `region` starts.
    pub fn before(&self, region: &Region) -> Option<&Arc<Region>> {
        self.by_start
            .range::<Bytes, _>(..&region.start_key)
            .next_back()
            .map(|(_, region)| region)
    }

    /// All regions in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.by_start.values()
    }

    /// The regions that share keys with a range, in key order.
    pub fn overlapping(&self, range: &EncodedRange) -> impl Iterator<Item = &Arc<Region>> {
        let first = self.find(&range.start).map(|r| r.start_key.clone());
        self.by_start
            .range(first.unwrap_or_default()..)
            .map(|(_, region)| region)
            .take_while(move |r| range.end.is_empty() || r.start_key < range.end)
    }

    /// The same map with another leader, or none, for some regions.
    pub(crate) fn with_leaders(
        &self,
        changes: impl IntoIterator<Item = (u64, Option<u64>)>,
    ) -> Self {
        let mut map = self.clone();
        for (region_id, store_id) in changes {
            match store_id {
                Some(store) => map.leaders.insert(region_id, store),
                None => map.leaders.remove(&region_id),
            };
        }
        map
    }

    /// The same map with one region replaced by the parts it was split into, which are led by who
    /// led the region.
    pub(crate) fn with_split(&self, parts: &[Region]) -> Self {
        let mut map = self.clone();
        let leader = parts.last().and_then(|old| self.leaders.get(&old.id));
        for part in parts {
            if let Some(store) = leader {
                map.leaders.insert(part.id, *store);
            }
            map.put(part);
        }
        map
    }

    /// The same map with another epoch of one region.
    pub(crate) fn with_epoch(&self, region: &Region) -> Self {
        let mut map = self.clone();
        map.put(region);
        map
    }

    /// The same map without `source`, whose range `merged` has taken; who led `merged` still does.
    pub(crate) fn with_merged(&self, source: &Region, merged: &Region) -> Self {
        let mut map = self.clone();
        for old in [source.id, merged.id] {
            if let Some(start) = map.by_id.remove(&old) {
                map.by_start.remove(&start);
            }
        }
        map.leaders.remove(&source.id);
        map.put(merged);
        map
    }

    fn put(&mut self, region: &Region) {
        self.by_id.insert(region.id, region.start_key.clone());
        self.by_start
            .insert(region.start_key.clone(), Arc::new(region.clone()));
    }
}

/// The encoded range of a region.
pub fn range_of(region: &Region) -> EncodedRange {
    EncodedRange::new(region.start_key.clone(), region.end_key.clone())
}

/// Bounds of the data keys of a region, both with their prefix.
pub(crate) fn data_range(region: &Region) -> (Vec<u8>, Vec<u8>) {
    let end = match &region.end_key[..] {
        [] => vec![DATA_PREFIX + 1],
        end => data_key(end),
    };
    (data_key(&region.start_key), end)
}

/// The peer of a region on a store.
pub(crate) fn peer_on(region: &Region, store_id: u64) -> Option<&Peer> {
    region.peers.iter().find(|peer| peer.store_id == store_id)
}

/// The only region of new stores. Each peer after the first has raised `conf_ver` by one, as if it
/// had been added to the first.
pub(crate) fn first_region(ids: &RegionIds, stores: &[u64]) -> Region {
    let peers: Vec<Peer> = stores
        .iter()
        .zip(&ids.peers)
        .map(|(store, id)| peer(*id, *store))
        .collect();
    Region {
        id: ids.region,
        region_epoch: Some(RegionEpoch {
            conf_ver: peers.len() as u64,
            version: 1,
        }),
        peers,
        ..Default::default()
    }
}

/// Cuts a region at sorted encoded keys that lie strictly inside it. The last part keeps the id
/// (TiKV's default, `right-derive-when-split`), the others take `ids`, one each in key order; all
/// parts carry the version raised by the number of new regions.
/// Source: tikv/tikv `components/raftstore/src/store/fsm/apply.rs`, `exec_batch_split`.
pub(crate) fn cut(region: &Region, keys: &[Bytes], ids: &[RegionIds]) -> Vec<Region> {
    let epoch = region.region_epoch.unwrap_or_default();
    let region_epoch = Some(RegionEpoch {
        conf_ver: epoch.conf_ver,
        version: epoch.version + keys.len() as u64,
    });
    let mut start_key = region.start_key.clone();
    let mut parts = Vec::with_capacity(keys.len() + 1);
    for (key, ids) in keys.iter().zip(ids) {
        parts.push(Region {
            id: ids.region,
            start_key: std::mem::replace(&mut start_key, key.clone()),
            end_key: key.clone(),
            region_epoch,
            peers: old_and_new(region, ids),
            ..Default::default()
        });
    }
    parts.push(Region {
        start_key,
        region_epoch,
        ..region.clone()
    });
    parts
}

/// The peers of a new part: one on each store that has one of the old region.
fn old_and_new(region: &Region, ids: &RegionIds) -> Vec<Peer> {
    let places = region.peers.iter().zip(&ids.peers);
    places.map(|(old, id)| peer(*id, old.store_id)).collect()
}

fn peer(id: u64, store_id: u64) -> Peer {
    Peer {
        id,
        store_id,
        ..Default::default()
    }
}

/// Key under which a region is kept, in the lock column family, outside the data keys.
pub(crate) fn meta_key(region_id: u64) -> Vec<u8> {
    let mut key = META_PREFIX.to_vec();
    key.extend_from_slice(&region_id.to_be_bytes());
    key
}

/// Bounds of all keys made by [`meta_key`].
pub(crate) fn meta_range() -> (Vec<u8>, Vec<u8>) {
    let mut end = META_PREFIX.to_vec();
    end.push(u8::MAX);
    end.resize(META_PREFIX.len() + 9, u8::MAX);
    (META_PREFIX.to_vec(), end)
}

/// Reads a kept region.
pub(crate) fn decode_region(value: &[u8]) -> Result<Region, RegionMapError> {
    Region::decode(value).map_err(|e| RegionMapError(format!("a record does not decode: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, start: &'static str, end: &'static str) -> Region {
        Region {
            id,
            start_key: start.into(),
            end_key: end.into(),
            region_epoch: Some(RegionEpoch {
                conf_ver: 1,
                version: 4,
            }),
            ..Default::default()
        }
    }

    fn three() -> RegionMap {
        RegionMap::new([region(7, "", "b"), region(8, "b", "d"), region(2, "d", "")]).unwrap()
    }

    #[test]
    fn a_key_belongs_to_the_region_whose_start_is_at_or_below_it() {
        let map = three();
        let id = |key: &str| map.find(key.as_bytes()).unwrap().id;
        assert_eq!(
            [id(""), id("a"), id("b"), id("c"), id("d"), id("zz")],
            [7, 7, 8, 8, 2, 2]
        );
        assert_eq!(map.get(8).unwrap().start_key, "b");
        assert!(map.get(9).is_none());
        assert_eq!(map.before(map.get(2).unwrap()).unwrap().id, 8);
        assert!(map.before(map.get(7).unwrap()).is_none());
    }

    #[test]
    fn a_range_overlaps_the_regions_that_share_keys_with_it() {
        let map = three();
        let ids = |start: &'static str, end: &'static str| -> Vec<u64> {
            map.overlapping(&EncodedRange::new(start, end))
                .map(|r| r.id)
                .collect()
        };
        assert_eq!(ids("", ""), [7, 8, 2]);
        assert_eq!(ids("a", "b"), [7]);
        assert_eq!(ids("b", "c"), [8]);
        assert_eq!(ids("c", "dd"), [8, 2]);
    }

    #[test]
    fn regions_with_a_gap_or_an_overlap_are_refused() {
        for regions in [
            vec![],
            vec![region(1, "a", "")],
            vec![region(1, "", "a")],
            vec![region(1, "", "a"), region(2, "b", "")],
            vec![region(1, "", "b"), region(2, "a", "")],
            vec![region(1, "", "b"), region(1, "b", "")],
            vec![region(1, "", ""), region(2, "b", "")],
        ] {
            assert!(RegionMap::new(regions.clone()).is_err(), "{regions:?}");
        }
    }

    #[test]
    fn a_cut_region_leaves_its_id_to_the_last_part_and_raises_every_version() {
        let ids = [
            RegionIds {
                region: 20,
                peers: vec![21, 31],
            },
            RegionIds {
                region: 22,
                peers: vec![23, 33],
            },
        ];
        let old = Region {
            peers: vec![peer(9, 1), peer(10, 4)],
            ..region(8, "b", "d")
        };
        let parts = cut(&old, &["c".into(), "cc".into()], &ids);
        assert_eq!(parts[1].peers, [peer(23, 1), peer(33, 4)]);
        assert_eq!(parts[2].peers, old.peers);
        let shape: Vec<_> = parts
            .iter()
            .map(|r| {
                (
                    r.id,
                    r.start_key.clone(),
                    r.end_key.clone(),
                    r.region_epoch.unwrap().version,
                )
            })
            .collect();
        assert_eq!(
            shape,
            [
                (20, "b".into(), "c".into(), 6),
                (22, "c".into(), "cc".into(), 6),
                (8, "cc".into(), "d".into(), 6)
            ]
        );
        let map = three().with_leaders([(8, Some(4))]).with_split(&parts);
        assert_eq!(map.leader(22), Some(&peer(33, 4)));
        let all: Vec<Region> = map.iter().map(|r| Region::clone(r)).collect();
        assert_eq!(RegionMap::new(all).unwrap().find(b"cb").unwrap().id, 22);
        assert_eq!(map.get(8).unwrap().start_key, "cc");
    }
}
