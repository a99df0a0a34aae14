//! The registry behind `/metrics`: the observer's metrics (TiKV's names) and the few that belong
//! to the sidecar itself. Counters carry no `_total`, as in TiKV's log backup
//! (tikv/tikv `components/backup-stream/src/metrics.rs`).

use prometheus::{Encoder, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

/// Handles of all metrics.
pub struct Metrics {
    registry: Registry,
    /// Those that the observer keeps, and task states, lag and errors.
    pub observer: pitr_observer::Metrics,
    metadata_events: IntCounterVec,
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
        Ok(Metrics {
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

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> prometheus::Result<String> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}
