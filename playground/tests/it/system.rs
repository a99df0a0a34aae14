//! A playground of a test's own and the clients of its two ports.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use pitr_playground::{Playground, PlaygroundConfig};
use pitr_proto::kvrpcpb::{Context, ScanRequest, SplitRegionRequest};
use pitr_proto::metapb::Region;
use pitr_proto::pdpb::pd_client::PdClient;
use pitr_proto::pdpb::{RequestHeader, ScanRegionsRequest, TsoRequest};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// The running playground and its clients.
pub struct System {
    pub pd: PdClient<Channel>,
    pub kv: TikvClient<Channel>,
    pub pd_channel: Channel,
    pub store_channel: Channel,
    pub cluster_id: u64,
    playground: Playground,
    dir: TempDir,
    gc_states: bool,
}

/// Whether and how often a store sends resolved timestamps.
pub const SELDOM: Duration = Duration::from_secs(3600);
/// Often enough for a test that waits for several.
pub const OFTEN: Duration = Duration::from_millis(100);

impl System {
    /// A new cluster.
    pub async fn start(resolved_ts_interval: Duration) -> System {
        let dir = tempfile::tempdir().expect("temporary directory");
        System::start_in(dir, resolved_ts_interval, false).await
    }

    /// A new cluster with a PD that has GC states.
    pub async fn start_with_gc_states() -> System {
        let dir = tempfile::tempdir().expect("temporary directory");
        System::start_in(dir, SELDOM, true).await
    }

    async fn start_in(dir: TempDir, resolved_ts_interval: Duration, gc_states: bool) -> System {
        let mut config = PlaygroundConfig::new(dir.path());
        config.gc_states = gc_states;
        config.resolved_ts_interval = resolved_ts_interval;
        let playground = Playground::start(config).expect("playground starts");
        let pd_channel = connect(&playground.pd_addr().to_string()).await;
        let store_channel = connect(&playground.store_addr().to_string()).await;
        System {
            pd: PdClient::new(pd_channel.clone()),
            kv: TikvClient::new(store_channel.clone()).max_decoding_message_size(256 << 20),
            cluster_id: playground.cluster_id(),
            pd_channel,
            store_channel,
            playground,
            dir,
            gc_states,
        }
    }

    /// Stops the process part and starts it again on the same data.
    pub async fn restart(self, resolved_ts_interval: Duration) -> System {
        let System {
            playground,
            dir,
            gc_states,
            ..
        } = self;
        tokio::task::spawn_blocking(move || playground.shutdown())
            .await
            .expect("shutdown");
        System::start_in(dir, resolved_ts_interval, gc_states).await
    }

    /// Stops it and removes its data.
    pub async fn stop(self) {
        let System {
            playground, dir, ..
        } = self;
        tokio::task::spawn_blocking(move || playground.shutdown())
            .await
            .expect("shutdown");
        drop(dir);
    }

    /// What PD wants in every request.
    pub fn header(&self) -> Option<RequestHeader> {
        Some(RequestHeader {
            cluster_id: self.cluster_id,
            ..RequestHeader::default()
        })
    }

    /// The largest of `count` timestamps that PD gives in one answer.
    pub async fn timestamps(&self, count: u32) -> u64 {
        let request = TsoRequest {
            header: self.header(),
            count,
            ..TsoRequest::default()
        };
        let mut answers = self
            .pd
            .clone()
            .tso(stream::iter([request]))
            .await
            .expect("tso")
            .into_inner();
        let answer = answers.next().await.expect("an answer").expect("no error");
        assert_eq!(answer.count, count);
        let ts = answer.timestamp.expect("timestamp");
        u64::try_from(ts.physical << 18 | ts.logical).expect("positive")
    }

    /// A fresh timestamp.
    pub async fn now(&self) -> u64 {
        self.timestamps(1).await
    }

    /// Every region as PD knows them, by start key.
    pub async fn regions(&self) -> Vec<Region> {
        regions(&self.pd, self.header()).await
    }

    /// Splits whatever regions hold these raw keys; all of them must be in one region.
    pub async fn split(&self, keys: &[&[u8]]) -> Vec<Region> {
        let first = encode(keys[0]);
        let region = self
            .regions()
            .await
            .into_iter()
            .rfind(|r| r.start_key <= first)
            .expect("region");
        let request = SplitRegionRequest {
            context: Some(context(&region)),
            split_keys: keys.iter().map(|k| Bytes::copy_from_slice(k)).collect(),
            ..SplitRegionRequest::default()
        };
        let answer = self
            .kv
            .clone()
            .split_region(request)
            .await
            .expect("split")
            .into_inner();
        assert_eq!(answer.region_error, None);
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        answer.regions
    }

    /// Every pair visible at `version`, in order of keys, over all regions.
    pub async fn scan_all(&self, version: u64) -> Vec<(Bytes, Bytes)> {
        let mut all = Vec::new();
        for region in self.regions().await {
            let end = decode(&region.end_key);
            let mut start = decode(&region.start_key);
            loop {
                let request = ScanRequest {
                    context: Some(context(&region)),
                    start_key: start.clone(),
                    end_key: end.clone(),
                    limit: 500,
                    version,
                    ..ScanRequest::default()
                };
                let answer = self
                    .kv
                    .clone()
                    .kv_scan(request)
                    .await
                    .expect("scan")
                    .into_inner();
                assert_eq!(answer.region_error, None);
                assert_eq!(answer.error, None);
                let count = answer.pairs.len();
                for pair in answer.pairs {
                    assert_eq!(pair.error, None, "{pair:?}");
                    all.push((pair.key, pair.value));
                }
                if count < 500 {
                    break;
                }
                let last = &all.last().expect("pairs").0;
                start = [last.as_ref(), &[0]].concat().into();
            }
        }
        all
    }
}

/// Every region as PD knows them, by start key.
pub async fn regions(pd: &PdClient<Channel>, header: Option<RequestHeader>) -> Vec<Region> {
    let request = ScanRegionsRequest {
        header,
        limit: 0,
        ..ScanRegionsRequest::default()
    };
    let answer = pd
        .clone()
        .scan_regions(request)
        .await
        .expect("regions")
        .into_inner();
    let regions: Vec<Region> = answer
        .regions
        .into_iter()
        .filter_map(|r| r.region)
        .collect();
    assert!(!regions.is_empty());
    assert!(regions[0].start_key.is_empty() && regions[regions.len() - 1].end_key.is_empty());
    for pair in regions.windows(2) {
        assert_eq!(pair[0].end_key, pair[1].start_key, "regions leave no hole");
    }
    regions
}

/// A channel that is connected.
pub async fn connect(addr: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("address");
    endpoint.connect().await.expect("connects")
}

/// The context of a request to the region.
pub fn context(region: &Region) -> Context {
    Context {
        region_id: region.id,
        region_epoch: region.region_epoch,
        peer: region.peers.first().copied(),
        ..Context::default()
    }
}

/// Memcomparable form of a user key (cdc-and-pd 1.12), written here once more on purpose.
pub fn encode(key: &[u8]) -> Bytes {
    let mut out = Vec::new();
    let mut rest = key;
    loop {
        let (group, tail) = rest.split_at(rest.len().min(8));
        let pad = 8 - group.len();
        out.extend_from_slice(group);
        out.resize(out.len() + pad, 0);
        out.push(0xFF - u8::try_from(pad).expect("at most 8"));
        if pad > 0 {
            return out.into();
        }
        rest = tail;
    }
}

/// User key of a memcomparable one; an empty one is a bound and stays empty.
pub fn decode(encoded: &[u8]) -> Bytes {
    let mut out = Vec::new();
    for group in encoded.chunks(9) {
        assert_eq!(group.len(), 9, "{encoded:?}");
        let kept = 8 - usize::from(0xFF - group[8]);
        out.extend_from_slice(&group[..kept]);
    }
    out.into()
}

#[test]
fn keys_are_encoded_as_the_specification_shows() {
    let vectors: [(&[u8], &str); 4] = [
        (b"", "0000000000000000f7"),
        (b"a", "6100000000000000f8"),
        (b"12345678", "3132333435363738ff0000000000000000f7"),
        (b"123456789", "3132333435363738ff3900000000000000f8"),
    ];
    for (key, expected) in vectors {
        assert_eq!(hex::encode(encode(key)), expected);
        assert_eq!(decode(&encode(key)), key);
    }
}
