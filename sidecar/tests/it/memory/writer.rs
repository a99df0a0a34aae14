//! A client that writes much: many rows in one request, as a loader does.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use pitr_cluster::net::store_channel;
use pitr_format::{EncodedKey, Ts};
use pitr_proto::kvrpcpb::{CommitRequest, Context, Mutation, Op, PrewriteRequest};
use pitr_proto::tikvpb::tikv_client::TikvClient;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tonic::transport::Channel;

use crate::system::Cluster;

/// Bytes of rows in one request.
const REQUEST: usize = 1 << 20;

/// The n-th key.
pub fn key(n: usize) -> Vec<u8> {
    format!("load/{n:08}").into_bytes()
}

pub struct Writer<'a> {
    cluster: &'a Cluster,
    runtime: tokio::runtime::Runtime,
    stub: TikvClient<Channel>,
}

impl<'a> Writer<'a> {
    pub fn of(cluster: &'a Cluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = cluster.playground.store_addr().to_string();
        let security = cluster.security();
        let channel = runtime.block_on(async { store_channel(&security, &address).unwrap() });
        let stub = TikvClient::new(channel);
        Writer {
            cluster,
            runtime,
            stub: stub.max_encoding_message_size(64 << 20),
        }
    }

    /// Writes rows of one region in one transaction; its commit ts.
    pub fn put(&self, rows: Range<usize>, len: usize) -> Ts {
        let start = self.now();
        let context = self.context(&key(rows.start));
        self.prewrite(&context, rows.clone(), len, start);
        let commit = self.now();
        self.commit(&context, rows.collect(), start, commit);
        commit
    }

    /// Writes one row into each region, in transactions of their own.
    pub fn put_scattered(&self, rows: Range<usize>, len: usize) -> Ts {
        rows.map(|n| self.put(n..n + 1, len)).last().unwrap()
    }

    /// Writes `bytes` in one transaction; its commit ts.
    pub fn one_transaction(&self, bytes: usize, len: usize) -> Ts {
        let (rows, step) = (bytes / len, REQUEST / len);
        let start = self.now();
        let context = self.context(&key(0));
        for at in (0..rows).step_by(step) {
            self.prewrite(&context, at..(at + step).min(rows), len, start);
        }
        // All of it waits for its commit now.
        std::thread::sleep(Duration::from_secs(2));
        let commit = self.now();
        for at in (0..rows).step_by(step) {
            let keys = (at..(at + step).min(rows)).collect();
            self.commit(&context, keys, start, commit);
        }
        commit
    }

    fn now(&self) -> Ts {
        self.cluster.playground.timestamp().unwrap()
    }

    fn context(&self, key: &[u8]) -> Context {
        let regions = self.cluster.playground.store().regions();
        let region = regions.find(EncodedKey::encode(key).as_bytes()).unwrap();
        regions.context(region)
    }

    fn prewrite(&self, context: &Context, rows: Range<usize>, len: usize, start: Ts) {
        let mut random = StdRng::seed_from_u64(rows.start as u64);
        let mut value = vec![0; len * rows.len()];
        random.fill_bytes(&mut value);
        let values = Bytes::from(value);
        let mutations = rows.clone().enumerate().map(|(at, n)| Mutation {
            op: Op::Put as i32,
            key: key(n).into(),
            value: values.slice(at * len..(at + 1) * len),
            ..Mutation::default()
        });
        let request = PrewriteRequest {
            context: Some(context.clone()),
            mutations: mutations.collect(),
            primary_lock: key(rows.start).into(),
            start_version: start.get(),
            lock_ttl: 600_000,
            ..PrewriteRequest::default()
        };
        let mut stub = self.stub.clone();
        let answer = self.runtime.block_on(stub.kv_prewrite(request)).unwrap();
        let answer = answer.into_inner();
        assert_eq!((answer.region_error, answer.errors.len()), (None, 0));
    }

    fn commit(&self, context: &Context, rows: Vec<usize>, start: Ts, commit: Ts) {
        let request = CommitRequest {
            context: Some(context.clone()),
            keys: rows.into_iter().map(|n| key(n).into()).collect(),
            start_version: start.get(),
            commit_version: commit.get(),
            ..CommitRequest::default()
        };
        let mut stub = self.stub.clone();
        let answer = self.runtime.block_on(stub.kv_commit(request)).unwrap();
        let answer = answer.into_inner();
        assert_eq!((answer.region_error, answer.error), (None, None));
    }
}
