//! Several stores of one playground and their clients, on the playground's own PD or a real one. All
//! that is asked goes through the ports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pitr_playground::{Playground, PlaygroundConfig};
use pitr_proto::errorpb;
use pitr_proto::kvrpcpb::{Context, GetRequest, Mutation, Op, PrewriteRequest};
use pitr_proto::metapb::{self, Peer, Region};
use pitr_proto::pdpb::pd_client::PdClient;
use pitr_proto::pdpb::{GetAllStoresRequest, RequestHeader, ScanRegionsRequest};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use pitr_restore_worker::engine::{Engine, EngineCf};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::system::{OFTEN, connect, encode};

/// Three stores, unless asked otherwise, and their clients.
pub struct Stores {
    pub playground: Arc<Playground>,
    pub pd: PdClient<Channel>,
    pub channels: BTreeMap<u64, Channel>,
    dir: TempDir,
    config: PlaygroundConfig,
}

fn config(dir: &Path) -> PlaygroundConfig {
    let mut config = PlaygroundConfig::new(dir);
    config.stores = 3;
    config.resolved_ts_interval = OFTEN;
    config.admin_addr = Some("127.0.0.1:0".parse().unwrap());
    config
}

impl Stores {
    pub async fn start() -> Stores {
        Stores::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut PlaygroundConfig)) -> Stores {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        Stores::start_in(dir, config).await
    }

    async fn start_in(dir: TempDir, config: PlaygroundConfig) -> Stores {
        let playground = Playground::start(config.clone()).unwrap();
        let mut channels = BTreeMap::new();
        for address in playground.addresses() {
            // Lazy: it has to outlive an outage of the store.
            let url = format!("http://{}", address.store);
            channels.insert(
                address.id,
                Endpoint::from_shared(url).unwrap().connect_lazy(),
            );
        }
        Stores {
            pd: PdClient::new(connect(&playground.pd_addr().to_string()).await),
            playground: Arc::new(playground),
            channels,
            dir,
            config,
        }
    }

    pub fn header(&self) -> Option<RequestHeader> {
        Some(RequestHeader {
            cluster_id: self.playground.cluster_id(),
            ..Default::default()
        })
    }

    pub fn kv(&self, store: u64) -> TikvClient<Channel> {
        TikvClient::new(self.channels[&store].clone())
    }

    pub fn now(&self) -> u64 {
        self.playground.timestamp().unwrap().get()
    }

    /// Regions with their leaders, as PD's scan tells them.
    pub async fn regions(&self) -> Vec<(Region, Option<Peer>)> {
        let request = ScanRegionsRequest {
            header: self.header(),
            ..Default::default()
        };
        let answer = self.pd.clone().scan_regions(request).await.unwrap();
        let regions = answer.into_inner().regions.into_iter();
        regions.map(|r| (r.region.unwrap(), r.leader)).collect()
    }

    /// The same, of those regions that PD has heard of with a peer on every store.
    pub async fn known_regions(&self) -> Vec<(Region, Option<Peer>)> {
        let all = self.channels.len();
        let mut regions = self.regions().await;
        regions.retain(|(region, _)| region.peers.len() == all);
        regions
    }

    /// The store that leads the region of a key, in truth.
    pub fn leader_of(&self, key: &[u8]) -> u64 {
        let regions = self.playground.store().regions();
        let region = regions.find(&encode(key)).unwrap();
        regions.leader(region.id).unwrap().store_id
    }

    pub async fn region_of(&self, key: &[u8]) -> (Region, Option<Peer>) {
        let key = encode(key);
        let regions = self.regions().await;
        regions
            .into_iter()
            .rfind(|(r, _)| r.start_key <= key)
            .unwrap()
    }

    /// A read on a store, addressed to that store's peer.
    pub async fn get_at(&self, store: u64, key: &[u8]) -> Result<Bytes, errorpb::Error> {
        let (region, _) = self.region_of(key).await;
        self.get_in(&region, store, key).await
    }

    /// The same in the shape that the client believes a region to have.
    pub async fn get_in(
        &self,
        region: &Region,
        store: u64,
        key: &[u8],
    ) -> Result<Bytes, errorpb::Error> {
        let request = GetRequest {
            context: Some(context(region, store)),
            key: key.to_vec().into(),
            version: self.now(),
            ..Default::default()
        };
        let answer = self.kv(store).kv_get(request).await.unwrap().into_inner();
        match answer.region_error {
            Some(error) => Err(error),
            None => Ok(answer.value),
        }
    }

    /// Writes at the leader that PD names, in one phase, until it is done; the commit ts.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> u64 {
        for _ in 0..200 {
            if let Some(ts) = self.try_put(key, value).await {
                return ts;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody takes the write");
    }

    async fn try_put(&self, key: &[u8], value: &[u8]) -> Option<u64> {
        let (region, leader) = self.region_of(key).await;
        let done = self.put_in(&region, leader?.store_id, key, value).await;
        done.ok()?.ok()
    }

    /// Writes in one phase at a store, in the shape that the client believes a region to have; the
    /// commit ts.
    pub async fn put_in(
        &self,
        region: &Region,
        store: u64,
        key: &[u8],
        value: &[u8],
    ) -> Result<Result<u64, errorpb::Error>, Status> {
        let request = PrewriteRequest {
            context: Some(context(region, store)),
            mutations: vec![Mutation {
                op: Op::Put.into(),
                key: key.to_vec().into(),
                value: value.to_vec().into(),
                ..Default::default()
            }],
            primary_lock: key.to_vec().into(),
            start_version: self.now(),
            lock_ttl: 3000,
            txn_size: 1,
            use_async_commit: true,
            try_one_pc: true,
            ..Default::default()
        };
        let answer = self.kv(store).kv_prewrite(request).await?.into_inner();
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        Ok(match answer.region_error {
            Some(error) => Err(error),
            None => Ok(answer.one_pc_commit_ts),
        })
    }

    /// The blocking calls of the playground.
    pub async fn command<T: Send + 'static>(
        &self,
        command: impl FnOnce(&Playground) -> T + Send + 'static,
    ) -> T {
        let playground = self.playground.clone();
        let done = tokio::task::spawn_blocking(move || command(&playground));
        done.await.unwrap()
    }

    /// Stops it and waits for that.
    pub async fn stop(self) {
        self.end().await;
    }

    /// Stops the process part and starts it again on the same data, at other addresses.
    pub async fn restart(self) -> Stores {
        let (dir, config) = self.end().await;
        Stores::start_in(dir, config).await
    }

    /// The same with a change that is refused; why.
    pub async fn restart_with(self, change: impl FnOnce(&mut PlaygroundConfig)) -> String {
        let (_dir, mut config) = self.end().await;
        change(&mut config);
        Playground::start(config).err().unwrap().to_string()
    }

    async fn end(self) -> (TempDir, PlaygroundConfig) {
        let playground = Arc::into_inner(self.playground).expect("no command under way");
        let stopped = tokio::task::spawn_blocking(move || playground.shutdown());
        stopped.await.unwrap();
        (self.dir, self.config)
    }

    /// The records of the stores, by id, as PD tells them.
    pub async fn records(&self) -> Vec<metapb::Store> {
        let request = GetAllStoresRequest {
            header: self.header(),
            ..Default::default()
        };
        let answer = self.pd.clone().get_all_stores(request).await.unwrap();
        let mut stores = answer.into_inner().stores;
        stores.sort_by_key(|store| store.id);
        stores
    }

    /// A command of the admin page that is obeyed; its answer.
    pub async fn admin(&self, method: &str, path: &str) -> Value {
        let admin = self.playground.admin_addr().unwrap();
        let said = http(admin, method, path).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{path}: {said}");
        serde_json::from_str(said.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Every store has the same pairs.
    pub fn assert_equal(&self) {
        let contents: Vec<_> = self
            .playground
            .stores()
            .iter()
            .map(|store| {
                let engine = store.engine();
                let all = EngineCf::ALL.map(|cf| engine.scan(cf, &[], &[]));
                all.into_iter()
                    .flatten()
                    .map(|p| p.unwrap())
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(contents.iter().all(|pairs| pairs == &contents[0]));
    }
}

pub fn context(region: &Region, store: u64) -> Context {
    Context {
        region_id: region.id,
        region_epoch: region.region_epoch,
        peer: region.peers.iter().find(|p| p.store_id == store).copied(),
        ..Default::default()
    }
}

/// What the page says, head and body.
pub async fn http(to: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
