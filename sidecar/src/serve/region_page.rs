//! What the region tracker knows, shown on the status page and in the metrics: whoever looks for
//! the reason of a frontier that stands still finds it here. Written by [`super::source`].

use std::collections::BTreeMap;
use std::sync::Arc;

use pitr_cluster::cdc::{CdcStats, EndKind};
use pitr_cluster::regions::{RegionTracker, TrackerStats};

use super::Context;
use crate::admin::{RegionStatus, StreamStatus};

pub(super) struct RegionPage {
    context: Arc<Context>,
    task: String,
    /// What the metrics were told; counters go on over sessions.
    told: [u64; EndKind::ALL.len()],
}

impl RegionPage {
    pub fn new(context: Arc<Context>, task: String) -> Self {
        RegionPage {
            context,
            task,
            told: Default::default(),
        }
    }

    pub fn show(&mut self, tracker: &RegionTracker) {
        let (stats, stream) = (tracker.stats(), tracker.cdc_stats());
        let metrics = &self.context.metrics;
        for (at, kind) in EndKind::ALL.into_iter().enumerate() {
            let new = stats.ended[at] - self.told[at];
            if new > 0 {
                metrics.count_ends(kind.as_str(), new);
            }
        }
        self.told = stats.ended;
        metrics.show_regions(&self.task, &states(&stats));
        metrics.show_stream(&self.task, &bytes(&stream));
        let last_end = tracker.last_end().map(ToString::to_string);
        let page = RegionStatus {
            regions: states(&stats)
                .map(|(state, count)| (state.to_owned(), count as u64))
                .into(),
            ended: ends(&stats),
            last_end,
            stream: StreamStatus {
                queued_bytes: stream.queued_bytes as u64,
                queued_disk_bytes: stream.queued_disk_bytes as u64,
                unfinished_bytes: stream.unfinished_bytes as u64,
                unfinished_memory_bytes: stream.prewrite_bytes as u64,
            },
        };
        let board = &self.context.board;
        board.task(&self.task, |status| status.tracking = Some(page));
    }
}

fn states(stats: &TrackerStats) -> [(&'static str, usize); 6] {
    [
        ("scanning", stats.scanning),
        ("verifying", stats.verifying),
        ("live", stats.live),
        ("waiting", stats.waiting),
        ("failing", stats.failing),
        ("lost", stats.lost),
    ]
}

fn bytes(stream: &CdcStats) -> [(&'static str, usize); 4] {
    [
        ("queued", stream.queued_bytes),
        ("queued_disk", stream.queued_disk_bytes),
        ("unfinished", stream.unfinished_bytes),
        ("unfinished_memory", stream.prewrite_bytes),
    ]
}

/// Kinds that happened.
fn ends(stats: &TrackerStats) -> BTreeMap<String, u64> {
    let counts = EndKind::ALL.into_iter().zip(stats.ended);
    let happened = counts.filter(|(_, count)| *count > 0);
    let named = |(kind, count): (EndKind, u64)| (kind.as_str().to_owned(), count);
    happened.map(named).collect()
}
