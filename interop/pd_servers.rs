//! Real PD servers of a test's own: one to three members on free loopback ports, in a temporary
//! folder with their logs, in plaintext or with TLS. Included by the test binaries of `playground` and
//! `sidecar`.
//!
//! They are killed when the test ends, also by a panic; then the folder stays and is named.
#![allow(dead_code, reason = "each test binary uses its part")]

#[path = "program.rs"]
mod program;
#[path = "tls_client.rs"]
pub mod tls_client;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pitr_cluster::tls::TlsConfig;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

struct Member {
    name: String,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

/// See the module.
pub struct PdServers {
    program: PathBuf,
    members: Vec<Member>,
    dir: Option<TempDir>,
    tls: Option<TlsConfig>,
}

impl PdServers {
    /// Starts a new cluster and waits until every member is healthy; `None` without the program.
    pub fn start(count: usize) -> Option<PdServers> {
        Some(Self::of(program::program("pd")?, count))
    }

    /// [`PdServers::start`] with servers of another release.
    pub fn of(program: PathBuf, count: usize) -> PdServers {
        Self::running(program, count, None)
    }

    /// [`PdServers::start`] with TLS for clients and between the members, which all have this triple:
    /// its own common name has to be the one that is allowed, if one is. PD can allow only one.
    pub fn with_tls(count: usize, tls: &TlsConfig) -> Option<PdServers> {
        Some(Self::running(
            program::program("pd")?,
            count,
            Some(tls.clone()),
        ))
    }

    fn running(program: PathBuf, count: usize, tls: Option<TlsConfig>) -> PdServers {
        // All at once, so that no port is given twice.
        let free: Vec<_> = (0..count * 2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let port = |at: usize| free[at].local_addr().unwrap().port();
        let members = (0..count).map(|i| Member {
            name: format!("pd{}", i + 1),
            client: port(2 * i),
            peer: port(2 * i + 1),
            child: None,
        });
        let mut servers = PdServers {
            program,
            members: members.collect(),
            dir: Some(tempfile::tempdir().unwrap()),
            tls,
        };
        drop(free);
        (0..count).for_each(|i| servers.spawn(i));
        servers.wait_healthy();
        servers
    }

    /// Client URLs of all members.
    pub fn urls(&self) -> Vec<String> {
        let urls = self.members.iter().map(|m| self.url(m.client));
        urls.collect()
    }

    /// Index of the leader, as a living member knows it; waits for an election.
    pub fn leader(&self) -> usize {
        let found = || {
            let alive = self.members.iter().find(|m| m.child.is_some())?;
            let told = self.get(alive.client, "/pd/api/v1/leader")?;
            let name = told["name"].as_str()?;
            let at = self.members.iter().position(|m| m.name == name)?;
            self.members[at].child.is_some().then_some(at)
        };
        wait("PD has a leader", found)
    }

    /// Ends a member by a signal (`-TERM`, `-KILL`) and waits until it is gone.
    pub fn end(&mut self, index: usize, signal: &str) {
        let mut child = self.members[index].child.take().unwrap();
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        child.wait().unwrap();
    }

    /// Starts a member that was ended, and waits until all are healthy.
    pub fn restart(&mut self, index: usize) {
        self.spawn(index);
        self.wait_healthy();
    }

    /// Every member calls itself and the others healthy.
    pub fn wait_healthy(&self) {
        for member in &self.members {
            wait(&format!("{} is healthy", member.name), || {
                let answer = self.get(member.client, "/pd/api/v1/health")?;
                let all = answer.as_array()?;
                let healthy = all.iter().filter(|m| m["health"] == true).count();
                (healthy == self.members.len()).then_some(())
            });
        }
    }

    /// A page of PD's HTTP interface at the leader.
    pub fn page(&self, path: &str) -> Value {
        let leader = self.leader();
        self.get(self.members[leader].client, path)
            .unwrap_or_default()
    }

    /// Sends JSON to a page of the leader, which has to obey.
    pub fn post(&self, path: &str, body: &Value) {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        let port = self.members[self.leader()].client;
        let answer = self.http(port, &format!("{head}\r\n\r\n{body}"));
        assert!(answer.is_some(), "PD refuses {body} at {path}");
    }

    /// Drops etcd's history before a revision, through its JSON gateway.
    pub fn compact(&self, revision: i64) {
        let body = format!("{{\"revision\": \"{revision}\", \"physical\": true}}");
        let head = format!(
            "POST /v3/kv/compaction HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        let port = self.members[self.leader()].client;
        let answer = self.http(port, &format!("{head}\r\n\r\n{body}"));
        assert!(answer.is_some_and(|a| a["header"].is_object()));
    }

    fn spawn(&mut self, index: usize) {
        let dir = self.dir.as_ref().unwrap().path();
        let cluster: Vec<_> = self
            .members
            .iter()
            .map(|m| format!("{}={}", m.name, self.url(m.peer)))
            .collect();
        let member = &self.members[index];
        let (client, peer) = (self.url(member.client), self.url(member.peer));
        let path = |suffix: &str| {
            dir.join(format!("{}{suffix}", member.name))
                .display()
                .to_string()
        };
        let output = File::options()
            .create(true)
            .append(true)
            .open(path(".out"))
            .unwrap();
        let child = Command::new(&self.program)
            .args([
                format!("--name={}", member.name),
                format!("--data-dir={}", path("")),
                format!("--client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--peer-urls={peer}"),
                format!("--advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
                format!("--log-file={}", path(".log")),
            ])
            .args(self.tls.iter().flat_map(|tls| security(tls, path(".toml"))))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.members[index].child = Some(child);
    }

    fn url(&self, port: u16) -> String {
        let scheme = match self.tls {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://127.0.0.1:{port}")
    }

    fn get(&self, port: u16, path: &str) -> Option<Value> {
        self.http(port, &format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    /// The JSON of an answer with status 200. HTTP/1.0, so that the answer is one piece.
    fn http(&self, port: u16, request: &str) -> Option<Value> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
        let answer = match &self.tls {
            Some(tls) => exchange(tls_client::blocking(tls, stream)?, request),
            None => exchange(stream, request),
        }?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.split(' ').nth(1).filter(|code| *code == "200")?;
        serde_json::from_str(body).ok()
    }
}

/// The flags for a triple; the common name has none, only a key of the configuration file.
fn security(tls: &TlsConfig, config: String) -> Vec<String> {
    let config = PathBuf::from(config);
    let text = format!("[security]\ncert-allowed-cn = {:?}\n", tls.cert_allowed_cn);
    std::fs::write(&config, text).unwrap();
    [
        ("config", &config),
        ("cacert", &tls.ca_path),
        ("cert", &tls.cert_path),
        ("key", &tls.key_path),
    ]
    .map(|(flag, path)| format!("--{flag}={}", path.display()))
    .into()
}

impl Drop for PdServers {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|m| m.child.as_mut()) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("logs of PD are kept in {}", dir.keep().display());
        }
    }
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Option<String> {
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
