//! The cluster that a verb works on: clients of one PD, and how their errors end a verb. Made
//! once per verb (or sidecar) and shared.

use std::sync::Arc;

use pitr_cluster::etcd::{EtcdClient, EtcdError};
use pitr_cluster::pd::{PdClient, PdError, PdOptions};
use pitr_cluster::tasks::{TaskError, TaskRegistry};
use pitr_cluster::tls::{Security, TlsError};
use pitr_format::{Class, Ts};
use pitr_proto::metapb;

use crate::codes::Code;
use crate::failure::Failure;
use crate::time;

/// Clients of one cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Placement driver.
    pub pd: Arc<PdClient>,
    /// Key-value store inside PD.
    pub etcd: Arc<EtcdClient>,
    /// The tasks that are registered there.
    pub tasks: TaskRegistry,
}

impl Cluster {
    /// Connects; fails with code 75 when nobody answers within some seconds.
    pub async fn connect(endpoints: &[String], security: &Security) -> Result<Self, Failure> {
        let options = PdOptions {
            security: security.clone(),
            ..PdOptions::default()
        };
        let pd = PdClient::connect_with(endpoints, options).await?;
        let etcd = EtcdClient::of(&pd)?;
        let tasks = TaskRegistry::new(etcd.clone());
        Ok(Cluster { pd, etcd, tasks })
    }

    /// PD's time.
    pub async fn now(&self) -> Result<Ts, Failure> {
        Ok(self.pd.tso().await?)
    }

    /// Stores that hold data of TiKV: neither removed ones nor TiFlash.
    pub async fn tikv_stores(&self) -> Result<Vec<metapb::Store>, PdError> {
        let stores = self.pd.stores().await?;
        Ok(stores.into_iter().filter(is_tikv).collect())
    }
}

fn is_tikv(store: &metapb::Store) -> bool {
    let tombstone = store.state == metapb::StoreState::Tombstone as i32;
    let flash = store
        .labels
        .iter()
        .any(|label| label.key == "engine" && label.value.starts_with("tiflash"));
    !tombstone && !flash
}

/// PD's time, or the local clock when PD does not answer.
pub async fn now_or_local(endpoints: &[String], security: &Security) -> Ts {
    match Cluster::connect(endpoints, security).await {
        Ok(cluster) => cluster.now().await.unwrap_or_else(|_| time::local_now()),
        Err(_) => time::local_now(),
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Failure::from_error(Code::BadCertificates, &error)
    }
}

impl From<PdError> for Failure {
    fn from(error: PdError) -> Self {
        let code = match &error {
            PdError::Address(_) => Code::BadAddress,
            PdError::WrongCluster { .. } => Code::WrongCluster,
            PdError::Rejected { .. } | PdError::Unsupported { .. } => Code::ClusterRefused,
            other => code_of_cluster(other.class()),
        };
        Failure::from_error(code, &error)
    }
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        let code = match &error {
            EtcdError::Address(_) => Code::BadAddress,
            other => code_of_cluster(other.class()),
        };
        Failure::from_error(code, &error)
    }
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Self {
        let code = match &error {
            TaskError::Exists { .. } => Code::TaskExists,
            TaskError::NotFound { .. } => Code::TaskNotFound,
            TaskError::BadName { .. } => Code::BadTaskName,
            TaskError::Damaged { .. } => Code::RegistryDamaged,
            TaskError::Contended { .. } => Code::RegistryContended,
            TaskError::Etcd(error) => return error.clone().into(),
        };
        Failure::from_error(code, &error)
    }
}

/// The code of a call to PD, its etcd or a store that failed in no special way.
pub fn code_of_cluster(class: Class) -> Code {
    match class {
        Class::Retry | Class::Refresh => Code::ClusterUnreachable,
        Class::Permanent => Code::ClusterRefused,
    }
}

/// Whether an error of this class is worth another try.
pub fn retriable(class: Class) -> bool {
    !matches!(class, Class::Permanent)
}
