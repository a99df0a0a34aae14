//! `tikv-pitr serve` beside the source, as a process that can be killed.

use std::fs::File;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;
use super::source::Source;

/// Flush interval of every round; the shortest there is.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A running sidecar.
pub struct Sidecar {
    child: Child,
    dir: TempDir,
}

/// The configuration for the sidecar of a source.
pub fn config(source: &Source) -> String {
    format!(
        "pd-endpoints = [\"{}\"]\nstore-address = \"{}\"\nstatus-addr = \"127.0.0.1:0\"\n\
         [log-backup]\nmax-flush-interval = \"1s\"\n",
        source.pd(),
        source.store(),
    )
}

impl Sidecar {
    /// Starts it.
    pub fn start(source: &Source) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sidecar.toml");
        std::fs::write(&file, config(source)).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
            .args(["serve", "--config"])
            .arg(&file)
            .env("TIKV_PITR_LOG", "info")
            .env("NO_COLOR", "1")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Sidecar { child, dir }
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the last flush must go well.
    #[track_caller]
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.unwrap().success());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It has ended already in most rounds.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            println!("the sidecar's last words:\n{}", last.join("\n"));
        }
    }
}
