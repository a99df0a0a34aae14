//! What the region trackers of a task know, shown on the status page and in the metrics: whoever
//! looks for the reason of a frontier that stands still finds it here. Written by
//! [`super::source`], with one entry for each store that is followed.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pitr_cluster::cdc::{CdcStats, EndKind};
use pitr_cluster::regions::{RegionTracker, TrackerStats};

use super::Context;
use crate::admin::{RegionStatus, StreamStatus};

pub(super) struct RegionPage {
    context: Arc<Context>,
    task: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    stores: BTreeMap<u64, Shown>,
    last_end: Option<String>,
}

/// One tracker.
#[derive(Default)]
struct Shown {
    stats: TrackerStats,
    stream: CdcStats,
    last_end: Option<String>,
}

impl RegionPage {
    pub fn new(context: Arc<Context>, task: String) -> Self {
        RegionPage {
            context,
            task,
            known: Mutex::default(),
        }
    }

    /// Shows what the tracker of a store knows now.
    pub fn show(&self, store: u64, tracker: &RegionTracker) {
        let shown = Shown {
            stats: tracker.stats(),
            stream: tracker.cdc_stats(),
            last_end: tracker.last_end().map(ToString::to_string),
        };
        let mut known = self.known.lock();
        let before = known.stores.remove(&store).unwrap_or_default();
        for (at, kind) in EndKind::ALL.into_iter().enumerate() {
            let new = shown.stats.ended[at].saturating_sub(before.stats.ended[at]);
            if new > 0 {
                self.context.metrics.count_ends(kind.as_str(), new);
            }
        }
        if shown.last_end != before.last_end {
            known.last_end.clone_from(&shown.last_end);
        }
        known.stores.insert(store, shown);
        self.publish(&known);
    }

    /// A store is followed no more.
    pub fn forget(&self, store: u64) {
        let mut known = self.known.lock();
        known.stores.remove(&store);
        self.publish(&known);
    }

    fn publish(&self, known: &Known) {
        let (stats, stream) = total(known.stores.values());
        let metrics = &self.context.metrics;
        metrics.show_regions(&self.task, &states(&stats));
        metrics.show_stream(&self.task, &bytes(&stream));
        let page = RegionStatus {
            stores: known.stores.keys().copied().collect(),
            regions: states(&stats)
                .map(|(state, count)| (state.to_owned(), count as u64))
                .into(),
            ended: ends(&stats),
            last_end: known.last_end.clone(),
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

fn total<'a>(trackers: impl Iterator<Item = &'a Shown>) -> (TrackerStats, CdcStats) {
    let (mut stats, mut stream) = (TrackerStats::default(), CdcStats::default());
    for shown in trackers {
        stats.scanning += shown.stats.scanning;
        stats.verifying += shown.stats.verifying;
        stats.live += shown.stats.live;
        stats.waiting += shown.stats.waiting;
        stats.failing += shown.stats.failing;
        stats.lost += shown.stats.lost;
        for (sum, ended) in stats.ended.iter_mut().zip(shown.stats.ended) {
            *sum += ended;
        }
        stream.queued_bytes += shown.stream.queued_bytes;
        stream.queued_disk_bytes += shown.stream.queued_disk_bytes;
        stream.unfinished_bytes += shown.stream.unfinished_bytes;
        stream.prewrite_bytes += shown.stream.prewrite_bytes;
    }
    (stats, stream)
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
