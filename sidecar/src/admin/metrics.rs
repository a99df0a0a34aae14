//! The registry behind `/metrics`: the observer's metrics (TiKV's names) and the few that belong
//! to the sidecar itself. Counters carry no `_total`, as in TiKV's log backup
//! (tikv/tikv `components/backup-stream/src/metrics.rs`).

use prometheus::{Encoder, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::members::StoreStatus;

/// Handles of all metrics.
pub struct Metrics {
    registry: Registry,
    /// Those that the observer keeps, and task states, lag and errors.
    pub observer: pitr_observer::Metrics,
    metadata_events: IntCounterVec,
    ends: IntCounterVec,
    regions: IntGaugeVec,
    stream: IntGaugeVec,
    stores: IntGaugeVec,
}

impl Metrics {
    /// Declares and registers everything.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let enabled = IntCounter::new(
            "tikv_log_backup_enabled",
            "Incremented once at start of the sidecar.",
        )?;
        enabled.inc();
        registry.register(Box::new(enabled))?;
        let metadata_events = IntCounterVec::new(
            Opts::new(
                "tikv_stream_metadata_event_count",
                "Events of the task registry by kind.",
            ),
            &["type"],
        )?;
        registry.register(Box::new(metadata_events.clone()))?;
        let ends = IntCounterVec::new(
            Opts::new("tikv_pitr_cdc_ends", "Ends of subscriptions by kind."),
            &["kind"],
        )?;
        let regions = IntGaugeVec::new(
            Opts::new(
                "tikv_pitr_cdc_regions",
                "Regions that are followed, by state.",
            ),
            &["task", "state"],
        )?;
        let stream = IntGaugeVec::new(
            Opts::new("tikv_pitr_cdc_bytes", "Bytes that the change stream holds."),
            &["task", "what"],
        )?;
        let stores = IntGaugeVec::new(
            Opts::new(
                "tikv_pitr_store_state",
                "1 for the state that a task is in on each store of the cluster.",
            ),
            &["store", "task", "state"],
        )?;
        registry.register(Box::new(stores.clone()))?;
        registry.register(Box::new(ends.clone()))?;
        registry.register(Box::new(regions.clone()))?;
        registry.register(Box::new(stream.clone()))?;
        Ok(Metrics {
            ends,
            regions,
            stream,
            stores,
            observer: pitr_observer::Metrics::new(&registry)?,
            metadata_events,
            registry,
        })
    }

    /// Counts an event of the task registry: `task_add`, `task_remove`, `task_pause`,
    /// `task_resume` or `error`.
    pub fn count_task_event(&self, kind: &str) {
        self.metadata_events.with_label_values(&[kind]).inc();
    }

    /// Counts ended subscriptions of a kind.
    pub fn count_ends(&self, kind: &str, count: u64) {
        self.ends.with_label_values(&[kind]).inc_by(count);
    }

    /// Shows the regions of a task by state.
    pub fn show_regions(&self, task: &str, states: &[(&str, usize)]) {
        show(&self.regions, task, states);
    }

    /// Shows what the change stream of a task holds.
    pub fn show_stream(&self, task: &str, bytes: &[(&str, usize)]) {
        show(&self.stream, task, bytes);
    }

    /// Shows where these tasks stand on every store.
    pub fn show_stores<'a>(&self, stores: &[StoreStatus], tasks: impl Iterator<Item = &'a String>) {
        self.stores.reset();
        for task in tasks {
            for store in stores.iter().map(|store| store.task(task)) {
                let labels = [&store.store_id.to_string()[..], task, store.state.name()];
                self.stores.with_label_values(&labels).set(1);
            }
        }
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> prometheus::Result<String> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn show(gauges: &IntGaugeVec, task: &str, values: &[(&str, usize)]) {
    for (label, value) in values {
        gauges.with_label_values(&[task, label]).set(*value as i64);
    }
}
