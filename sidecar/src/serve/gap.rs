//! History that GC removed before it was in the archive: the task is broken at its checkpoint, for
//! good. Told on the page, in the metrics and in PD, where every tool's `log status` finds it.

use pitr_cluster::tasks::keys;
use pitr_format::Ts;
use pitr_observer::TaskStatus as MetricStatus;
use pitr_proto::backup::StreamBackupError;
use prost::Message;

use super::GAP_CODE;
use crate::admin::{Board, Metrics};
use crate::cluster::Cluster;
use crate::time;

/// Why a task whose checkpoint is `global` is broken.
pub(super) fn reason(global: Ts, safe_point: Ts) -> String {
    format!(
        "broken at {}: GC removed history that the task still needs, its safepoint is {}; take a \
         new full copy and start a new task into a new archive",
        time::line(global),
        time::line(safe_point),
    )
}

/// Tells everybody. Best effort at PD: the page has it too.
pub(super) async fn declare(
    cluster: &Cluster,
    board: &Board,
    metrics: &Metrics,
    task: &str,
    store: u64,
    reason: &str,
) {
    board.set_failing(task, reason, true);
    metrics.observer.set_task_status(task, MetricStatus::Error);
    let fatal = &metrics.observer.fatal_errors;
    fatal.with_label_values(&[GAP_CODE]).inc();
    tracing::error!(task, reason, "the task has a gap");
    let error = StreamBackupError {
        happen_at: time::local_now().physical_ms(),
        error_code: GAP_CODE.to_owned(),
        error_message: format!("[store = {store}] {reason}"),
        store_id: store,
    };
    let key = format!("{}{task}/{store}", keys::LAST_ERROR);
    if let Err(error) = cluster.etcd.put(key, error.encode_to_vec()).await {
        tracing::warn!(task, %error, "the gap could not be noted in PD");
    }
}
