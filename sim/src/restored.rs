//! The real restore of the archive that a run leaves, compared with the store record by record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pitr_format::{EncodedRange, Ts};
use pitr_restore_worker::plan::Window;
use pitr_restore_worker::sst::{SstBuilder, SstError, SstFactory, SstFile};
use pitr_restore_worker::target::{Target, TargetError, TargetRegion};
use pitr_restore_worker::{Archive, Env, Report, RestoreOptions, plan, restore};
use pitr_storage::{SharedStorage, open_url};

use crate::SimError;
use crate::store::rows_of;
use crate::world::World;

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;
/// By column family and versioned key.
type Records = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

/// Files as maps in memory.
#[derive(Clone, Default)]
struct Files(Arc<Mutex<BTreeMap<PathBuf, Pairs>>>);

struct Builder {
    path: PathBuf,
    pairs: Pairs,
    files: Files,
}

impl SstFactory for Files {
    fn create<'a>(&'a self, path: &Path) -> Result<Box<dyn SstBuilder + 'a>, SstError> {
        Ok(Box::new(Builder {
            path: path.to_owned(),
            pairs: Pairs::new(),
            files: self.clone(),
        }))
    }
}

impl SstBuilder for Builder {
    fn put(&mut self, data_key: &[u8], value: &[u8]) -> Result<(), SstError> {
        self.pairs.insert(data_key.to_vec(), value.to_vec());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<u64, SstError> {
        let size = self.pairs.len() as u64;
        self.files.0.lock().insert(self.path, self.pairs);
        Ok(size)
    }
}

/// Takes files into one map per column family.
struct Taken {
    files: Files,
    records: Mutex<Records>,
}

#[async_trait]
impl Target for Taken {
    async fn regions(&self, _range: &EncodedRange) -> Result<Vec<TargetRegion>, TargetError> {
        let range = EncodedRange::ALL;
        let handle = Arc::new(());
        Ok(vec![TargetRegion { range, handle }])
    }

    async fn ingest(&self, _region: &TargetRegion, ssts: &[SstFile]) -> Result<(), TargetError> {
        let mut records = self.records.lock();
        for sst in ssts {
            let pairs = self.files.0.lock().remove(&sst.path).unwrap_or_default();
            let named = |(key, value): (Vec<u8>, _)| ((sst.cf.as_str(), key[1..].to_vec()), value);
            records.extend(pairs.into_iter().map(named));
        }
        Ok(())
    }
}

/// Restores to the checkpoint and to a ts in the middle; how many records the first one brought.
pub(crate) fn check(world: &mut World) -> Result<u64, SimError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(failed)?;
    runtime.block_on(async {
        let storage = open_url("memory://").map_err(failed)?;
        for (path, bytes) in &world.objects {
            let written = storage.put(path, bytes.clone().into()).await;
            written.map_err(failed)?;
        }
        let end = world.oracle.restorable();
        let middle = world.start_ts.get() + (end.get() - world.start_ts.get()) / 2;
        let report = restore_at(&storage, end, world).await?;
        restore_at(&storage, Ts::new(middle), world).await?;
        Ok(report.written)
    })
}

async fn restore_at(
    storage: &SharedStorage,
    restored: Ts,
    world: &World,
) -> Result<Report, SimError> {
    let env = Env::default();
    let archive = Archive::open(storage.clone(), env.clone())
        .await
        .map_err(failed)?;
    let window = Window {
        start: None,
        restored,
        ranges: Vec::new(),
        log_only: true,
    };
    let plan = plan(&archive, &window).await.map_err(failed)?;
    let files = Files::default();
    let target = Taken {
        files: files.clone(),
        records: Mutex::default(),
    };
    let options = RestoreOptions::new(std::env::temp_dir(), Arc::new(files), env);
    let report = restore(&plan, storage.clone(), &target, options, Arc::default()).await;
    let report = report.map_err(failed)?;
    let found = target.records.into_inner();
    let mut wanted = Records::new();
    for ((key, commit_ts), version) in &world.oracle.decided {
        if *commit_ts <= restored {
            for row in rows_of(key, *commit_ts, version, true) {
                wanted.insert((row.cf.as_str(), row.key.to_vec()), row.value.to_vec());
            }
        }
    }
    if found == wanted {
        return Ok(report);
    }
    let differs = |key: &&(&str, Vec<u8>)| found.get(*key) != wanted.get(*key);
    let first = wanted.keys().chain(found.keys()).find(differs);
    let shown = first.map(|(cf, key)| format!("{cf} {}", key.escape_ascii()));
    Err(SimError::Violation(format!(
        "restored at {restored}: {} records, {} in the store; {shown:?} differs",
        found.len(),
        wanted.len()
    )))
}

fn failed(error: impl ToString) -> SimError {
    SimError::Violation(format!("the restore failed: {}", error.to_string()))
}
