//! A storage that stands still: no directory can do that, so the server runs inside of this test
//! binary, with its own allocator, and opens its storage through a double that waits.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pitr_proto::backup::StreamBackupTaskInfo;
use pitr_sidecar::config::Config;
use pitr_sidecar::{serve, storage};
use pitr_storage::fault::{Call, Fault, FaultPlan, FaultyStorage, Rule};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::daemon;

const CONFIG: &str = "PITR_MEMORY_CONFIG";
const FLAG: &str = "PITR_MEMORY_FLAG";
const SECONDS: &str = "PITR_MEMORY_SECONDS";

/// While it exists writes wait.
pub fn flag(dir: &TempDir) -> PathBuf {
    dir.path().join("stall")
}

/// This binary as a daemon.
pub fn command(dir: &TempDir, stall: Duration) -> Command {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            &format!("{module}::a_process_with_a_storage_that_stalls"),
        ])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env(CONFIG, daemon::config(dir))
        .env(FLAG, flag(dir))
        .env(SECONDS, stall.as_secs().to_string());
    command
}

#[test]
#[ignore = "the process that another test starts; alone it does nothing"]
fn a_process_with_a_storage_that_stalls() {
    let Ok(config) = std::env::var(CONFIG) else {
        return;
    };
    pitr_sidecar::allocator::return_memory_soon();
    let config = Config::load(Path::new(&config)).unwrap();
    let flag = PathBuf::from(std::env::var(FLAG).unwrap());
    let seconds = std::env::var(SECONDS).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(config, flag, Duration::from_secs(seconds)));
}

async fn run(config: Config, flag: PathBuf, stall: Duration) {
    let open: serve::OpenStorage = Arc::new(move |info: &StreamBackupTaskInfo| {
        let faulty = FaultyStorage::new(storage::open_task(info)?, FaultPlan::none());
        tokio::spawn(follow(flag.clone(), stall, faulty.clone()));
        Ok(faulty)
    });
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        signal(SignalKind::terminate()).unwrap().recv().await;
        stop.send_replace(true);
    });
    serve::serve_with(config, stopped, open).await.unwrap();
}

/// Lets writes wait while the flag is there.
async fn follow(flag: PathBuf, stall: Duration, storage: Arc<FaultyStorage>) {
    let mut stalled = false;
    loop {
        if flag.exists() != stalled {
            stalled = !stalled;
            storage.set_plan(match stalled {
                true => FaultPlan::none().with(Rule::always(Call::Write, Fault::Delay(stall))),
                false => FaultPlan::none(),
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
