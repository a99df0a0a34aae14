//! The heartbeats of the regions: one stream to PD's leader, opened again whenever it breaks.
//!
//! A new leader knows the regions from its disk, without their leaders, so each new stream begins
//! with every region; after that those that changed are told at once and all of them every few
//! seconds, which also shows a stream that ended silently. PD answers with operators: a split at
//! given keys is done; the rest (transfer of a leader, change of peers, merge) makes no sense for
//! one store with one peer per region and is left, so that PD cancels it by its own time limit.

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::pd::PdClient;
use pitr_format::key::data_key;
use pitr_proto::kvrpcpb::Context;
use pitr_proto::metapb::Region;
use pitr_proto::pdpb::{self, pd_client::PdClient as Stub};
use pitr_restore_worker::engine::EngineCf;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_stream::wrappers::ReceiverStream;

use super::calls;
use super::report::Report;
use super::stores::now;
use crate::store::Store;

/// How often all regions are told. TiKV's default is 60 s.
const EVERY: Duration = Duration::from_secs(10);
/// Between two attempts to open a stream.
const PAUSE: Duration = Duration::from_millis(300);
/// Heartbeats on their way.
const IN_FLIGHT: usize = 64;
/// TiKV's first elected term. It never changes here, and PD compares it within one region only.
const TERM: u64 = 6;
/// First byte behind all data keys.
const DATA_END: &[u8] = b"{";

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

/// Tells PD of splits, for ever. The heartbeats say the same; PD's own statistics need this.
pub(super) async fn report_splits(client: Arc<PdClient>, report: Arc<Report>) {
    loop {
        report.split_happened.notified().await;
        for parts in report.take_splits() {
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
                    if let Some(reason) = self.obey(answer).await {
                        return reason;
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
            let regions: Vec<Region> = tokio::select! {
                _ = ticks.tick() => {
                    self.report.take_changed();
                    self.store.regions().iter().map(|r| Region::clone(r)).collect()
                }
                () = self.report.region_changed.notified() => self.report.take_changed(),
            };
            let until = now();
            for region in regions {
                let heartbeat = self.heartbeat(region, before, until);
                if requests.send(heartbeat).await.is_err() {
                    return "the stream takes no more heartbeats".to_owned();
                }
            }
            before = until;
        }
    }

    fn heartbeat(&self, region: Region, before: u64, until: u64) -> pdpb::RegionHeartbeatRequest {
        let written = self.report.take_written(region.id);
        pdpb::RegionHeartbeatRequest {
            header: self.client.header(),
            leader: region.peers.first().cloned(),
            bytes_written: written.bytes,
            keys_written: written.keys,
            approximate_size: self.approximate_size(&region),
            interval: Some(pdpb::TimeInterval {
                start_timestamp: before,
                end_timestamp: until,
            }),
            approximate_keys: 0,
            term: TERM,
            region: Some(region),
        }
    }

    /// Bytes on disk; 0, which PD takes as unknown, when the engine does not say.
    fn approximate_size(&self, region: &Region) -> u64 {
        let engine = self.store.engine();
        let start = data_key(&region.start_key);
        let end = match &region.end_key[..] {
            [] => DATA_END.to_vec(),
            end => data_key(end),
        };
        [EngineCf::Default, EngineCf::Write]
            .into_iter()
            .filter_map(|cf| engine.cf(cf).ok())
            .flat_map(|cf| {
                let range = rocksdb::Range::new(&start, &end);
                engine.db().get_approximate_sizes_cf(cf, &[range])
            })
            .sum()
    }

    /// Does what PD asks for; why the stream cannot go on, if so.
    async fn obey(&self, answer: pdpb::RegionHeartbeatResponse) -> Option<String> {
        let error = answer.header.and_then(|header| header.error);
        if let Some(error) = error.filter(|e| e.r#type != pdpb::ErrorType::Ok as i32) {
            // PD goes on with the next heartbeat after an error of one region.
            tracing::info!(
                region = answer.region_id,
                error = error.message,
                "PD on a region"
            );
            return error
                .message
                .contains("not leader")
                .then_some(error.message);
        }
        let Some(split) = answer.split_region else {
            tracing::debug!(region = answer.region_id, "an operator of PD is left alone");
            return None;
        };
        if split.policy != pdpb::CheckPolicy::Usekey as i32 || split.keys.is_empty() {
            return None;
        }
        let context = Context {
            region_id: answer.region_id,
            region_epoch: answer.region_epoch,
            peer: answer.target_peer,
            ..Default::default()
        };
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || store.split(Some(&context), split.keys));
        match done.await {
            Ok(Ok(parts)) => tracing::info!(parts = parts.len(), "split as PD asked"),
            Ok(Err(error)) => tracing::info!(%error, "PD asked for a split in vain"),
            Err(error) => tracing::warn!(%error, "a split ended badly"),
        }
        None
    }
}
