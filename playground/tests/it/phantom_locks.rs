//! Locks in a change stream's table that nobody holds: a store forgets a lock when a commit or a
//! rollback of its transaction is written, not when the lock is removed. As TiKV from 8.5.4 on.

use bytes::Bytes;
use pitr_proto::cdcpb::ChangeDataRequest;
use pitr_proto::cdcpb::change_data_request::{Deregister, Request};
use pitr_proto::cdcpb::event::{LogType, Row};
use pitr_proto::kvrpcpb::{
    BatchRollbackRequest, CheckTxnStatusRequest, CommitRequest, DeleteRangeRequest, Mutation, Op,
    PrewriteRequest, ResolveLockRequest, ScanLockRequest,
};
use pitr_proto::metapb::Region;

use super::feed::{Feed, Item, MULTIPLEXED, register};
use super::system::{OFTEN, System, context};

/// So many resolved timestamps in a row show that one stands.
const TICKS: usize = 5;
/// After so many of them what was waited for does not come.
const PATIENCE: usize = 100;

/// A cluster of one region.
struct World {
    system: System,
    region: Region,
}

/// How a transaction is rolled back.
#[derive(Clone, Copy, Debug)]
enum Rollback {
    Batch,
    ResolveKey,
    ResolveRegion,
    /// By a client that finds the lock of the primary expired.
    Expire,
}

/// Asks the region for something; whatever there is of an error fails the test.
macro_rules! ask {
    ($world:ident, $method:ident, $request:ident, $($field:ident: $value:expr),*) => {{
        let request = $request {
            context: Some(context(&$world.region)),
            $($field: $value,)*
            ..$request::default()
        };
        let answer = $world.system.kv.clone().$method(request).await.unwrap().into_inner();
        assert_eq!(answer.region_error, None);
        answer
    }};
}

impl World {
    async fn start() -> World {
        let system = System::start(OFTEN).await;
        let region = system.regions().await.remove(0);
        World { system, region }
    }

    async fn prewrite(&self, key: &str, primary: &str, start: u64) {
        let mutation = Mutation {
            op: Op::Put.into(),
            key: key.to_owned().into(),
            value: "v".into(),
            ..Mutation::default()
        };
        // It has expired when somebody looks.
        let answer = ask!(self, kv_prewrite, PrewriteRequest, mutations: vec![mutation],
            primary_lock: primary.to_owned().into(), start_version: start, lock_ttl: 1);
        assert_eq!(answer.errors, []);
    }

    /// Commits now; the commit ts.
    async fn commit(&self, key: &str, start: u64) -> u64 {
        let (now, keys) = (self.system.now().await, vec![key.to_owned().into()]);
        let answer = ask!(self, kv_commit, CommitRequest, keys: keys, start_version: start,
            commit_version: now);
        assert_eq!(answer.error, None);
        now
    }

    /// Puts a key in a transaction of its own; the commit ts.
    async fn put(&self, key: &str) -> u64 {
        let start = self.system.now().await;
        self.prewrite(key, key, start).await;
        self.commit(key, start).await
    }

    /// Rolls the transaction back that has locked a key.
    async fn roll_back(&self, key: &str, start: u64, how: Rollback) {
        let key = Bytes::from(key.to_owned());
        let error = match how {
            Rollback::Batch => {
                ask!(self, kv_batch_rollback, BatchRollbackRequest, keys: vec![key],
                    start_version: start)
                .error
            }
            Rollback::ResolveKey => {
                ask!(self, kv_resolve_lock, ResolveLockRequest, keys: vec![key],
                    start_version: start)
                .error
            }
            Rollback::ResolveRegion => {
                ask!(self, kv_resolve_lock, ResolveLockRequest, start_version: start).error
            }
            Rollback::Expire => {
                ask!(self, kv_check_txn_status, CheckTxnStatusRequest, primary_key: key,
                    lock_ts: start, current_ts: self.system.now().await)
                .error
            }
        };
        assert_eq!(error, None, "{how:?}");
    }

    /// Locks a key while another transaction holds the resolved ts below, which goes on with the
    /// rollback of that one; the start ts. `after` a commit of the key = it is that commit's ts.
    async fn lock(&self, key: &str, primary: &str, after: bool) -> u64 {
        let below = self.system.now().await;
        self.prewrite("below", "below", below).await;
        let start = match after {
            true => self.put(key).await,
            false => self.system.now().await,
        };
        self.prewrite(key, primary, start).await;
        self.roll_back("below", below, Rollback::Batch).await;
        start
    }

    async fn shows_no_lock(&self) {
        let now = self.system.now().await;
        let answer = ask!(self, kv_scan_lock, ScanLockRequest, max_version: now);
        assert_eq!((answer.error, answer.locks), (None, vec![]));
    }

    async fn watch(&self) -> Watch {
        let first = register(self.system.cluster_id, &self.region, 1, 1);
        let feed = Feed::open(&self.system.store_channel, MULTIPLEXED, vec![first]);
        let (mut feed, rows) = (feed.await.unwrap(), Vec::new());
        feed.wait_initialized(1).await;
        Watch { feed, id: 1, rows }
    }
}

/// A change stream of the region.
struct Watch {
    feed: Feed,
    /// Of its registration.
    id: u64,
    rows: Vec<Row>,
}

impl Watch {
    /// The next resolved ts.
    async fn tick(&mut self) -> u64 {
        loop {
            match self.feed.next().await {
                Item::Rows { rows, .. } => self.rows.extend(rows),
                Item::Resolved { ts, .. } => return ts,
                other => panic!("{other:?}"),
            }
        }
    }

    /// The first resolved ts that is not below `ts`.
    async fn reaches(&mut self, ts: u64) -> u64 {
        for _ in 0..PATIENCE {
            let resolved = self.tick().await;
            if resolved >= ts {
                return resolved;
            }
        }
        panic!("{PATIENCE} resolved timestamps, all of them below {ts}");
    }

    async fn stands_at(&mut self, ts: u64, why: &str) {
        // What was under way before comes first.
        let mut seen = vec![self.reaches(ts).await];
        for _ in 1..TICKS {
            seen.push(self.tick().await);
        }
        assert_eq!(seen, [ts; TICKS], "{why}");
    }

    /// Kinds of the rows of one transaction on a key.
    fn kinds(&self, key: &str, start: u64) -> Vec<LogType> {
        let of = |row: &&Row| row.start_ts == start && row.key == key;
        self.rows.iter().filter(of).map(Row::r#type).collect()
    }

    async fn leave(&mut self, world: &World) {
        let registered = register(world.system.cluster_id, &world.region, self.id, 1);
        self.feed.send(ChangeDataRequest {
            request: Some(Request::Deregister(Deregister {})),
            ..registered
        });
        let (id, _, error) = self.feed.next_error().await;
        assert!(error.region_not_found.is_some() && id == self.id);
    }

    /// Leaves and registers anew, from a ts on.
    async fn again(&mut self, world: &World, from: u64) {
        self.leave(world).await;
        self.id += 1;
        let request = register(world.system.cluster_id, &world.region, self.id, from);
        self.feed.send(request);
        self.feed.wait_initialized(self.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_overlaps_a_commit_and_leaves_no_record_holds_the_resolved_ts() {
    let world = World::start().await;
    let mut watch = world.watch().await;
    for (how, key) in [
        (Rollback::Batch, "batch"),
        (Rollback::ResolveKey, "key"),
        (Rollback::ResolveRegion, "region"),
    ] {
        let start = world.lock(key, "another", true).await;
        world.roll_back(key, start, how).await;
        world.shows_no_lock().await;
        watch.stands_at(start, key).await;
        // The next lock takes its place in the table, and goes with its own commit.
        let commit = world.put(key).await;
        watch.reaches(commit).await;
        assert_eq!(watch.kinds(key, start), [LogType::Prewrite], "{how:?}");
    }
    world.system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_locks_are_read_anew_when_the_last_stream_of_a_region_has_gone() {
    let world = World::start().await;
    let (mut first, mut second) = (world.watch().await, world.watch().await);
    let start = world.lock("k", "another", true).await;
    world.roll_back("k", start, Rollback::Batch).await;
    world.shows_no_lock().await;
    first.stands_at(start, "a lock that is not there").await;
    first.again(&world, start).await;
    first.stands_at(start, "the second is there").await;
    second.stands_at(start, "it never went").await;
    second.leave(&world).await;
    first.stands_at(start, "the first is there").await;
    first.again(&world, start).await;
    first.reaches(world.system.now().await).await;
    world.system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_rollback_that_overlaps_a_commit_is_told_at_the_ts_of_that_commit() {
    let world = World::start().await;
    let mut watch = world.watch().await;
    for (how, key) in [
        (Rollback::Batch, "batch"),
        (Rollback::ResolveKey, "key"),
        (Rollback::ResolveRegion, "region"),
        (Rollback::Expire, "expired"),
    ] {
        let start = world.lock(key, key, true).await;
        watch.stands_at(start, key).await;
        world.roll_back(key, start, how).await;
        let now = world.system.now().await;
        watch.reaches(now).await;
        let told = [LogType::Prewrite, LogType::Rollback];
        assert_eq!(watch.kinds(key, start), told, "{how:?}");
        assert_eq!(watch.rows.last().map(|row| row.commit_ts), Some(0));
        let seen = world.system.scan_all(now).await;
        assert!(seen.iter().any(|(k, _)| k == key), "the commit stays");
    }
    world.system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_in_a_range_that_is_deleted_holds_the_resolved_ts() {
    let world = World::start().await;
    let mut watch = world.watch().await;
    let start = world.lock("k", "k", false).await;
    let answer = ask!(world, kv_delete_range, DeleteRangeRequest, start_key: "k".into(),
        end_key: "l".into());
    assert_eq!(answer.error, "");
    world.shows_no_lock().await;
    watch.stands_at(start, "nobody is told").await;
    assert_eq!(watch.kinds("k", start), [LogType::Prewrite]);
    watch.again(&world, start).await;
    watch.reaches(world.system.now().await).await;
    world.system.stop().await;
}
