//! `tikv-pitr serve` as a process of its own with a budget, and its peak of memory.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use pitr_format::Ts;
use tempfile::TempDir;

use super::stall;
use crate::system::{Cluster, section};

/// How long the daemon may take for anything.
const PATIENCE: Duration = Duration::from_secs(240);

pub struct Daemon {
    child: Child,
    status_addr: String,
    dir: TempDir,
}

impl Daemon {
    /// The binary.
    pub fn start(cluster: &Cluster, budget: usize) -> Self {
        Daemon::spawn(cluster, budget, |_| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tikv-pitr"));
            command.args(["serve", "--config"]);
            command
        })
    }

    /// The same server in this test binary, with a storage that can be told to stand still.
    pub fn stalling(cluster: &Cluster, budget: usize, stall: Duration) -> Self {
        Daemon::spawn(cluster, budget, |dir| stall::command(dir, stall))
    }

    fn spawn(cluster: &Cluster, budget: usize, command: impl FnOnce(&TempDir) -> Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let text = format!(
            "pd-endpoints = [\"{}\"]\nstore-address = \"{}\"\nstatus-addr = \"{free}\"\n\
             memory-budget = \"{}MiB\"\ntemp-path = \"{}\"\ntemp-file-quota = \"8GiB\"\n\
             [log-backup]\nmax-flush-interval = \"2s\"\n{}",
            cluster.pd(),
            cluster.playground.store_addr(),
            budget >> 20,
            dir.path().join("temp").display(),
            cluster.tls.as_ref().map(section).unwrap_or_default(),
        );
        std::fs::write(config(&dir), text).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = command(&dir);
        if command.get_args().any(|arg| arg == "--config") {
            command.arg(config(&dir));
        }
        let child = command
            .env("TIKV_PITR_LOG", "info")
            .env("NO_COLOR", "1")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon {
            child,
            status_addr: free.to_string(),
            dir,
        }
    }

    /// Waits until the archive can be restored to `ts`.
    #[track_caller]
    pub fn wait_checkpoint(&self, cluster: &Cluster, ts: Ts) {
        let end = Instant::now() + PATIENCE;
        let reached = || {
            let status = cluster.log_status();
            status["tasks"][0]["checkpoint"].as_u64() >= Some(ts.get())
        };
        while !reached() {
            assert!(Instant::now() < end, "{}\n{}", self.status(), self.said());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Most memory that the process ever had, in bytes.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// A line of the process' status, in bytes.
    pub fn memory(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<u64>().unwrap() << 10
    }

    /// Time on processors that the process has taken, in user and system mode.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The second field is a name in brackets and may hold blanks.
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks: u64 = [11, 12]
            .iter()
            .map(|at| fields[*at].parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// The status page.
    pub fn status(&self) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(&self.status_addr) {
            let request = "GET /status.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            // A page that breaks off is only worse to read.
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    /// Writes stand still from now on.
    pub fn stall(&self) {
        File::create(stall::flag(&self.dir)).unwrap();
    }

    /// Writes go on.
    pub fn go_on(&self) {
        std::fs::remove_file(stall::flag(&self.dir)).unwrap();
    }

    /// SIGTERM; the last flush must go well.
    #[track_caller]
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.said());
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The configuration of the daemon in `dir`.
pub fn config(dir: &TempDir) -> PathBuf {
    dir.path().join("sidecar.toml")
}
