//! The source: a playground in a process of its own, so that PD and the store can be killed. The
//! process is this test binary again, running one ignored test: it is never older than the test.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pitr_playground::{Playground, PlaygroundConfig};
use tempfile::TempDir;

use super::PATIENCE;

const DIR: &str = "PITR_ROUNDS_PLAYGROUND_DIR";
const PD: &str = "PITR_ROUNDS_PLAYGROUND_PD";
const STORE: &str = "PITR_ROUNDS_PLAYGROUND_STORE";

/// A cluster that can be killed and comes back with its data and its addresses.
pub struct Source {
    dir: TempDir,
    pd: SocketAddr,
    store: SocketAddr,
    child: Child,
}

impl Source {
    /// An empty cluster that answers.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (pd, store) = (free_port(), free_port());
        let child = spawn(&dir, pd, store);
        let mut source = Source {
            dir,
            pd,
            store,
            child,
        };
        source.wait();
        source
    }

    /// Address of PD.
    pub fn pd(&self) -> String {
        self.pd.to_string()
    }

    /// Address of the store.
    pub fn store(&self) -> String {
        self.store.to_string()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Source::kill`].
    pub fn restart(&mut self) {
        self.child = spawn(&self.dir, self.pd, self.store);
        self.wait();
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(self.pd).is_err() || TcpStream::connect(self.store).is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the playground ended: {status}\n{}", self.said());
            }
            assert!(began.elapsed() < PATIENCE, "{}", self.said());
            sleep(Duration::from_millis(20));
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port below the ones that the system gives to outgoing connections: while the source is away
/// its clients dial it, and one of them could get the very port that it dials.
fn free_port() -> SocketAddr {
    for _ in 0..1000 {
        let addr = SocketAddr::from(([127, 0, 0, 1], rand::random_range(10_000..32_000)));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("no free port");
}

fn spawn(dir: &TempDir, pd: SocketAddr, store: SocketAddr) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.path().join("log"))
        .unwrap();
    let (_, module) = module_path!().split_once("::").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::a_process_of_the_source")])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path().join("data"))
        .env(PD, pd.to_string())
        .env(STORE, store.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the process that other tests start; alone it does nothing"]
fn a_process_of_the_source() {
    let Ok(dir) = std::env::var(DIR) else {
        return;
    };
    let addr = |name| std::env::var(name).unwrap().parse().unwrap();
    let config = PlaygroundConfig {
        pd_addr: addr(PD),
        store_addr: addr(STORE),
        resolved_ts_interval: Duration::from_millis(200),
        ..PlaygroundConfig::new(PathBuf::from(dir))
    };
    let _running = Playground::start(config).unwrap();
    // The end of the input is the end of the test that started this, however it ended.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
