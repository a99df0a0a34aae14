//! Every metric of the observer, declared in one place.
//!
//! Names, labels and buckets with the prefix `tikv_log_backup_` are those of tikv/tikv
//! `components/backup-stream/src/metrics.rs`, so that its dashboards work; ours begin with
//! `tikv_pitr_`. The registry is the caller's.

use pitr_format::Ts;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, core::Collector, exponential_buckets,
};

/// State of a task as `tikv_log_backup_task_status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStatus {
    /// Observing and flushing.
    Running = 0,
    /// Paused by a user or by a fatal error elsewhere.
    Paused = 1,
    /// Stopped by an error that a human must look at.
    Error = 2,
}

/// Handles to all metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Rows per batch; its sum is the number of rows.
    pub handle_kv_batch: Histogram,
    /// Rows dropped: outside of the task's ranges, or of an unknown subscription.
    pub skip_kv_count: IntCounter,
    /// Errors by `type`.
    pub errors: IntCounterVec,
    /// Errors that need a human, by `type`.
    pub fatal_errors: IntCounterVec,
    /// Bytes reserved from the memory budget.
    pub heap_memory: IntGauge,
    /// Seconds per batch, by `stage`.
    pub event_handle_duration: HistogramVec,
    /// Global checkpoint, by `task`.
    pub store_checkpoint_ts: IntGaugeVec,
    /// Seconds per flush, by `stage`.
    pub flush_duration: HistogramVec,
    /// Bytes per merged object.
    pub flush_file_size: Histogram,
    /// Bytes uploaded, by `type`.
    pub upload_file_size_bytes: IntCounterVec,
    /// Regions observed.
    pub observed_region: IntGauge,
    /// Running subscriptions.
    pub active_subscriptions: IntGauge,
    /// State by `task`.
    pub task_status: IntGaugeVec,
    /// PD's time minus the published checkpoint, by `task`, in seconds.
    pub checkpoint_lag: GaugeVec,
    /// Generations of which a flush began and did not succeed yet: 0 or 1.
    pub pending_generations: IntGauge,
    /// Generations made durable.
    pub flushed_generations: IntCounter,
    /// Events refused because a queue or the memory budget was full.
    pub refused_events: IntCounter,
    /// The configured memory budget in bytes.
    pub memory_budget: IntGauge,
    /// Most bytes that were reserved from the memory budget at a time.
    pub memory_peak: IntGauge,
    /// Bytes in temporary files.
    pub temp_bytes: IntGauge,
    /// The configured limit of `temp_bytes`.
    pub temp_quota: IntGauge,
    /// Seconds for which a shard stood still to be sealed.
    pub seal_pause: Histogram,
}

impl Metrics {
    /// Creates all metrics and registers them; fails if the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let log = Family(registry, "tikv_log_backup_");
        let own = Family(registry, "tikv_pitr_");
        Ok(Metrics {
            handle_kv_batch: log.histogram("handle_kv_batch", "Rows a batch", 1.0)?,
            skip_kv_count: log.counter("skip_kv_count", "Rows dropped")?,
            errors: log.counters("errors", "Errors")?,
            fatal_errors: log.counters("fatal_errors", "Errors that need a human")?,
            heap_memory: log.gauge("heap_memory", "Bytes held in memory")?,
            event_handle_duration: log.stages("event_handle_duration_sec", "Batches", 0.001)?,
            store_checkpoint_ts: log.gauges("store_checkpoint_ts", "Global checkpoint (TSO)")?,
            flush_duration: log.stages("flush_duration_sec", "Stages of a flush", 1.0)?,
            flush_file_size: log.histogram("flush_file_size", "Bytes a merged file", 1024.0)?,
            upload_file_size_bytes: log.counters("upload_file_size_bytes", "Bytes uploaded")?,
            observed_region: log.gauge("observed_region", "Regions observed")?,
            active_subscriptions: log.gauge("active_subscription_number", "Subscriptions")?,
            task_status: log.gauges("task_status", "0 running, 1 paused, 2 error")?,
            checkpoint_lag: own.float_gauges(
                "checkpoint_lag_seconds",
                "PD's time minus the published checkpoint",
            )?,
            pending_generations: own.gauge(
                "pending_generations",
                "Generations of which a flush began and did not succeed yet",
            )?,
            flushed_generations: own.counter("flushed_generations", "Generations made durable")?,
            refused_events: own.counter("refused_events", "Events refused for lack of room")?,
            memory_budget: own.gauge("memory_budget_bytes", "Limit of heap_memory")?,
            memory_peak: own.gauge("memory_peak_bytes", "Largest heap_memory so far")?,
            temp_bytes: own.gauge("temp_files_bytes", "Bytes in temporary files")?,
            temp_quota: own.gauge("temp_files_quota_bytes", "Limit of temp_files_bytes")?,
            seal_pause: own.histogram(
                "seal_pause_seconds",
                "How long a shard stood still to be sealed",
                0.000_05,
            )?,
        })
    }

    /// Sets the state of a task.
    pub fn set_task_status(&self, task: &str, status: TaskStatus) {
        self.task_status
            .with_label_values(&[task])
            .set(status as i64);
    }

    /// Sets the lag of a task from PD's time and the published checkpoint.
    pub fn set_lag(&self, task: &str, pd_now: Ts, checkpoint: Ts) {
        let ms = pd_now
            .physical_ms()
            .saturating_sub(checkpoint.physical_ms());
        self.checkpoint_lag
            .with_label_values(&[task])
            .set(ms as f64 / 1000.0);
    }

    /// Removes the series of a task that was unloaded.
    pub fn forget_task(&self, task: &str) {
        // An error only says that there was no such series.
        let _ = self.task_status.remove_label_values(&[task]);
        let _ = self.store_checkpoint_ts.remove_label_values(&[task]);
        let _ = self.checkpoint_lag.remove_label_values(&[task]);
    }
}

/// A registry and the prefix of the names that go there.
struct Family<'a>(&'a Registry, &'static str);

impl Family<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("{}{name}", self.1), help)
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::with_opts(self.opts(name, help))?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::with_opts(self.opts(name, help))?)
    }

    /// By `type`.
    fn counters(&self, name: &str, help: &str) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(self.opts(name, help), &["type"])?)
    }

    /// By `task`.
    fn gauges(&self, name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(self.opts(name, help), &["task"])?)
    }

    /// By `task`.
    fn float_gauges(&self, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
        self.add(GaugeVec::new(self.opts(name, help), &["task"])?)
    }

    /// 16 buckets from `first`, each twice as large as the one before.
    fn buckets(
        &self,
        name: &str,
        help: &str,
        first: f64,
    ) -> Result<HistogramOpts, prometheus::Error> {
        let buckets = exponential_buckets(first, 2.0, 16)?;
        Ok(HistogramOpts::from(self.opts(name, help)).buckets(buckets))
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        first: f64,
    ) -> Result<Histogram, prometheus::Error> {
        self.add(Histogram::with_opts(self.buckets(name, help, first)?)?)
    }

    /// Seconds by `stage`.
    fn stages(
        &self,
        name: &str,
        help: &str,
        first: f64,
    ) -> Result<HistogramVec, prometheus::Error> {
        let opts = self.buckets(name, help, first)?;
        self.add(HistogramVec::new(opts, &["stage"])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_reference_are_kept_and_a_task_leaves_no_series_behind() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.set_task_status("t", TaskStatus::Paused);
        metrics.set_lag("t", Ts::compose(5000, 0), Ts::compose(3500, 0));
        assert_eq!(metrics.task_status.with_label_values(&["t"]).get(), 1);
        assert_eq!(metrics.checkpoint_lag.with_label_values(&["t"]).get(), 1.5);
        metrics.forget_task("t");
        let names: Vec<_> = registry
            .gather()
            .iter()
            .map(|family| family.name().to_owned())
            .collect();
        assert!(!names.contains(&"tikv_log_backup_task_status".to_owned()));
        for name in [
            "tikv_log_backup_handle_kv_batch",
            "tikv_log_backup_skip_kv_count",
            "tikv_log_backup_flush_file_size",
            "tikv_log_backup_active_subscription_number",
        ] {
            assert!(names.contains(&name.to_owned()), "{name} missing");
        }
        assert!(Metrics::new(&registry).is_err());
    }
}
