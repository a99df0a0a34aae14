//! The observer's [`ProgressSink`]: what is durable here goes into the flush table of the log backup
//! service, where the coordinator hears of it; what the archive promises goes to PD, which takes it
//! from the sidecar that has the store only.

use std::sync::Arc;

use async_trait::async_trait;
use pitr_cluster::seat::SeatError;
use pitr_cluster::tasks::TaskError;
use pitr_format::Ts;
use pitr_observer::{FlushTable, ProgressSink, SinkError};

use super::fence::Fence;
use crate::failure::Failure;
use crate::log_backup::FlushTables;

/// Publishes the progress of one task for one store.
pub(super) struct RegistrySink {
    /// Says whether the store is ours, and knows the registry.
    pub fence: Arc<Fence>,
    /// What the log backup service tells.
    pub tables: Arc<FlushTables>,
    /// Name of the task.
    pub task: String,
    /// Revision of the task's registration when the session began.
    pub registered: i64,
    /// The store that writes.
    pub store_id: u64,
}

impl RegistrySink {
    /// A transaction that failed may have done so at the fence, which is the better reason.
    async fn failed(&self, error: TaskError) -> SinkError {
        match self.fence.confirm().await {
            Err(taken @ SeatError::Taken { .. }) => {
                SinkError::new(taken.class(), Failure::from(taken).one_line())
            }
            _ => SinkError::new(error.class(), error),
        }
    }
}

#[async_trait]
impl ProgressSink for RegistrySink {
    /// The coordinator answers by raising the checkpoint in PD, which the session follows.
    async fn tell(&self, table: &FlushTable) -> Result<Option<Ts>, SinkError> {
        self.tables.replace(&self.task, self.registered, table);
        Ok(None)
    }

    async fn set_storage_checkpoint(&self, ts: Ts) -> Result<(), SinkError> {
        let tasks = self.fence.registry().await;
        let set = tasks.set_storage_checkpoint(&self.task, self.registered, self.store_id, ts);
        match set.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(error).await),
        }
    }
}
