//! The registry behind `/metrics`: the observer's metrics (TiKV's names) and the few that belong
//! to the sidecar itself. Counters carry no `_total`, as in TiKV's log backup
//! (tikv/tikv `components/backup-stream/src/metrics.rs`).

use pitr_cluster::tls::Security;
use pitr_coordinator::CoordinatorStatus;
use pitr_format::Ts;
use prometheus::core::Collector as _;
use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

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
    gc_margin: IntGaugeVec,
    coordinator: CoordinatorMetrics,
    certificate: Option<CertificateMetrics>,
}

/// Our certificate, looked at whenever somebody reads the metrics.
struct CertificateMetrics {
    security: Security,
    ends: IntGauge,
    reloads: IntGauge,
    unusable: IntGauge,
}

/// What only the process that coordinates has values for.
struct CoordinatorMetrics {
    leads: IntGauge,
    led: IntGaugeVec,
    gc_driven: IntGauge,
    gc_stuck: IntGauge,
}

impl Metrics {
    /// Declares and registers everything. `security`: whose certificate is shown, if there is one.
    pub fn new(security: Security) -> prometheus::Result<Self> {
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
        registry.register(Box::new(ends.clone()))?;
        let gauges = |name, help, labels| gauges(&registry, name, help, labels);
        let regions = gauges(
            "tikv_pitr_cdc_regions",
            "Regions that are followed, by state.",
            &["task", "state"],
        )?;
        let stream = gauges(
            "tikv_pitr_cdc_bytes",
            "Bytes that the change stream holds.",
            &["task", "what"],
        )?;
        let stores = gauges(
            "tikv_pitr_store_state",
            "1 for the state that a task is in on each store of the cluster.",
            &["store", "task", "state"],
        )?;
        let gc_margin = gauges(
            "tikv_pitr_gc_margin_seconds",
            "Checkpoint of a task minus PD's GC safepoint; negative: history was lost.",
            &["task"],
        )?;
        Ok(Metrics {
            ends,
            regions,
            stream,
            stores,
            gc_margin,
            coordinator: CoordinatorMetrics::new(&registry)?,
            certificate: match security.is_on() {
                true => Some(CertificateMetrics::new(security, &registry)?),
                false => None,
            },
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

    /// Shows how far GC is behind a checkpoint.
    pub fn show_gc_margin(&self, task: &str, checkpoint: Ts, safe_point: Ts) {
        let ms = |ts: Ts| i64::try_from(ts.physical_ms()).unwrap_or(i64::MAX);
        let margin = (ms(checkpoint) - ms(safe_point)) / 1000;
        self.gc_margin.with_label_values(&[task]).set(margin);
    }

    /// Removes every series of a task that is gone.
    pub fn forget_task(&self, task: &str) {
        self.observer.forget_task(task);
        for gauges in [
            &self.regions,
            &self.stream,
            &self.gc_margin,
            &self.coordinator.led,
        ] {
            forget(gauges, task);
        }
    }

    /// Shows the coordinator, as far as it is this process.
    pub fn show_coordinator(&self, status: &CoordinatorStatus) {
        self.coordinator.show(status);
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> prometheus::Result<String> {
        if let Some(certificate) = &self.certificate {
            certificate.look();
        }
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

impl CoordinatorMetrics {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| gauge(registry, name, help);
        Ok(CoordinatorMetrics {
            leads: gauge(
                "tikv_pitr_coordinator_leads",
                "1 while this process coordinates the checkpoints.",
            )?,
            led: gauges(
                registry,
                "tikv_pitr_coordinator_checkpoint_ts",
                "Checkpoint of a task, from the process that coordinates it.",
                &["task"],
            )?,
            gc_driven: gauge(
                "tikv_pitr_gc_driver_safe_point_ts",
                "GC safepoint after the last round of GC that this process drove; 0: it drives none.",
            )?,
            gc_stuck: gauge(
                "tikv_pitr_gc_driver_stuck",
                "1 while the last round of GC that this process drove moved nothing by a failure.",
            )?,
        })
    }

    fn show(&self, status: &CoordinatorStatus) {
        self.leads.set(i64::from(status.leads));
        let gc = status.gc.as_ref();
        self.gc_driven
            .set(gc.map_or(0, |round| round.safe_point as i64));
        let stuck = gc.is_some_and(|round| !round.trouble.is_empty());
        self.gc_stuck.set(i64::from(stuck));
        self.led.reset();
        for (task, progress) in &status.tasks {
            let series = self.led.with_label_values(&[task]);
            series.set(progress.global as i64);
        }
    }
}

impl CertificateMetrics {
    fn new(security: Security, registry: &Registry) -> prometheus::Result<Self> {
        Ok(CertificateMetrics {
            security,
            ends: gauge(
                registry,
                "tikv_pitr_certificate_expiry_timestamp_seconds",
                "When the certificate that this process shows ends, in seconds since 1970.",
            )?,
            reloads: gauge(
                registry,
                "tikv_pitr_certificate_reloads",
                "How often changed certificate files were taken since the start.",
            )?,
            unusable: gauge(
                registry,
                "tikv_pitr_certificate_files_unusable",
                "1 while the certificate files that are there cannot be used, and older ones are.",
            )?,
        })
    }

    fn look(&self) {
        let Some(standing) = self.security.standing() else {
            return;
        };
        self.ends.set(standing.not_after);
        self.reloads.set(standing.reloads as i64);
        self.unusable.set(i64::from(standing.complaint.is_some()));
    }
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

/// Removes the series whose label `task` has this value.
fn forget(gauges: &IntGaugeVec, task: &str) {
    for family in gauges.collect() {
        for series in family.get_metric() {
            let labels: std::collections::HashMap<&str, &str> = series
                .get_label()
                .iter()
                .map(|label| (label.name(), label.value()))
                .collect();
            if labels.get("task") == Some(&task) {
                // It may be gone meanwhile.
                let _ = gauges.remove(&labels);
            }
        }
    }
}

fn show(gauges: &IntGaugeVec, task: &str, values: &[(&str, usize)]) {
    for (label, value) in values {
        gauges.with_label_values(&[task, label]).set(*value as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_is_gone_leaves_no_series_and_others_keep_theirs() {
        let metrics = Metrics::new(Security::default()).unwrap();
        for task in ["a", "ab"] {
            metrics.show_regions(task, &[("live", 3), ("lost", 0)]);
            metrics.show_stream(task, &[("queued", 7)]);
            metrics.show_gc_margin(task, Ts::compose(5_000, 0), Ts::compose(9_000, 0));
        }
        let before = metrics.text().unwrap();
        assert!(
            before.contains("tikv_pitr_gc_margin_seconds{task=\"a\"} -4"),
            "{before}"
        );
        metrics.forget_task("a");
        let after = metrics.text().unwrap();
        assert!(!after.contains("task=\"a\""), "{after}");
        assert_eq!(after.matches("task=\"ab\"").count(), 4);
    }
}
