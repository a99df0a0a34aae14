//! PD as the observer's [`ProgressSink`]: the task registry holds the checkpoints.

use async_trait::async_trait;
use pitr_cluster::tasks::{TaskError, TaskRegistry};
use pitr_format::Ts;
use pitr_observer::{ProgressSink, SinkError};

/// Publishes the progress of one task for one store.
pub(super) struct RegistrySink {
    /// Registry of the cluster.
    pub tasks: TaskRegistry,
    /// Name of the task.
    pub task: String,
    /// Revision of the task's registration when the session began.
    pub registered: i64,
    /// The store that writes.
    pub store_id: u64,
}

#[async_trait]
impl ProgressSink for RegistrySink {
    async fn raise_global(&self, ts: Ts) -> Result<Ts, SinkError> {
        let raised = self
            .tasks
            .raise_global_checkpoint(&self.task, self.registered, ts)
            .await;
        raised.map_err(sink_error)
    }

    async fn set_storage_checkpoint(&self, ts: Ts) -> Result<(), SinkError> {
        let set = self
            .tasks
            .set_storage_checkpoint(&self.task, self.registered, self.store_id, ts)
            .await;
        set.map_err(sink_error)
    }
}

fn sink_error(error: TaskError) -> SinkError {
    SinkError::new(error.class(), error)
}
