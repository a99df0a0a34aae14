//! The checkpoint and the pause key of the task as they stand in PD, at any member that answers.

use std::sync::Arc;

use bytes::Bytes;
use pitr_cluster::etcd::EtcdClient;
use pitr_cluster::tasks::{TaskRegistry, keys};
use pitr_format::Ts;
use tokio::runtime::Runtime;

use crate::system::{Cluster, wait_until};

/// Reads `central_global` of the task `t`.
pub struct Published {
    runtime: Runtime,
    etcd: Arc<EtcdClient>,
    tasks: TaskRegistry,
}

impl Published {
    pub fn of(cluster: &Cluster) -> Self {
        let runtime = Runtime::new().unwrap();
        let etcd = runtime
            .block_on(async { EtcdClient::new(&cluster.pds()) })
            .unwrap();
        Published {
            runtime,
            tasks: TaskRegistry::new(etcd.clone()),
            etcd,
        }
    }

    /// What stands there; zero while nobody answers.
    pub fn checkpoint(&self) -> Ts {
        let read = self.runtime.block_on(self.tasks.global_checkpoint("t"));
        read.ok().flatten().unwrap_or(Ts::ZERO)
    }

    /// Waits until everything up to `ts` can be restored.
    #[track_caller]
    pub fn wait_beyond(&self, ts: Ts) {
        wait_until("the checkpoint in PD passes", || self.checkpoint() > ts);
    }

    /// Sets the pause key of the task.
    pub fn pause(&self) {
        let put = self.etcd.put(keys::pause("t"), Bytes::new());
        self.runtime.block_on(put).unwrap();
    }

    /// Removes it.
    pub fn resume(&self) {
        let key = keys::pause("t");
        let delete = self.etcd.delete(key.as_bytes());
        assert!(self.runtime.block_on(delete).unwrap());
    }
}
