//! The check in front of every command: is it for this store, a region of it, its peer, and for
//! the shape that the region has now? Order and words are those of TiKV
//! (tikv/tikv `components/raftstore/src/store/util.rs`, `components/error_code`), because clients
//! act on the error variant and people read the text.

use std::sync::Arc;

use pitr_proto::errorpb;
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::{Peer, Region, RegionEpoch};

use super::region::RegionMap;

/// A region error is large and rare.
pub type RegionError = Box<errorpb::Error>;

/// The region that a request addresses, or the error that makes the client look it up again. A
/// request without a context is for store 0.
pub fn check_context(
    regions: &RegionMap,
    store_id: u64,
    context: Option<&Context>,
) -> Result<Arc<Region>, RegionError> {
    let missing = Context::default();
    let context = context.unwrap_or(&missing);
    let asked_peer = context.peer.unwrap_or_default();
    if asked_peer.store_id != store_id {
        return Err(store_not_match(asked_peer.store_id, store_id));
    }
    let Some(region) = regions.get(context.region_id) else {
        return Err(region_not_found(context.region_id));
    };
    let leader = regions.leader(region.id);
    if leader.is_none_or(|leader| leader.store_id != store_id) {
        return Err(not_leader(region.id, leader));
    }
    let peer_id = leader.map_or(0, |p| p.id);
    if asked_peer.id != peer_id {
        return Err(Box::new(errorpb::Error {
            message: format!("mismatch peer id {} != {peer_id}", asked_peer.id),
            mismatch_peer_id: Some(errorpb::MismatchPeerId {
                request_peer_id: asked_peer.id,
                store_peer_id: peer_id,
            }),
            ..Default::default()
        }));
    }
    check_version(region, context.region_epoch)?;
    Ok(region.clone())
}

/// Reads and writes care about the version (splits), not about `conf_ver` (peers).
fn check_version(region: &Region, asked: Option<RegionEpoch>) -> Result<(), RegionError> {
    let Some(asked) = asked else {
        return Err(message_only("missing epoch!".into()));
    };
    let current = region.region_epoch.unwrap_or_default();
    if asked.version == current.version {
        return Ok(());
    }
    Err(Box::new(errorpb::Error {
        message: format!(
            "EpochNotMatch current epoch of region {} is conf_ver: {} version: {}, \
             but you sent conf_ver: {} version: {}",
            region.id, current.conf_ver, current.version, asked.conf_ver, asked.version
        ),
        epoch_not_match: Some(errorpb::EpochNotMatch {
            current_regions: vec![region.clone()],
        }),
        ..Default::default()
    }))
}

fn store_not_match(asked: u64, mine: u64) -> RegionError {
    Box::new(errorpb::Error {
        message: format!("to store id {asked}, mine {mine}"),
        store_not_match: Some(errorpb::StoreNotMatch {
            request_store_id: asked,
            actual_store_id: mine,
        }),
        ..Default::default()
    })
}

fn not_leader(region_id: u64, leader: Option<&Peer>) -> RegionError {
    Box::new(errorpb::Error {
        message: format!("peer is not leader for region {region_id}, leader may {leader:?}"),
        not_leader: Some(errorpb::NotLeader {
            region_id,
            leader: leader.cloned(),
        }),
        ..Default::default()
    })
}

/// The answer for a region that does not exist.
pub(crate) fn region_not_found(region_id: u64) -> RegionError {
    Box::new(errorpb::Error {
        message: format!("region {region_id} is missing"),
        region_not_found: Some(errorpb::RegionNotFound { region_id }),
        ..Default::default()
    })
}

/// An error that no field describes.
pub(crate) fn message_only(message: String) -> RegionError {
    Box::new(errorpb::Error {
        message,
        ..Default::default()
    })
}

/// The answer to an administrative command whose key lies outside of the region.
pub(crate) fn key_not_in_region(key: &[u8], region: &Region) -> RegionError {
    Box::new(errorpb::Error {
        message: format!("key {} is not in region {}", hex_upper(key), region.id),
        key_not_in_region: Some(errorpb::KeyNotInRegion {
            key: key.to_vec().into(),
            region_id: region.id,
            start_key: region.start_key.clone(),
            end_key: region.end_key.clone(),
        }),
        ..Default::default()
    })
}

/// Keys in messages are upper-case hex, as TiKV prints them.
pub(crate) fn hex_upper(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02X}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::region::{RegionIds, first_region};

    fn map() -> RegionMap {
        let ids = RegionIds {
            region: 4,
            peers: vec![5, 6],
        };
        let mut region = first_region(&ids, &[1, 2]);
        region.region_epoch = Some(epoch(1, 5));
        let map = RegionMap::new([region]).unwrap();
        map.with_leaders([(4, Some(1))])
    }

    fn epoch(conf_ver: u64, version: u64) -> RegionEpoch {
        RegionEpoch { conf_ver, version }
    }

    fn ask(region_id: u64, peer: (u64, u64), asked: RegionEpoch) -> Result<u64, RegionError> {
        let context = Context {
            region_id,
            region_epoch: Some(asked),
            peer: Some(Peer {
                id: peer.0,
                store_id: peer.1,
                ..Default::default()
            }),
            ..Default::default()
        };
        check_context(&map(), 1, Some(&context)).map(|r| r.id)
    }

    #[test]
    fn each_fault_of_a_context_has_its_own_error() {
        assert_eq!(ask(4, (5, 1), epoch(1, 5)), Ok(4));
        assert_eq!(
            ask(4, (5, 1), epoch(9, 5)),
            Ok(4),
            "conf_ver is not compared"
        );
        let error = ask(4, (5, 9), epoch(1, 5)).unwrap_err();
        assert_eq!(error.message, "to store id 9, mine 1");
        assert_eq!(error.store_not_match.unwrap().actual_store_id, 1);
        let error = ask(99999, (5, 1), epoch(1, 5)).unwrap_err();
        assert_eq!(error.message, "region 99999 is missing");
        assert_eq!(error.region_not_found.unwrap().region_id, 99999);
        let error = ask(4, (6, 1), epoch(1, 5)).unwrap_err();
        assert_eq!(error.mismatch_peer_id.unwrap().store_peer_id, 5);
        for version in [1, 8] {
            let error = ask(4, (5, 1), epoch(1, version)).unwrap_err();
            assert_eq!(
                error.message,
                format!(
                    "EpochNotMatch current epoch of region 4 is conf_ver: 1 version: 5, \
                     but you sent conf_ver: 1 version: {version}"
                )
            );
            assert_eq!(error.epoch_not_match.unwrap().current_regions[0].id, 4);
        }
    }

    #[test]
    fn a_store_that_does_not_lead_says_who_does_before_it_looks_at_peer_and_epoch() {
        let context = |peer_id| Context {
            region_id: 4,
            region_epoch: Some(epoch(1, 1)),
            peer: Some(Peer {
                id: peer_id,
                store_id: 2,
                ..Default::default()
            }),
            ..Default::default()
        };
        for peer_id in [6, 7] {
            let error = check_context(&map(), 2, Some(&context(peer_id))).unwrap_err();
            let leader = error.not_leader.unwrap().leader.unwrap();
            assert_eq!((leader.id, leader.store_id), (5, 1));
        }
        let alone = map().with_leaders([(4, None)]);
        let error = check_context(&alone, 2, Some(&context(6))).unwrap_err();
        assert_eq!(error.not_leader.unwrap().leader, None);
        assert_eq!(
            error.message,
            "peer is not leader for region 4, leader may None"
        );
    }

    #[test]
    fn a_request_without_a_context_is_for_store_zero() {
        let error = check_context(&map(), 1, None).unwrap_err();
        assert_eq!(error.message, "to store id 0, mine 1");
    }
}
