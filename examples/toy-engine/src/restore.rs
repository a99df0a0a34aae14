//! A restore that goes through the engine's own proposer: every file becomes commands of the log,
//! so that all replicas of the target hold the same.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pitr_format::{Class, EncodedRange, Ts};
use pitr_restore_worker::engine::{EngineCf, EngineOp};
use pitr_restore_worker::sst::SstFile;
use pitr_restore_worker::target::{Target, TargetError, TargetRegion};
use pitr_restore_worker::{Archive, Env, Progress, Report, RestoreOptions, Window, plan, restore};
use pitr_storage::SharedStorage;

use crate::Result;
use crate::log::ReplicatedLog;
use crate::replica::{PairFiles, read_file};

/// Records of one proposed command.
const COMMAND: usize = 128;

/// A log as the target of a restore: one region.
pub struct Proposer(pub Arc<ReplicatedLog>);

#[async_trait]
impl Target for Proposer {
    async fn regions(
        &self,
        _: &EncodedRange,
    ) -> std::result::Result<Vec<TargetRegion>, TargetError> {
        let handle: Arc<dyn Any + Send + Sync> = Arc::new(());
        let range = EncodedRange::ALL;
        Ok(vec![TargetRegion { range, handle }])
    }

    async fn ingest(
        &self,
        _: &TargetRegion,
        ssts: &[SstFile],
    ) -> std::result::Result<(), TargetError> {
        for sst in ssts {
            let cf = EngineCf::from(sst.cf);
            let failed = |error| TargetError::new(Class::Permanent, format!("{error}"));
            let pairs = read_file(&sst.path).map_err(|error: std::io::Error| failed(error))?;
            for command in pairs.chunks(COMMAND) {
                let put = |(key, value): &(Vec<u8>, Vec<u8>)| EngineOp::Put {
                    cf,
                    key: key.clone(),
                    value: value.clone(),
                };
                self.0
                    .propose(&command.iter().map(put).collect::<Vec<_>>())
                    .await;
            }
        }
        Ok(())
    }
}

/// Restores the archive in `storage` to `restored` into the empty `log`, with clock, threads,
/// randomness and memory of `env`. Files wait in `temp_dir`.
pub async fn restore_into(
    log: &Arc<ReplicatedLog>,
    storage: SharedStorage,
    restored: Ts,
    temp_dir: &Path,
    env: Env,
) -> Result<Report> {
    let archive = Archive::open(storage.clone(), env.clone()).await?;
    let window = Window {
        start: None,
        restored,
        ranges: Vec::new(),
        log_only: false,
    };
    let plan = plan(&archive, &window).await?;
    let options = RestoreOptions::new(temp_dir, Arc::new(PairFiles), env);
    let target = Proposer(Arc::clone(log));
    let progress = Arc::new(Progress::default());
    Ok(restore(&plan, storage, &target, options, progress).await?)
}
