//! Copies of the golden archives, completed as `log start` and the checkpoint would have.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pitr_format::Ts;
use pitr_format::backup_meta::LogBackupMeta;
use pitr_format::start_probe::StartProbe;
use pitr_restore_worker::archive::MetaObject;
use pitr_restore_worker::browse::visible_at;
use pitr_restore_worker::engine::rocks::RocksEngine;
use pitr_restore_worker::plan::Window;
use pitr_restore_worker::target::EngineTarget;
use pitr_restore_worker::{Archive, Env, Plan, Progress, Report, RestoreOptions, plan, restore};
use tempfile::TempDir;

pub type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Times of a golden folder.
#[derive(Clone, Copy, serde::Deserialize)]
pub struct Times {
    pub start_ts: u64,
    pub mid_ts: u64,
    pub end_ts: u64,
}

/// A copy of a golden archive in a temporary directory.
pub struct Golden {
    dir: TempDir,
    source: PathBuf,
    pub times: Times,
}

pub fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

impl Golden {
    /// As TiKV left it.
    pub fn bare(name: &str) -> Golden {
        let source = folder(name);
        let times = std::fs::read(source.join("times-and-regions.json")).unwrap();
        let golden = Golden {
            dir: tempfile::tempdir().unwrap(),
            times: serde_json::from_slice(&times).unwrap(),
            source,
        };
        copy(&golden.source.join("archive"), golden.path());
        golden
    }

    /// With `backupmeta`, `backup.lock` and a checkpoint at end_ts.
    pub fn complete(name: &str) -> Golden {
        let golden = Golden::bare(name);
        let meta = pitr_format::backup_meta::encode(&LogBackupMeta {
            cluster_id: 42,
            cluster_version: "9.0.0".to_owned(),
            start_ts: Ts::new(golden.times.start_ts),
            backup_schema_version: 1,
        });
        golden.write("backupmeta", &meta);
        golden.write("backup.lock", b"DO NOT DELETE\n");
        golden.write(
            "v1/global_checkpoint/1.ts",
            &golden.times.end_ts.to_le_bytes(),
        );
        golden
    }

    /// And the proof that the ranges were empty at the start.
    pub fn proven_empty(name: &str) -> Golden {
        let golden = Golden::complete(name);
        let probe = StartProbe {
            task: "golden".to_owned(),
            start_ts: Ts::new(golden.times.start_ts),
            ranges: vec![(Bytes::new(), Bytes::new())],
            empty: true,
        };
        golden.write(
            "tikv-pitr/start.json",
            &pitr_format::start_probe::encode(&probe).unwrap(),
        );
        golden
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }

    pub async fn open(&self) -> Archive {
        let url = format!("local://{}", self.path().display());
        Archive::open(pitr_storage::open_url(&url).unwrap(), Env::default())
            .await
            .unwrap()
    }

    /// Every `.meta`, by name.
    pub async fn metas(&self) -> Vec<MetaObject> {
        let mut walk = self.open().await.walk().await.unwrap();
        let mut metas = Vec::new();
        while let Some(meta) = walk.next().await.unwrap() {
            metas.push(meta);
        }
        metas
    }

    /// Log objects of the archive, by name.
    pub async fn logs(&self) -> Vec<String> {
        let listed = self.open().await.storage().list("v1/").await.unwrap();
        listed
            .into_iter()
            .map(|o| o.path)
            .filter(|p| p.ends_with(".log"))
            .collect()
    }

    /// What a scan of the real store gave.
    pub fn scan(&self, name: &str) -> Pairs {
        let mut text = String::new();
        let file = std::fs::File::open(self.source.join(name)).unwrap();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        text.lines()
            .map(|line| {
                let (key, value) = line.split_once('\t').unwrap();
                (hex::decode(key).unwrap(), hex::decode(value).unwrap())
            })
            .collect()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A local engine to restore into.
pub struct Local {
    pub dir: TempDir,
    pub engine: Arc<RocksEngine>,
}

impl Local {
    pub fn new() -> Local {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(RocksEngine::open(&dir.path().join("db")).unwrap());
        Local { dir, engine }
    }

    pub fn options(&self) -> RestoreOptions {
        RestoreOptions::rocks(self.dir.path(), Env::default())
    }

    /// The engine as one region.
    pub fn target(&self) -> EngineTarget<RocksEngine> {
        EngineTarget::new(Arc::clone(&self.engine), Env::default().spawner)
    }

    /// The engine as regions that are split at `keys`.
    pub fn target_with_splits(&self, keys: &[Bytes]) -> EngineTarget<RocksEngine> {
        EngineTarget::with_splits(Arc::clone(&self.engine), Env::default().spawner, keys)
    }

    pub async fn restore(&self, archive: &Archive, plan: &Plan) -> Report {
        let target = self.target();
        let storage = Arc::clone(archive.storage());
        restore(
            plan,
            storage,
            &target,
            self.options(),
            Arc::new(Progress::default()),
        )
        .await
        .unwrap()
    }

    pub fn scan(&self, ts: u64) -> Pairs {
        visible_at(self.engine.as_ref(), Ts::new(ts))
            .map(Result::unwrap)
            .collect()
    }
}

/// Everything up to `ts`.
pub fn up_to(ts: u64) -> Window {
    Window {
        start: None,
        restored: Ts::new(ts),
        ranges: Vec::new(),
        log_only: false,
    }
}

/// Plans and restores `golden` up to `ts` into an empty engine.
pub async fn restore_new(golden: &Golden, window: &Window) -> (Local, Report) {
    let archive = golden.open().await;
    let local = Local::new();
    let report = local
        .restore(&archive, &plan(&archive, window).await.unwrap())
        .await;
    (local, report)
}
