//! The heartbeats of the regions that one store leads: one stream per store to PD's leader, opened again
//! whenever it breaks. PD sends the operators of a region on the stream of its leader's store.
//!
//! A new leader of PD knows the regions from its disk, without their leaders, so each new stream begins
//! with every region; after that those that changed are told at once and all of them every few
//! seconds, which also shows a stream that ended silently.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::pd::PdClient;
use pitr_proto::metapb::Region;
use pitr_proto::pdpb::{self, pd_client::PdClient as Stub};
use pitr_restore_worker::engine::EngineCf;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;

use super::calls;
use super::operators::obey;
use super::report::Report;
use super::stores::now;
use crate::store::{Store, data_range};

/// How often all regions are told. TiKV's default is 60 s.
const EVERY: Duration = Duration::from_secs(10);
/// Between two attempts to open a stream.
const PAUSE: Duration = Duration::from_millis(300);
/// Heartbeats on their way.
const IN_FLIGHT: usize = 64;

/// Keeps a stream open for ever.
pub(super) async fn run(client: Arc<PdClient>, store: Arc<Store>, report: Arc<Report>) {
    let sender = Heartbeats {
        client,
        store,
        report,
    };
    let mut last = String::new();
    loop {
        let reason = sender.stream().await;
        // Three times a second during an election: each reason is worth one line.
        if reason != last {
            tracing::info!(reason, "opening the stream of region heartbeats again");
            last = reason;
        }
        sender.client.forget_leader();
        sleep(PAUSE).await;
    }
}

/// Tells PD of the splits of regions that the store leads, for ever. The heartbeats say the same; PD's own
/// statistics need this.
pub(super) async fn report_splits(client: Arc<PdClient>, store: Arc<Store>, report: Arc<Report>) {
    loop {
        report.split_happened.notified().await;
        for parts in report.take_splits() {
            if parts.last().is_none_or(|old| store.leads(old.id).is_err()) {
                continue;
            }
            if let Err(error) = calls::report_split(&client, parts).await {
                tracing::warn!(%error, "PD has not taken the report of a split");
            }
        }
    }
}

struct Heartbeats {
    client: Arc<PdClient>,
    store: Arc<Store>,
    report: Arc<Report>,
}

impl Heartbeats {
    /// One stream until it breaks; why it broke.
    async fn stream(&self) -> String {
        let channel = match self.client.leader_channel().await {
            Ok(channel) => channel,
            Err(error) => return error.to_string(),
        };
        let (requests, outgoing) = mpsc::channel(IN_FLIGHT);
        // PD sends no header before its first answer, which may come after a minute or never: the
        // answers are awaited beside the requests.
        tokio::select! {
            reason = self.receive(Stub::new(channel), outgoing) => reason,
            reason = self.send(requests) => reason,
        }
    }

    async fn receive(
        &self,
        mut stub: Stub<tonic::transport::Channel>,
        outgoing: mpsc::Receiver<pdpb::RegionHeartbeatRequest>,
    ) -> String {
        let opened = stub.region_heartbeat(ReceiverStream::new(outgoing)).await;
        let mut answers = match opened {
            Ok(answers) => answers.into_inner(),
            Err(status) => return format!("{:?}: {}", status.code(), status.message()),
        };
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    match failure(&answer) {
                        Some(reason) if reason.contains("not leader") => return reason,
                        // PD goes on with the next heartbeat after an error of one region.
                        Some(error) => {
                            tracing::info!(region = answer.region_id, error, "PD on a region");
                        }
                        None => obey(&self.store, answer).await,
                    }
                }
                Ok(None) => return "PD ended the stream".to_owned(),
                Err(status) => return format!("{:?}: {}", status.code(), status.message()),
            }
        }
    }

    async fn send(&self, requests: mpsc::Sender<pdpb::RegionHeartbeatRequest>) -> String {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = now();
        loop {
            let regions: BTreeSet<u64> = tokio::select! {
                _ = ticks.tick() => {
                    self.report.take_changed();
                    self.store.regions().iter().map(|region| region.id).collect()
                }
                () = self.report.region_changed.notified() => self.report.take_changed(),
            };
            let until = now();
            for region_id in regions {
                let Some(heartbeat) = self.heartbeat(region_id, before, until) else {
                    continue;
                };
                if requests.send(heartbeat).await.is_err() {
                    return "the stream takes no more heartbeats".to_owned();
                }
            }
            before = until;
        }
    }

    /// Of a region that the store leads.
    fn heartbeat(
        &self,
        region_id: u64,
        before: u64,
        until: u64,
    ) -> Option<pdpb::RegionHeartbeatRequest> {
        // Before the leader is looked at: an old leader never comes with a new term.
        let term = self.report.term.get();
        let regions = self.store.regions();
        let leader = regions.leader(region_id);
        let leader = *leader.filter(|peer| peer.store_id == self.store.store_id())?;
        let region = Region::clone(regions.get(region_id)?);
        let written = self.report.take_written(region_id);
        Some(pdpb::RegionHeartbeatRequest {
            header: self.client.header(),
            leader: Some(leader),
            bytes_written: written.bytes,
            keys_written: written.keys,
            approximate_size: self.approximate_size(&region),
            interval: Some(pdpb::TimeInterval {
                start_timestamp: before,
                end_timestamp: until,
            }),
            approximate_keys: 0,
            term,
            region: Some(region),
        })
    }

    /// Bytes on disk; 0, which PD takes as unknown, when the engine does not say.
    fn approximate_size(&self, region: &Region) -> u64 {
        let engine = self.store.engine();
        let (start, end) = data_range(region);
        [EngineCf::Default, EngineCf::Write]
            .into_iter()
            .filter_map(|cf| engine.cf(cf).ok())
            .flat_map(|cf| {
                let range = rocksdb::Range::new(&start, &end);
                engine.db().get_approximate_sizes_cf(cf, &[range])
            })
            .sum()
    }
}

/// What PD has against a heartbeat.
fn failure(answer: &pdpb::RegionHeartbeatResponse) -> Option<String> {
    let error = answer.header.as_ref()?.error.as_ref()?;
    (error.r#type != pdpb::ErrorType::Ok as i32).then(|| error.message.clone())
}
