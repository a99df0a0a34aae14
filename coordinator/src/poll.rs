//! Asking the stores for the regions that lag: each leader for its regions, at most 1024 at once.
//!
//! An answer counts only for the very region and version that was asked for; a region that its
//! store does not know, or knows in another version, is asked again with the next poll.

use std::collections::BTreeMap;
use std::time::Duration;

use pitr_cluster::pd::{PdClient, Region};
use pitr_format::{EncodedRange, Ts};
use pitr_proto::logbackup::log_backup_client::LogBackupClient;
use pitr_proto::logbackup::{
    GetLastFlushTsOfRegionRequest, GetLastFlushTsOfRegionResponse, RegionIdentity,
};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::CoordinatorError;
use crate::directory::Endpoint;
use crate::streams::{client, for_task};

/// Regions asked for in one call.
const BATCH: usize = 1024;
/// How long a store may take for a batch.
const CALL: Duration = Duration::from_secs(8);

/// What a poll brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Polled {
    /// Ranges and up to where they are durable.
    pub told: Vec<(EncodedRange, Ts)>,
    /// The first region without an answer: id, leader (0 = none), why.
    pub failed: Option<(u64, u64, String)>,
    /// Regions without an answer.
    pub failures: usize,
    /// The region at the begin of what was asked, and its leader.
    pub first: Option<(u64, u64)>,
}

impl Polled {
    fn fail(&mut self, region: &Region, why: &str) {
        self.failures += 1;
        if self.failed.is_none() {
            let leader = region.leader_store();
            self.failed = Some((region.meta.id, leader, why.to_owned()));
        }
    }

    fn fail_all(&mut self, regions: &[Region], why: &str) {
        regions.iter().for_each(|region| self.fail(region, why));
    }
}

/// Asks for `ranges`.
pub async fn poll(
    pd: &PdClient,
    endpoints: &[Endpoint],
    registered: i64,
    ranges: &[EncodedRange],
) -> Result<Polled, CoordinatorError> {
    let mut polled = Polled::default();
    let mut by_leader: BTreeMap<u64, BTreeMap<u64, Region>> = BTreeMap::new();
    for range in ranges {
        // Where PD has a hole at the moment, the next poll asks again.
        let (regions, _) = pd.regions_in(range).await?;
        for region in regions {
            let leader = region.leader_store();
            polled.first.get_or_insert((region.meta.id, leader));
            let of_leader = by_leader.entry(leader).or_default();
            of_leader.insert(region.meta.id, region);
        }
    }
    for (leader, regions) in by_leader {
        let regions: Vec<Region> = regions.into_values().collect();
        let endpoint = endpoints.iter().find(|end| end.store_id == leader);
        match endpoint.map(|end| client(pd.security(), &end.address)) {
            Some(Ok(mut client)) => {
                for batch in regions.chunks(BATCH) {
                    ask(&mut client, registered, batch, &mut polled).await;
                }
            }
            Some(Err(error)) => polled.fail_all(&regions, &error.to_string()),
            None => polled.fail_all(&regions, "no store leads it that could be asked"),
        }
    }
    Ok(polled)
}

/// One batch at one store.
async fn ask(
    client: &mut LogBackupClient<Channel>,
    registered: i64,
    regions: &[Region],
    polled: &mut Polled,
) {
    let request = GetLastFlushTsOfRegionRequest {
        regions: regions.iter().map(identity).collect(),
    };
    let call = client.get_last_flush_ts_of_region(for_task(request, registered));
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => read(regions, answer.into_inner(), polled),
        Ok(Err(status)) => {
            let why = format!("{:?}: {}", status.code(), status.message());
            polled.fail_all(regions, &why);
        }
        Err(_) => polled.fail_all(regions, "the store did not answer in time"),
    }
}

fn identity(region: &Region) -> RegionIdentity {
    RegionIdentity {
        id: region.meta.id,
        epoch_version: region.version(),
    }
}

/// Takes over what the answer says of the regions that were asked for.
fn read(regions: &[Region], answer: GetLastFlushTsOfRegionResponse, polled: &mut Polled) {
    let mut asked: BTreeMap<u64, &Region> = regions.iter().map(|r| (r.meta.id, r)).collect();
    for checkpoint in answer.checkpoints {
        let Some(identity_of) = checkpoint.region else {
            continue;
        };
        let Some(region) = asked.remove(&identity_of.id) else {
            continue;
        };
        match checkpoint.err {
            Some(error) => polled.fail(region, &error.message),
            None if identity_of != identity(region) => {
                polled.fail(region, "the store answered for another version of it");
            }
            None if checkpoint.checkpoint == 0 => polled.fail(region, "it was not flushed yet"),
            None => {
                let ts = Ts::new(checkpoint.checkpoint);
                polled.told.push((region.range(), ts));
            }
        }
    }
    for region in asked.into_values() {
        polled.fail(region, "the store left it out of its answer");
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::logbackup::RegionCheckpoint;
    use pitr_proto::{errorpb, metapb};

    use super::*;

    fn region(id: u64, version: u64) -> Region {
        let meta = metapb::Region {
            id,
            start_key: vec![id as u8].into(),
            end_key: vec![id as u8 + 1].into(),
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: 1,
                version,
            }),
            ..metapb::Region::default()
        };
        let leader = metapb::Peer {
            id: 9,
            store_id: 4,
            ..metapb::Peer::default()
        };
        Region::new(meta, Some(leader))
    }

    fn answer(id: u64, epoch_version: u64, checkpoint: u64) -> RegionCheckpoint {
        RegionCheckpoint {
            err: None,
            region: Some(RegionIdentity { id, epoch_version }),
            checkpoint,
        }
    }

    fn of(regions: &[Region], checkpoints: Vec<RegionCheckpoint>) -> Polled {
        let mut polled = Polled::default();
        let answer = GetLastFlushTsOfRegionResponse { checkpoints };
        read(regions, answer, &mut polled);
        polled
    }

    #[test]
    fn an_answer_in_any_order_counts_for_the_range_of_its_region() {
        let regions = [region(4, 5), region(6, 5)];
        let polled = of(&regions, vec![answer(6, 5, 60), answer(4, 5, 40)]);
        let expect = [
            (regions[1].range(), Ts::new(60)),
            (regions[0].range(), Ts::new(40)),
        ];
        assert_eq!(polled.told, expect);
        assert_eq!(polled.failures, 0);
    }

    #[test]
    fn what_is_not_said_of_the_region_and_version_asked_for_is_no_progress() {
        let refused = RegionCheckpoint {
            err: Some(errorpb::Error {
                message: "the region 7 isn't in the region_manager".to_owned(),
                ..errorpb::Error::default()
            }),
            ..answer(7, 1, 70)
        };
        let nameless = RegionCheckpoint {
            region: None,
            ..answer(4, 5, 40)
        };
        for wrong in [
            answer(4, 6, 40),
            answer(4, 5, 0),
            answer(9, 5, 90),
            nameless,
        ] {
            let polled = of(&[region(4, 5)], vec![wrong]);
            assert_eq!((polled.told.len(), polled.failures), (0, 1));
        }
        let polled = of(&[region(7, 1)], vec![refused]);
        let (id, store, why) = polled.failed.unwrap();
        assert_eq!((id, store), (7, 4));
        assert!(why.contains("region_manager"));
    }

    #[test]
    fn a_region_that_is_answered_twice_counts_once() {
        let polled = of(&[region(4, 5)], vec![answer(4, 5, 40), answer(4, 5, 99)]);
        assert_eq!(polled.told, [(region(4, 5).range(), Ts::new(40))]);
    }
}
