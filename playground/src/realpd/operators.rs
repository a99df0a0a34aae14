//! What PD asks for in its answers to heartbeats.
//!
//! A transfer of a leader, a split (at keys, or in the middle of what the region holds) and a merge are
//! done. Changes of peers make no sense where every store has a peer of every region, and PD has no reason
//! for them (`replicas`); should it ask nevertheless, it cancels that by its own time limit. Called by the
//! streams of heartbeats.

use std::sync::Arc;

use bytes::Bytes;
use pitr_proto::kvrpcpb::Context;
use pitr_proto::pdpb::{self, CheckPolicy};

use crate::store::Store;

/// One operator.
enum Wanted {
    Transfer { to_store: u64 },
    Split { keys: Option<Vec<Bytes>> },
    Merge { target: u64 },
}

/// What an answer asks for, if it is anything that can be done.
fn wanted(answer: &pdpb::RegionHeartbeatResponse) -> Option<Wanted> {
    if let Some(transfer) = &answer.transfer_leader {
        // With several candidates PD still names one that it likes best.
        let to_store = transfer.peer?.store_id;
        return Some(Wanted::Transfer { to_store });
    }
    if let Some(split) = &answer.split_region {
        let keys = match split.policy() {
            CheckPolicy::Usekey if split.keys.is_empty() => return None,
            CheckPolicy::Usekey => Some(split.keys.clone()),
            CheckPolicy::Scan | CheckPolicy::Approximate => None,
        };
        return Some(Wanted::Split { keys });
    }
    let target = answer.merge.as_ref()?.target.as_ref()?.id;
    Some(Wanted::Merge { target })
}

/// Does what PD asks for. What fails is asked for again, or forgotten, by PD.
pub(super) async fn obey(store: &Arc<Store>, answer: pdpb::RegionHeartbeatResponse) {
    let region = answer.region_id;
    let Some(wanted) = wanted(&answer) else {
        tracing::debug!(region, "an operator of PD is left alone");
        return;
    };
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || execute(&store, &answer, wanted)).await;
    match done {
        Ok(Ok(what)) => tracing::info!(region, what, "done as PD asked"),
        Ok(Err(error)) => tracing::info!(region, error, "PD asked in vain"),
        Err(error) => tracing::warn!(region, %error, "an operator of PD ended badly"),
    }
}

fn execute(
    store: &Store,
    answer: &pdpb::RegionHeartbeatResponse,
    wanted: Wanted,
) -> Result<&'static str, String> {
    let region = answer.region_id;
    match wanted {
        Wanted::Transfer { to_store } => {
            let done = store.transfer_leader(region, to_store);
            done.map(|()| "transfer of the leader")
                .map_err(|e| e.to_string())
        }
        Wanted::Split { keys } => {
            let keys = match keys {
                Some(keys) => keys,
                None => vec![middle(store, region)?],
            };
            let context = Context {
                region_id: region,
                region_epoch: answer.region_epoch,
                peer: answer.target_peer,
                ..Default::default()
            };
            let done = store.split(Some(&context), keys);
            done.map(|_| "split").map_err(|e| e.to_string())
        }
        Wanted::Merge { target } => {
            let done = store.merge(region, target);
            done.map(|_| "merge").map_err(|e| e.to_string())
        }
    }
}

fn middle(store: &Store, region_id: u64) -> Result<Bytes, String> {
    let regions = store.regions();
    let region = regions
        .get(region_id)
        .ok_or_else(|| format!("region {region_id} does not exist"))?;
    let middle = store.middle_of(region).map_err(|e| e.to_string())?;
    middle.ok_or_else(|| format!("region {region_id} has no key to be split at"))
}

#[cfg(test)]
mod tests {
    use pitr_proto::metapb::{Peer, Region};

    use super::*;

    fn shown(answer: &pdpb::RegionHeartbeatResponse) -> String {
        match wanted(answer) {
            None => "nothing".to_owned(),
            Some(Wanted::Transfer { to_store }) => format!("transfer to {to_store}"),
            Some(Wanted::Split { keys }) => format!("split at {:?}", keys.map(|k| k.len())),
            Some(Wanted::Merge { target }) => format!("merge into {target}"),
        }
    }

    #[test]
    fn an_answer_asks_for_one_thing_or_for_nothing_that_can_be_done() {
        let nothing = pdpb::RegionHeartbeatResponse::default;
        let split = |policy: CheckPolicy, keys: &[&'static str]| pdpb::RegionHeartbeatResponse {
            split_region: Some(pdpb::SplitRegion {
                policy: policy.into(),
                keys: keys.iter().map(|key| (*key).into()).collect(),
            }),
            ..nothing()
        };
        let transfer = |peer| pdpb::RegionHeartbeatResponse {
            transfer_leader: Some(pdpb::TransferLeader {
                peer,
                peers: Vec::new(),
            }),
            ..nothing()
        };
        let merge = |target| pdpb::RegionHeartbeatResponse {
            merge: Some(pdpb::Merge { target }),
            ..nothing()
        };
        let peer = Peer {
            id: 5,
            store_id: 4,
            ..Default::default()
        };
        let region = Region {
            id: 9,
            ..Default::default()
        };
        for (answer, expected) in [
            (nothing(), "nothing"),
            (transfer(Some(peer)), "transfer to 4"),
            (transfer(None), "nothing"),
            (split(CheckPolicy::Usekey, &["a", "b"]), "split at Some(2)"),
            (split(CheckPolicy::Usekey, &[]), "nothing"),
            (split(CheckPolicy::Scan, &[]), "split at None"),
            (split(CheckPolicy::Approximate, &[]), "split at None"),
            (merge(Some(region)), "merge into 9"),
            (merge(None), "nothing"),
        ] {
            assert_eq!(shown(&answer), expected, "{answer:?}");
        }
    }
}
