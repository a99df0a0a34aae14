//! A playground cluster, a client that writes to it, and a sidecar beside it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pitr_cluster::pd::{PdClient, PdOptions, Region};
use pitr_cluster::stores::StoreChannels;
use pitr_cluster::tls::{Security, TlsConfig};
use pitr_format::{EncodedKey, EncodedRange, Ts};
use pitr_playground::{Playground, PlaygroundConfig};
use pitr_proto::errorpb;
use pitr_proto::kvrpcpb::{
    CommitRequest, Context, LockInfo, Mutation, Op, PrewriteRequest, ScanLockRequest,
};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::command::{Ran, tikv_pitr};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster that goes away with this.
pub struct Cluster {
    pub playground: Playground,
    /// URLs of the real PD, if the store is at one.
    real_pd: Vec<String>,
    /// What its clients and sidecars show, where it has TLS.
    pub tls: Option<TlsConfig>,
    config: PlaygroundConfig,
    _dir: TempDir,
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// A store that registers at a real PD.
    pub fn at(real_pd: Vec<String>) -> Self {
        Self::start_with(|config| config.real_pd = real_pd)
    }

    /// A cluster of another kind.
    pub fn start_with(change: impl FnOnce(&mut PlaygroundConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = PlaygroundConfig {
            resolved_ts_interval: Duration::from_millis(100),
            ..PlaygroundConfig::new(dir.path().join("data"))
        };
        change(&mut config);
        let real_pd = config.real_pd.clone();
        Cluster {
            playground: Playground::start(config.clone()).unwrap(),
            config,
            real_pd,
            tls: None,
            _dir: dir,
        }
    }

    /// The same data at the same addresses, served anew in another way.
    pub fn again_with(mut self, change: impl FnOnce(&mut PlaygroundConfig)) -> Self {
        self.config.pd_addr = self.playground.pd_addr();
        self.config.store_addr = self.playground.store_addr();
        change(&mut self.config);
        self.playground.shutdown();
        self.playground = Playground::start(self.config.clone()).unwrap();
        self
    }

    /// Every end point of PD.
    pub fn pds(&self) -> Vec<String> {
        match &self.real_pd[..] {
            [] => vec![self.playground.pd_addr().to_string()],
            urls => urls.to_vec(),
        }
    }

    pub fn pd(&self) -> String {
        self.pds().join(",")
    }

    /// Runs a verb that takes `-u`.
    pub fn run(&self, args: &[&str]) -> Ran {
        let pd = self.pd();
        let files = self.tls.iter().flat_map(|tls| {
            let show = |path: &Path| path.display().to_string();
            [
                ("--ca", show(&tls.ca_path)),
                ("--cert", show(&tls.cert_path)),
                ("--key", show(&tls.key_path)),
            ]
        });
        let files: Vec<_> = files.collect();
        let mut all = args.to_vec();
        all.extend(["-u", &pd]);
        all.extend(files.iter().flat_map(|(flag, path)| [*flag, path]));
        tikv_pitr(&all)
    }

    /// How its clients connect.
    pub fn security(&self) -> Security {
        let loaded = self.tls.clone().map(Security::load);
        loaded.transpose().unwrap().unwrap_or_default()
    }

    pub fn log_start(&self, archive: &str) -> Ran {
        self.run(&["log", "start", "--task-name", "t", "-s", archive, "--json"])
    }

    pub fn log_status(&self) -> serde_json::Value {
        self.run(&["log", "status", "--json"]).json()
    }

    /// Waits until the archive can be restored to `ts`.
    pub fn wait_checkpoint(&self, ts: Ts) {
        wait_until("the checkpoint passes", || {
            self.log_status()["tasks"][0]["checkpoint"]
                .as_u64()
                .unwrap()
                >= ts.get()
        });
    }

    pub fn scan_digest(&self, at: Ts) -> (String, u64) {
        let report = self
            .run(&["verify", "scan", "--at", &at.to_string(), "--json"])
            .json();
        (
            report["digest"].as_str().unwrap().to_owned(),
            report["keys"].as_u64().unwrap(),
        )
    }
}

/// Polls until the condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Writes transactions as a client of TiKV does: prewrite, then commit.
pub struct Client {
    pd: Arc<PdClient>,
    runtime: tokio::runtime::Runtime,
    stores: Arc<StoreChannels>,
}

impl Client {
    pub fn of(cluster: &Cluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // Longer than any election: a client that writes through one must not give up.
        let options = PdOptions {
            deadline: PATIENCE,
            security: cluster.security(),
            ..PdOptions::default()
        };
        let pd = runtime
            .block_on(PdClient::connect_with(&cluster.pds(), options))
            .unwrap();
        Client {
            stores: StoreChannels::new(pd.clone()),
            pd,
            runtime,
        }
    }

    /// The region of a key, as PD has it.
    pub fn region_of(&self, key: &[u8]) -> Region {
        let encoded = EncodedKey::encode(key);
        let region = self.pd.region_of(encoded.as_bytes());
        self.runtime.block_on(region).unwrap()
    }

    /// Waits for a question to PD.
    pub fn ask<T, F: Future<Output = T>>(&self, question: impl FnOnce(Arc<PdClient>) -> F) -> T {
        self.runtime.block_on(question(self.pd.clone()))
    }

    pub fn now(&self) -> Ts {
        self.runtime.block_on(self.pd.tso()).unwrap()
    }

    /// Locks a key for an hour and never lets it go, as a client that hangs.
    pub fn lock(&self, key: &str) -> Ts {
        self.lock_for(key, Duration::from_secs(3600))
    }

    /// Locks a key for some time and never lets it go, as a client that died; its start ts.
    pub fn lock_for(&self, key: &str, ttl: Duration) -> Ts {
        let start = self.now();
        self.lock_at(key, start, ttl);
        start
    }

    /// Locks a key for a transaction that began at `start`.
    pub fn lock_at(&self, key: &str, start: Ts, ttl: Duration) {
        self.runtime.block_on(async {
            let encoded = EncodedKey::encode(key.as_bytes());
            let region = self.region(encoded.as_bytes()).await;
            let mut stub = self.stub(&region).await;
            let key = Bytes::copy_from_slice(key.as_bytes());
            let prewrite = PrewriteRequest {
                context: Some(context(&region)),
                mutations: vec![Mutation {
                    op: Op::Put as i32,
                    key: key.clone(),
                    value: Bytes::from_static(b"v"),
                    ..Mutation::default()
                }],
                primary_lock: key,
                start_version: start.get(),
                lock_ttl: ttl.as_millis() as u64,
                ..PrewriteRequest::default()
            };
            let answer = stub.kv_prewrite(prewrite).await.unwrap().into_inner();
            assert_eq!((answer.region_error, answer.errors.len()), (None, 0));
        });
    }

    /// The locks of the region of the first key.
    pub fn scan_locks(&self, mut request: ScanLockRequest) -> Vec<LockInfo> {
        self.runtime.block_on(async {
            let region = self.region(EncodedKey::encode(b"a").as_bytes()).await;
            let mut stub = self.stub(&region).await;
            request.context = Some(context(&region));
            let answer = stub.kv_scan_lock(request).await.unwrap().into_inner();
            answer.locks
        })
    }

    /// Puts (`Some`) or deletes (`None`) keys, each in a transaction of its own.
    pub fn write(&self, pairs: &[(String, Option<Vec<u8>>)]) {
        self.runtime.block_on(async {
            for (key, value) in pairs {
                self.one(key.as_bytes(), value.as_deref()).await;
            }
        });
    }

    /// Puts a key of any bytes.
    pub fn put(&self, key: &[u8], value: &[u8]) {
        self.runtime.block_on(self.one(key, Some(value)));
    }

    /// Ids of all regions, by key.
    pub fn regions(&self) -> Vec<u64> {
        let all = async { self.pd.regions_in(&EncodedRange::ALL).await };
        let (regions, _) = self.runtime.block_on(all).unwrap();
        regions.iter().map(|region| region.meta.id).collect()
    }

    /// The store that leads a region.
    async fn stub(&self, region: &Region) -> TikvClient<Channel> {
        TikvClient::new(self.stores.of(region.leader_store()).await.unwrap())
    }

    /// The region of a key; a PD that has just started knows no leader of it for a while.
    async fn region(&self, key: &[u8]) -> Region {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.pd.region_of(key).await {
                Ok(region) if region.leader.is_some() => return region,
                other => assert!(Instant::now() < end, "{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn one(&self, key: &[u8], value: Option<&[u8]>) {
        let encoded = EncodedKey::encode(key);
        let key = Bytes::copy_from_slice(key);
        let start = self.pd.tso().await.unwrap();
        let mutation = Mutation {
            op: if value.is_some() { Op::Put } else { Op::Del } as i32,
            key: key.clone(),
            value: value.map(Bytes::copy_from_slice).unwrap_or_default(),
            ..Mutation::default()
        };
        let mut prewrite = PrewriteRequest {
            mutations: vec![mutation],
            primary_lock: key.clone(),
            start_version: start.get(),
            // A client that lives renews its locks, also while PD gives no timestamps; this one
            // locks for long enough.
            lock_ttl: PATIENCE.as_millis() as u64,
            ..PrewriteRequest::default()
        };
        let retries = Retries::default();
        loop {
            let region = self.region(encoded.as_bytes()).await;
            prewrite.context = Some(context(&region));
            let mut stub = self.stub(&region).await;
            let answer = stub.kv_prewrite(prewrite.clone()).await.unwrap();
            let answer = answer.into_inner();
            assert_eq!(answer.errors.len(), 0, "{:?}", answer.errors);
            if answer.region_error.is_none() {
                break;
            }
            retries.wait(answer.region_error).await;
        }
        let mut commit = CommitRequest {
            keys: vec![key],
            start_version: start.get(),
            commit_version: self.pd.tso().await.unwrap().get(),
            ..CommitRequest::default()
        };
        loop {
            let region = self.region(encoded.as_bytes()).await;
            commit.context = Some(context(&region));
            let mut stub = self.stub(&region).await;
            let answer = stub.kv_commit(commit.clone()).await.unwrap().into_inner();
            assert_eq!(answer.error, None);
            if answer.region_error.is_none() {
                break;
            }
            retries.wait(answer.region_error).await;
        }
    }
}

/// A region that split is asked for again, until PD knows of the split.
struct Retries(Instant);

impl Default for Retries {
    fn default() -> Self {
        Retries(Instant::now() + PATIENCE)
    }
}

impl Retries {
    async fn wait(&self, error: Option<errorpb::Error>) {
        assert!(Instant::now() < self.0, "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Puts of short and long values, updates and deletes; `round` makes them differ.
pub fn load(round: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let value = |i: usize| vec![(i + round) as u8; 1 + i * i * 7 % 1200];
    let mut writes: Vec<_> = (0..60)
        .map(|i| (format!("demo/{i:03}"), Some(value(i))))
        .collect();
    writes.extend(
        (0..60)
            .step_by(3)
            .map(|i| (format!("demo/{i:03}"), Some(value(i + 1)))),
    );
    writes.extend((0..60).step_by(7).map(|i| (format!("demo/{i:03}"), None)));
    writes.push((format!("round/{round}"), Some(Vec::from("r"))));
    writes
}

fn context(region: &Region) -> Context {
    Context {
        region_id: region.meta.id,
        region_epoch: region.meta.region_epoch,
        peer: region.leader,
        ..Context::default()
    }
}

/// The table of a configuration that names certificates.
pub fn section(tls: &TlsConfig) -> String {
    format!(
        "[security]\nca-path = {:?}\ncert-path = {:?}\nkey-path = {:?}\ncert-allowed-cn = {:?}\n",
        tls.ca_path, tls.cert_path, tls.key_path, tls.cert_allowed_cn
    )
}

/// Where a sidecar's stderr goes, beside its configuration.
const LOG: &str = "stderr.log";

/// `tikv-pitr serve` as a process of its own.
pub struct Sidecar {
    child: Child,
    status_addr: String,
    dir: TempDir,
}

impl Sidecar {
    pub fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, "")
    }

    /// A sidecar with more top-level lines in its configuration.
    pub fn start_with(cluster: &Cluster, lines: &str) -> Self {
        Self::start_with_args(cluster, lines, &[])
    }

    /// A sidecar with more lines and more arguments.
    pub fn start_with_args(cluster: &Cluster, lines: &str, args: &[&str]) -> Self {
        Self::spawn(cluster, lines, args, "info", "1s")
    }

    /// A sidecar that flushes at this interval.
    pub fn start_flushing_every(cluster: &Cluster, interval: &str) -> Self {
        Self::spawn(cluster, "", &[], "info", interval)
    }

    /// A sidecar that logs everything there is to log, into a file: a pipe would fill up.
    pub fn start_loud(cluster: &Cluster) -> Self {
        Self::spawn(cluster, "", &[], "trace", "1s")
    }

    /// A daemon without a store, which coordinates TiKV's own log backup.
    pub fn start_builtin(cluster: &Cluster, lines: &str) -> Self {
        let source = format!("source = \"builtin\"\n{lines}");
        Self::spawn_at(cluster, None, &source, &[], "info", "1s")
    }

    /// The sidecar of another store than the first one.
    pub fn start_at(cluster: &Cluster, store: SocketAddr) -> Self {
        Self::spawn_at(cluster, Some(store), "", &[], "info", "1s")
    }

    fn spawn(cluster: &Cluster, lines: &str, args: &[&str], level: &str, every: &str) -> Self {
        let store = cluster.playground.store_addr();
        Self::spawn_at(cluster, Some(store), lines, args, level, every)
    }

    fn spawn_at(
        cluster: &Cluster,
        store: Option<SocketAddr>,
        lines: &str,
        args: &[&str],
        level: &str,
        every: &str,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let config = dir.path().join("sidecar.toml");
        let store = store.map_or(String::new(), |at| format!("store-address = \"{at}\"\n"));
        let text = format!(
            "pd-endpoints = {:?}\n{store}status-addr = \"{free}\"\n\
             {lines}\n[log-backup]\nmax-flush-interval = \"{every}\"\n{}",
            cluster.pds(),
            cluster.tls.as_ref().map(section).unwrap_or_default(),
        );
        std::fs::write(&config, text).unwrap();
        Sidecar {
            child: spawn(&config, args, level, dir.path().join(LOG)),
            status_addr: free.to_string(),
            dir,
        }
    }

    /// Where its admin pages are.
    pub fn address(&self) -> &str {
        &self.status_addr
    }

    /// One page of the admin server; empty while it does not answer.
    pub fn page(&self, path: &str) -> String {
        self.send("GET", path, "")
    }

    /// Sends a request to the admin server.
    pub fn send(&self, method: &str, path: &str, body: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(&self.status_addr) {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            // A page that breaks off is looked at again by the caller.
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    /// What it has logged so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join(LOG)).unwrap()
    }

    /// Waits until the status page contains the text.
    #[track_caller]
    pub fn wait_status(&self, text: &str) {
        wait_until(text, || self.page("/status.json").contains(text));
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; exit code (-1 for a signal) and what it said.
    pub fn wait(mut self) -> (i32, String) {
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        let said = std::fs::read_to_string(self.dir.path().join(LOG)).unwrap();
        (code, said)
    }

    /// [`Sidecar::wait`] for one that must end by itself soon.
    #[track_caller]
    pub fn wait_at_most(mut self, patience: Duration) -> (i32, String) {
        let end = Instant::now() + patience;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "it runs after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait()
    }

    /// SIGTERM, then the exit code must be 0.
    #[track_caller]
    pub fn stop(self) {
        self.signal("-TERM");
        let (code, said) = self.wait();
        assert_eq!(code, 0, "{said}");
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &PathBuf, args: &[&str], level: &str, log: PathBuf) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tikv-pitr"))
        .args(["serve", "--config"])
        .arg(config)
        .args(args)
        .env("TIKV_PITR_LOG", level)
        .env("NO_COLOR", "1")
        .stderr(Stdio::from(std::fs::File::create(log).unwrap()))
        .spawn()
        .unwrap()
}

/// An empty directory as a storage.
pub struct Storage(TempDir);

impl Storage {
    pub fn new() -> Self {
        Storage(tempfile::tempdir().unwrap())
    }

    pub fn url(&self) -> String {
        format!("local://{}", self.0.path().display())
    }

    pub fn dir(&self) -> &std::path::Path {
        self.0.path()
    }
}
