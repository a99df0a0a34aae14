//! A change data client that trusts nothing: it rebuilds every version of every key from the rows
//! (cdc-and-pd 1.11) and panics when a resolved timestamp turns out to have been a lie.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use pitr_proto::cdcpb::event::row::OpType;
use pitr_proto::cdcpb::event::{LogType, Row};
use pitr_proto::metapb::Region;
use pitr_proto::pdpb::RequestHeader;
use pitr_proto::pdpb::pd_client::PdClient;
use tonic::transport::Channel;

use super::feed::{Feed, Item, MULTIPLEXED, register};
use super::system::{System, encode, regions};

/// One region under one request id.
struct Subscription {
    region: Region,
    /// Highest timestamp below which nothing can come any more.
    resolved: u64,
    had_resolved: bool,
    initialized: bool,
    prewrites: HashMap<(u64, Bytes), Bytes>,
    /// Commits and rollbacks that wait for the end of the scan.
    aside: Vec<Row>,
}

/// The client and what it knows.
pub struct Subscriber {
    feed: Feed,
    pd: PdClient<Channel>,
    header: Option<RequestHeader>,
    cluster_id: u64,
    next_request: u64,
    subscriptions: HashMap<(u64, u64), Subscription>,
    /// Ranges whose subscription ended, with how far they got.
    lost: Vec<(Region, u64)>,
    versions: BTreeMap<Bytes, BTreeMap<u64, Option<Bytes>>>,
    /// Subscriptions that ended.
    pub ends: usize,
}

impl Subscriber {
    /// Subscribes everything from a timestamp on.
    pub async fn start(system: &System, from: u64) -> Subscriber {
        let all = system.regions().await;
        let first = register(system.cluster_id, &all[0], 1, from);
        let feed = Feed::open(&system.store_channel, MULTIPLEXED, vec![first])
            .await
            .unwrap();
        let mut subscriber = Subscriber {
            feed,
            pd: system.pd.clone(),
            header: system.header(),
            cluster_id: system.cluster_id,
            next_request: 2,
            subscriptions: HashMap::new(),
            lost: Vec::new(),
            versions: BTreeMap::new(),
            ends: 0,
        };
        subscriber.add(1, all[0].clone(), from);
        for region in &all[1..] {
            subscriber
                .feed
                .send(register(system.cluster_id, region, 1, from));
            subscriber.add(1, region.clone(), from);
        }
        subscriber
    }

    /// Nothing at or below it can come any more, anywhere.
    pub fn frontier(&self) -> u64 {
        let live = self.subscriptions.values().map(|s| s.resolved);
        live.chain(self.lost.iter().map(|l| l.1))
            .min()
            .expect("something is subscribed")
    }

    /// What a reader sees at that time.
    pub fn snapshot(&self, at: u64) -> BTreeMap<Bytes, Bytes> {
        let visible = self.versions.iter().filter_map(|(key, versions)| {
            let (_, value) = versions.range(..=at).next_back()?;
            Some((key.clone(), value.clone()?))
        });
        visible.collect()
    }

    /// Takes the next piece of the stream.
    pub async fn step(&mut self) {
        match self.feed.next().await {
            Item::Rows {
                request_id,
                region_id,
                rows,
            } => {
                for row in rows {
                    self.row((request_id, region_id), row);
                }
            }
            Item::Resolved {
                request_id,
                regions,
                ts,
            } => {
                for region in regions {
                    let subscription = self.subscriptions.get_mut(&(request_id, region));
                    let Some(subscription) = subscription else {
                        continue;
                    };
                    assert!(
                        subscription.initialized,
                        "resolved ts before the end of the scan"
                    );
                    subscription.had_resolved = true;
                    subscription.resolved = subscription.resolved.max(ts);
                }
            }
            Item::Error {
                request_id,
                region_id,
                error,
            } => {
                if let Some(ended) = self.subscriptions.remove(&(request_id, region_id)) {
                    assert!(
                        error.epoch_not_match.is_some() || error.region_not_found.is_some(),
                        "{error:?}"
                    );
                    self.ends += 1;
                    self.lost.push((ended.region, ended.resolved));
                    self.recover().await;
                }
            }
            Item::OldResolved { .. } => panic!("old form"),
        }
    }

    /// Subscribes the regions that lie where something was lost.
    async fn recover(&mut self) {
        let request_id = self.next_request;
        self.next_request += 1;
        let all = regions(&self.pd, self.header.clone()).await;
        for (range, from) in std::mem::take(&mut self.lost) {
            for region in all.iter().filter(|r| overlap(r, &range)) {
                self.feed
                    .send(register(self.cluster_id, region, request_id, from));
                self.add(request_id, region.clone(), from);
            }
        }
    }

    fn add(&mut self, request_id: u64, region: Region, from: u64) {
        let subscription = Subscription {
            resolved: from,
            had_resolved: false,
            initialized: false,
            prewrites: HashMap::new(),
            aside: Vec::new(),
            region,
        };
        let before = self
            .subscriptions
            .insert((request_id, subscription.region.id), subscription);
        assert!(before.is_none());
    }

    fn row(&mut self, id: (u64, u64), row: Row) {
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return;
        };
        let mut versions = Vec::new();
        subscription.take(row, &mut versions);
        for (key, commit_ts, value) in versions {
            let versions = self.versions.entry(key.clone()).or_default();
            let before = versions.insert(commit_ts, value.clone());
            assert!(
                before.as_ref().is_none_or(|b| *b == value),
                "{key:?} at {commit_ts} was {before:?} and is {value:?}"
            );
        }
    }
}

fn overlap(a: &Region, b: &Region) -> bool {
    (a.end_key.is_empty() || b.start_key < a.end_key)
        && (b.end_key.is_empty() || a.start_key < b.end_key)
}

type Version = (Bytes, u64, Option<Bytes>);

impl Subscription {
    fn take(&mut self, row: Row, versions: &mut Vec<Version>) {
        let kind = row.r#type();
        if matches!(
            kind,
            LogType::Commit | LogType::Committed | LogType::Prewrite
        ) {
            let key = encode(&row.key);
            let inside = self.region.start_key <= key
                && (self.region.end_key.is_empty() || key < self.region.end_key);
            assert!(inside, "{:?} is not in region {:?}", row.key, self.region);
        }
        if matches!(kind, LogType::Commit | LogType::Committed) {
            assert!(
                !self.had_resolved || row.commit_ts > self.resolved,
                "{:?} committed at {} after the region was resolved up to {}",
                row.key,
                row.commit_ts,
                self.resolved
            );
        }
        match kind {
            LogType::Prewrite => {
                let entry = self.prewrites.entry((row.start_ts, row.key)).or_default();
                if !row.value.is_empty() {
                    *entry = row.value;
                }
            }
            LogType::Committed => {
                let value = (row.op_type() == OpType::Put).then_some(row.value);
                versions.push((row.key, row.commit_ts, value));
            }
            LogType::Commit | LogType::Rollback if !self.initialized => self.aside.push(row),
            LogType::Commit => versions.push(self.commit(row).expect("a prewrite came before")),
            LogType::Rollback => {
                self.prewrites.remove(&(row.start_ts, row.key));
            }
            LogType::Initialized => {
                assert!(!self.initialized, "the scan ended twice");
                self.initialized = true;
                for row in std::mem::take(&mut self.aside) {
                    match row.r#type() {
                        // Without a prewrite the scan has brought the version itself.
                        LogType::Commit => versions.extend(self.commit(row)),
                        _ => drop(self.prewrites.remove(&(row.start_ts, row.key))),
                    }
                }
            }
            LogType::Unknown => assert!(row.key.is_empty(), "{row:?}"),
        }
    }

    fn commit(&mut self, row: Row) -> Option<Version> {
        let prewrite = self.prewrites.remove(&(row.start_ts, row.key.clone()));
        let value = match row.op_type() {
            OpType::Put if !row.value.is_empty() => Some(row.value),
            OpType::Put => Some(prewrite?),
            _ => None,
        };
        Some((row.key, row.commit_ts, value))
    }
}
