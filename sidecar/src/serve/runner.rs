//! One task on this store, from load to unload: runs sessions one after another, waits between
//! failures, and never gives up by itself. What a retry cannot mend (a gap, another cluster's
//! archive) is told and not retried.

use std::sync::Arc;
use std::time::Duration;

use pitr_cluster::backoff::Backoff;
use pitr_cluster::tasks::Task;
use pitr_observer::TaskStatus as MetricStatus;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::session::{self, End};
use super::{Context, gap};
use crate::admin::TaskState;
use crate::failure::Failure;
use crate::log_backup::FlushOrder;
use crate::log_backup::orders::answer_all;

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

/// What a runner hears from outside.
pub(super) struct Inbox {
    /// How it is to end.
    pub stop: watch::Receiver<Stop>,
    /// Flushes that somebody asked for.
    pub orders: mpsc::Receiver<FlushOrder>,
}

impl Inbox {
    /// Waits until the supervisor asks for an end; whoever wants a flush meanwhile is told why there
    /// is none.
    pub async fn stopped_while(&mut self, reason: &str) -> Stop {
        loop {
            tokio::select! {
                how = asked_to_stop(&mut self.stop) => return how,
                Some(order) = self.orders.recv() => {
                    answer_all(&mut self.orders, order, Err(reason.to_owned()));
                }
            }
        }
    }
}

/// Runs the task until it is told to stop; whether its last flush became durable.
pub(super) async fn run(
    context: Arc<Context>,
    task: Task,
    mut inbox: Inbox,
    fatal: mpsc::Sender<Failure>,
) -> bool {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), 7);
    loop {
        match session::run(&context, &task, &mut inbox).await {
            End::Stopped { clean } => return clean,
            End::Gap(reason) => {
                gap::declare(
                    &context.cluster,
                    &context.board,
                    &context.metrics,
                    &task.name,
                    context.store_id,
                    &reason,
                )
                .await;
                inbox.stopped_while(&reason).await;
                return true;
            }
            End::Finished => {
                let board = &context.board;
                board.set_state(&task.name, task.info.start_ts, TaskState::Finished);
                tracing::info!(task = task.name, "the archive reaches the end of the task");
                inbox.stopped_while("the task is finished").await;
                return true;
            }
            End::Fatal(failure) => {
                show_failing(&context, &task.name, &failure.one_line());
                let reason = failure.one_line();
                // Only the first fatal failure ends the process; a full channel has one.
                let _ = fatal.try_send(failure);
                inbox.stopped_while(&reason).await;
                return true;
            }
            End::Failed { failure, ran } => {
                let reason = failure.one_line();
                show_failing(&context, &task.name, &reason);
                if ran {
                    backoff.reset();
                }
                tokio::select! {
                    () = sleep(backoff.next_delay()) => {}
                    _ = inbox.stopped_while(&reason) => return true,
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
pub(super) fn show_failing(context: &Context, task: &str, reason: &str) {
    context.board.set_failing(task, reason, false);
    let metrics = &context.metrics.observer;
    metrics.set_task_status(task, MetricStatus::Error);
    tracing::warn!(task, reason, "the task fails; it is tried again");
}
