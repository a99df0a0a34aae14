//! The key space behind one lock: requests, leases, durability, and the signal for watchers.
//!
//! Invariant: a change is in the journal before it is committed, so before anybody can see it.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use parking_lot::Mutex;
use pitr_proto::etcdserverpb as pb;
use pitr_proto::mvccpb::{Event, KeyValue, event::EventType};
use tokio::sync::watch;

use super::error::EtcdError;
use super::journal::{Entry, Journal, Op, SavedKey};
use super::model::{KeySpan, Model};
use super::request;
use crate::pd::clock::Clock;

/// Above this size the journal is replaced by a snapshot when it is opened.
const COMPACT_JOURNAL_BYTES: u64 = 8 << 20;
/// The longest lease, as in etcd.
const MAX_TTL: i64 = 9_000_000_000;

/// etcd's state.
pub struct EtcdStore {
    inner: Mutex<Inner>,
    changed: watch::Sender<i64>,
    clock: Clock,
    cluster_id: u64,
}

struct Inner {
    model: Model,
    journal: Journal,
    leases: BTreeMap<i64, Lease>,
}

#[derive(Clone, Copy)]
struct Lease {
    ttl: i64,
    deadline_ms: u64,
}

impl EtcdStore {
    /// Opens `dir/etcd.jsonl`; keeps about `history_limit` events for watchers. Leases of the
    /// last run begin their time to live anew, as after a change of etcd's leader.
    pub fn open(
        dir: &Path,
        cluster_id: u64,
        history_limit: usize,
        clock: Clock,
    ) -> Result<Self, EtcdError> {
        let (journal, entries) = Journal::open(&dir.join("etcd.jsonl"))?;
        let mut model = Model::new(history_limit);
        let mut ttls = BTreeMap::new();
        for (at, entry) in entries.into_iter().enumerate() {
            replay(&mut model, &mut ttls, entry, history_limit)
                .map_err(|reason| journal.damaged(at + 1, reason))?;
        }
        let journal = match journal.size() > COMPACT_JOURNAL_BYTES {
            true => journal.rewrite(&snapshot(&model, &ttls))?,
            false => journal,
        };
        let now = clock();
        let leases = ttls
            .into_iter()
            .map(|(id, ttl)| (id, Lease::new(ttl, now)))
            .collect();
        let (changed, _) = watch::channel(model.revision());
        Ok(EtcdStore {
            inner: Mutex::new(Inner {
                model,
                journal,
                leases,
            }),
            changed,
            clock,
            cluster_id,
        })
    }

    /// The header of an answer at `revision`.
    pub fn header(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: 1,
            revision,
            raft_term: 1,
        })
    }

    /// Tells each new revision.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.changed.subscribe()
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.inner.lock().model.revision()
    }

    /// Executes a `Range`.
    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, EtcdError> {
        let inner = self.inner.lock();
        let mut answer = request::range(&inner.model, request)?;
        answer.header = self.header(inner.model.revision());
        Ok(answer)
    }

    /// Executes a `Put`.
    pub fn put(&self, request: &pb::PutRequest) -> Result<pb::PutResponse, EtcdError> {
        let leases = Vec::from_iter((request.lease != 0).then_some(request.lease));
        let (mut answer, revision) = self.change(&leases, |model| request::put(model, request))?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// Executes a `DeleteRange`.
    pub fn delete_range(
        &self,
        request: &pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, EtcdError> {
        let (mut answer, revision) =
            self.change(&[], |model| request::delete_range(model, request))?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    /// Executes a `Txn`.
    pub fn txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, EtcdError> {
        let mut leases = Vec::new();
        request::leases_of(&request.success, &mut leases);
        request::leases_of(&request.failure, &mut leases);
        let (mut answer, revision) = self.change(&leases, |model| request::txn(model, request))?;
        answer.header = self.header(revision);
        Ok(answer)
    }

    fn change<T>(
        &self,
        leases: &[i64],
        run: impl FnOnce(&mut Model) -> Result<T, EtcdError>,
    ) -> Result<(T, i64), EtcdError> {
        let mut inner = self.inner.lock();
        if leases.iter().any(|id| !inner.leases.contains_key(id)) {
            return Err(EtcdError::LeaseNotFound);
        }
        let answer = run(&mut inner.model).inspect_err(|_| inner.model.undo())?;
        inner.commit(Vec::new())?;
        let revision = inner.model.revision();
        drop(inner);
        self.notify(revision);
        Ok((answer, revision))
    }

    fn notify(&self, revision: i64) {
        self.changed.send_if_modified(|seen| {
            let newer = revision > *seen;
            *seen = revision.max(*seen);
            newer
        });
    }

    /// Events for a watcher and the oldest revision that is still known; see
    /// [`Model::events_since`].
    pub fn events_since(&self, span: &KeySpan, from: i64, limit: usize) -> Result<Vec<Event>, i64> {
        let inner = self.inner.lock();
        inner
            .model
            .events_since(span, from, limit)
            .map_err(|_| inner.model.compacted())
    }

    /// Grants a lease; id 0 asks for a free one. Returns id, TTL and revision.
    pub fn grant(&self, id: i64, ttl: i64) -> Result<(i64, i64, i64), EtcdError> {
        let mut inner = self.inner.lock();
        let ttl = ttl.clamp(1, MAX_TTL);
        let id = match id {
            0 => std::iter::repeat_with(|| (rand::random::<u64>() >> 1) as i64)
                .find(|id| *id != 0 && !inner.leases.contains_key(id))
                .unwrap_or(1),
            id if inner.leases.contains_key(&id) => return Err(EtcdError::LeaseExists),
            id => id,
        };
        inner.journal.append(&[Entry::Grant { id, ttl }])?;
        let lease = Lease::new(ttl, (self.clock)());
        inner.leases.insert(id, lease);
        Ok((id, ttl, inner.model.revision()))
    }

    /// Lets a lease live for its TTL from now on; the TTL, or 0 when there is no such lease.
    pub fn keep_alive(&self, id: i64) -> (i64, i64) {
        let now = (self.clock)();
        let mut inner = self.inner.lock();
        let ttl = inner.leases.get_mut(&id).map_or(0, |lease| {
            *lease = Lease::new(lease.ttl, now);
            lease.ttl
        });
        (ttl, inner.model.revision())
    }

    /// Ends a lease and removes its keys.
    pub fn revoke(&self, id: i64) -> Result<i64, EtcdError> {
        let mut inner = self.inner.lock();
        if !inner.leases.contains_key(&id) {
            return Err(EtcdError::LeaseNotFound);
        }
        inner.revoke(id)?;
        let revision = inner.model.revision();
        drop(inner);
        self.notify(revision);
        Ok(revision)
    }

    /// Ends the leases whose time is over. Called about twice a second.
    pub fn expire_leases(&self) -> Result<(), EtcdError> {
        let now = (self.clock)();
        let mut inner = self.inner.lock();
        let over: Vec<i64> = inner
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline_ms <= now)
            .map(|(id, _)| *id)
            .collect();
        let result = over.into_iter().try_for_each(|id| inner.revoke(id));
        let revision = inner.model.revision();
        drop(inner);
        self.notify(revision);
        result
    }
}

impl Lease {
    fn new(ttl: i64, now_ms: u64) -> Self {
        let ms = u64::try_from(ttl).unwrap_or(0).saturating_mul(1000);
        Lease {
            ttl,
            deadline_ms: now_ms.saturating_add(ms),
        }
    }
}

impl Inner {
    /// Journal first, then visible.
    fn commit(&mut self, mut entries: Vec<Entry>) -> Result<(), EtcdError> {
        if !self.model.pending().is_empty() {
            entries.insert(
                0,
                Entry::Change {
                    revision: self.model.revision() + 1,
                    ops: self.model.pending().iter().filter_map(to_op).collect(),
                },
            );
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.journal
            .append(&entries)
            .inspect_err(|_| self.model.undo())?;
        self.model.commit();
        Ok(())
    }

    fn revoke(&mut self, id: i64) -> Result<(), EtcdError> {
        let keys: Vec<Bytes> = self
            .model
            .all()
            .filter(|kv| kv.lease == id)
            .map(|kv| kv.key.clone())
            .collect();
        for key in keys {
            self.model.delete(&key);
        }
        self.commit(vec![Entry::Revoke { id }])?;
        self.leases.remove(&id);
        Ok(())
    }
}

fn to_op(event: &Event) -> Option<Op> {
    let kv = event.kv.as_ref()?;
    let key = hex::encode(&kv.key);
    Some(match event.r#type() {
        EventType::Put => Op::Put {
            key,
            value: hex::encode(&kv.value),
            lease: kv.lease,
        },
        EventType::Delete => Op::Delete { key },
    })
}

fn from_hex(text: &str) -> Result<Bytes, String> {
    hex::decode(text)
        .map(Bytes::from)
        .map_err(|e| e.to_string())
}

fn replay(
    model: &mut Model,
    leases: &mut BTreeMap<i64, i64>,
    entry: Entry,
    history_limit: usize,
) -> Result<(), String> {
    match entry {
        Entry::Grant { id, ttl } => {
            leases.insert(id, ttl);
        }
        Entry::Revoke { id } => {
            leases.remove(&id);
        }
        Entry::Snapshot { revision, keys } => {
            let keys = keys.into_iter().map(to_key_value);
            let keys = keys.collect::<Result<_, _>>()?;
            *model = Model::restored(revision, keys, history_limit);
        }
        Entry::Change { revision, ops } => {
            if revision != model.revision() + 1 {
                let newest = model.revision();
                return Err(format!("revision {revision} follows {newest}"));
            }
            for op in ops {
                match op {
                    Op::Put { key, value, lease } => {
                        model.put(from_hex(&key)?, from_hex(&value)?, lease);
                    }
                    Op::Delete { key } => {
                        model.delete(&from_hex(&key)?);
                    }
                }
            }
            model.commit();
        }
    }
    Ok(())
}

fn to_key_value(saved: SavedKey) -> Result<KeyValue, String> {
    Ok(KeyValue {
        key: from_hex(&saved.key)?,
        value: from_hex(&saved.value)?,
        create_revision: saved.created,
        mod_revision: saved.modified,
        version: saved.version,
        lease: saved.lease,
    })
}

fn snapshot(model: &Model, leases: &BTreeMap<i64, i64>) -> Vec<Entry> {
    let keys = model.all().map(|kv| SavedKey {
        key: hex::encode(&kv.key),
        value: hex::encode(&kv.value),
        created: kv.create_revision,
        modified: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    });
    let mut entries = vec![Entry::Snapshot {
        revision: model.revision(),
        keys: keys.collect(),
    }];
    entries.extend(
        leases
            .iter()
            .map(|(id, ttl)| Entry::Grant { id: *id, ttl: *ttl }),
    );
    entries
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn open(dir: &Path, now: &Arc<AtomicU64>) -> EtcdStore {
        let now = now.clone();
        let clock: Clock = Arc::new(move || now.load(Ordering::Relaxed));
        EtcdStore::open(dir, 1, 100, clock).unwrap()
    }

    fn put(store: &EtcdStore, key: &str, value: &str, lease: i64) -> Result<i64, EtcdError> {
        let request = pb::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            lease,
            prev_kv: false,
        };
        Ok(store.put(&request)?.header.unwrap().revision)
    }

    fn all(store: &EtcdStore) -> Vec<KeyValue> {
        let request = pb::RangeRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            ..Default::default()
        };
        store.range(&request).unwrap().kvs
    }

    #[test]
    fn keys_revisions_history_and_leases_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(0));
        let store = open(dir.path(), &now);
        let (lease, ..) = store.grant(0, 10).unwrap();
        put(&store, "a", "1", 0).unwrap();
        put(&store, "b", "1", lease).unwrap();
        put(&store, "a", "2", 0).unwrap();
        let before = all(&store);
        drop(store);
        now.store(9_000, Ordering::Relaxed);
        let store = open(dir.path(), &now);
        assert_eq!(all(&store), before);
        let span = KeySpan::new(&"a".into(), &"c".into()).unwrap();
        assert_eq!(store.events_since(&span, 2, 10).unwrap().len(), 3);
        assert_eq!(put(&store, "c", "1", 0).unwrap(), 5);
        // The lease lives its whole time from the restart on.
        now.store(18_999, Ordering::Relaxed);
        store.expire_leases().unwrap();
        assert_eq!(all(&store).len(), 3);
        now.store(19_000, Ordering::Relaxed);
        store.expire_leases().unwrap();
        assert_eq!(all(&store).len(), 2);
        assert_eq!(store.revision(), 6);
    }

    #[test]
    fn a_lease_takes_its_keys_along_and_then_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(0));
        let store = open(dir.path(), &now);
        store.grant(7, 10).unwrap();
        assert!(matches!(store.grant(7, 10), Err(EtcdError::LeaseExists)));
        put(&store, "a", "1", 7).unwrap();
        put(&store, "b", "1", 7).unwrap();
        assert_eq!(store.keep_alive(7).0, 10);
        assert_eq!(store.revoke(7).unwrap(), 4);
        assert!(all(&store).is_empty());
        assert_eq!(store.keep_alive(7).0, 0);
        assert!(matches!(
            put(&store, "a", "1", 7),
            Err(EtcdError::LeaseNotFound)
        ));
        drop(store);
        assert!(all(&open(dir.path(), &now)).is_empty());
    }

    #[test]
    fn a_snapshot_brings_back_the_same_keys_and_revision() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicU64::new(0));
        let store = open(dir.path(), &now);
        put(&store, "a", "1", 0).unwrap();
        put(&store, "a", "2", 0).unwrap();
        let before = all(&store);
        let lines = snapshot(&store.inner.lock().model, &BTreeMap::from([(3, 60)]));
        drop(store);
        let (journal, _) = Journal::open(&dir.path().join("etcd.jsonl")).unwrap();
        journal.rewrite(&lines).unwrap();
        let store = open(dir.path(), &now);
        assert_eq!(all(&store), before);
        assert_eq!(put(&store, "a", "3", 3).unwrap(), 4);
        let span = KeySpan::new(&"a".into(), &Bytes::new()).unwrap();
        assert_eq!(store.events_since(&span, 3, 10).unwrap_err(), 4);
    }
}
