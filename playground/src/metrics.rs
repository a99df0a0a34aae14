//! What a store's `/metrics` shows, in Prometheus' text format: names of TiKV where the meaning is the
//! same, names of our own elsewhere. Made by the store's server, counted into by its services.

use std::sync::Arc;

use prometheus::{
    Encoder, HistogramOpts, HistogramTimer, HistogramVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::cdc::hub::{Hub, Stage};
use crate::store::Store;

/// See the module.
pub(crate) struct StoreMetrics {
    registry: Registry,
    requests: Arc<KvRequests>,
    regions: IntGaugeVec,
    captured: IntGauge,
    subscriptions: IntGaugeVec,
}

/// Count and duration of the commands of clients, by kind.
pub(crate) struct KvRequests(HistogramVec);

impl KvRequests {
    /// A fresh count, of no registry.
    fn new() -> prometheus::Result<Self> {
        let options = HistogramOpts::new(
            "tikv_grpc_msg_duration_seconds",
            "Duration of the commands of clients, by kind",
        );
        Ok(KvRequests(HistogramVec::new(options, &["type"])?))
    }

    /// Counts a command of this kind when the timer is dropped.
    pub(crate) fn begin(&self, kind: &str) -> HistogramTimer {
        self.0.with_label_values(&[kind]).start_timer()
    }
}

impl StoreMetrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let metrics = StoreMetrics {
            registry: Registry::new(),
            requests: Arc::new(KvRequests::new()?),
            regions: IntGaugeVec::new(
                Opts::new(
                    "tikv_raftstore_region_count",
                    "Regions with a peer on the store, and those that it leads",
                ),
                &["type"],
            )?,
            captured: IntGauge::new(
                "tikv_cdc_captured_region_total",
                "Regions that somebody subscribes",
            )?,
            subscriptions: IntGaugeVec::new(
                Opts::new(
                    "tikv_pitr_playground_cdc_subscriptions",
                    "Subscriptions of change data by stage",
                ),
                &["stage"],
            )?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.requests.0.clone()))?;
        registry.register(Box::new(metrics.regions.clone()))?;
        registry.register(Box::new(metrics.captured.clone()))?;
        registry.register(Box::new(metrics.subscriptions.clone()))?;
        Ok(metrics)
    }

    /// Where commands are counted.
    pub(crate) fn requests(&self) -> Arc<KvRequests> {
        self.requests.clone()
    }

    /// The page, with the numbers of this moment.
    pub(crate) fn text(&self, store: &Store, hub: &Hub) -> prometheus::Result<Vec<u8>> {
        let regions = store.regions();
        let set = |of: &IntGaugeVec, label: &str, count: usize| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            of.with_label_values(&[label]).set(count);
        };
        set(&self.regions, "region", regions.iter().count());
        let led = regions.led_by(Some(store.store_id())).len();
        set(&self.regions, "leader", led);
        let (captured, stages) = hub.counts();
        self.captured
            .set(i64::try_from(captured).unwrap_or(i64::MAX));
        for (stage, label) in [
            (Stage::Pending, "pending"),
            (Stage::Scanning, "scanning"),
            (Stage::Ready, "ready"),
        ] {
            let count = stages.get(&stage).copied().unwrap_or(0);
            set(&self.subscriptions, label, count);
        }
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}
