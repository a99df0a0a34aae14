//! One task on this store, from load to unload: runs sessions one after another, waits between
//! failures, and never gives up by itself. What a retry cannot mend (a gap, another cluster's
//! archive) is told and not retried.

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::backoff::Backoff;
use pitr_cluster::tasks::{Task, keys};
use pitr_observer::TaskStatus as MetricStatus;
use pitr_proto::backup::StreamBackupError;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::session::{self, End};
use super::{Context, GAP_CODE};
use crate::failure::Failure;
use crate::time;

/// What a runner is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Go on.
    No,
    /// Flush and publish once more, then end.
    Drain,
    /// End at once; what is not flushed is read again later, if ever.
    Drop,
}

/// Runs the task until it is told to stop; whether its last flush became durable.
pub(super) async fn run(
    context: Arc<Context>,
    task: Task,
    mut stop: watch::Receiver<Stop>,
    fatal: mpsc::Sender<Failure>,
) -> bool {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), 7);
    loop {
        match session::run(&context, &task, &mut stop).await {
            End::Stopped { clean } => return clean,
            End::Gap(reason) => {
                show_failing(&context, &task.name, &reason, true);
                report_gap(&context, &task.name, &reason).await;
                asked_to_stop(&mut stop).await;
                return true;
            }
            End::Fatal(failure) => {
                show_failing(&context, &task.name, &failure.one_line(), false);
                // Only the first fatal failure ends the process; a full channel has one.
                let _ = fatal.try_send(failure);
                asked_to_stop(&mut stop).await;
                return true;
            }
            End::Failed { failure, ran } => {
                show_failing(&context, &task.name, &failure.one_line(), false);
                if ran {
                    backoff.reset();
                }
                tokio::select! {
                    () = sleep(backoff.next_delay()) => {}
                    _ = asked_to_stop(&mut stop) => return true,
                }
            }
        }
    }
}

/// Waits until the supervisor asks for an end; how it asked. One that is gone cannot ask for
/// anything but an orderly end.
pub(super) async fn asked_to_stop(stop: &mut watch::Receiver<Stop>) -> Stop {
    match stop.wait_for(|stop| *stop != Stop::No).await {
        Ok(stop) => *stop,
        Err(_) => Stop::Drain,
    }
}

/// Tells the board, the metrics and the log.
pub(super) fn show_failing(context: &Context, task: &str, reason: &str, gap: bool) {
    context.board.set_failing(task, reason, gap);
    let metrics = &context.metrics.observer;
    metrics.set_task_status(task, MetricStatus::Error);
    if gap {
        metrics.fatal_errors.with_label_values(&[GAP_CODE]).inc();
        tracing::error!(task, reason, "the task has a gap");
    } else {
        tracing::warn!(task, reason, "the task fails; it is tried again");
    }
}

/// Puts the gap where `log status` of any tool finds it. Best effort: the board has it too.
async fn report_gap(context: &Context, task: &str, reason: &str) {
    let store = context.store_id;
    let error = StreamBackupError {
        happen_at: time::local_now().physical_ms(),
        error_code: GAP_CODE.to_owned(),
        error_message: format!("[store = {store}] {reason}"),
        store_id: store,
    };
    let key = format!("{}{task}/{store}", keys::LAST_ERROR);
    if let Err(error) = context.cluster.etcd.put(key, error.encode_to_vec()).await {
        tracing::warn!(task, %error, "the gap could not be noted in PD");
    }
}
