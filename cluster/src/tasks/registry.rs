//! Reading and writing the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pitr_format::Ts;
use pitr_proto::backup::{StreamBackupError, StreamBackupTaskInfo};
use pitr_proto::etcdserverpb as pb;
use pitr_proto::etcdserverpb::response_op::Response;
use pitr_proto::mvccpb::KeyValue;
use prost::Message;

use super::{Task, TaskError, keys};
use crate::etcd::{EtcdClient, compare, op};

/// Attempts of a compare-and-set before it is called contended.
const CAS_ATTEMPTS: usize = 8;

/// The tasks of one cluster.
#[derive(Clone)]
pub struct TaskRegistry {
    etcd: Arc<EtcdClient>,
    /// Without it nothing is published.
    fence: Option<pb::Compare>,
}

/// Everything the registry said at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    /// Name → task and the revision of its last registration.
    pub tasks: BTreeMap<String, (Task, i64)>,
    pub revision: i64,
}

impl TaskRegistry {
    /// A registry in the etcd of a cluster's PD.
    pub fn new(etcd: Arc<EtcdClient>) -> Self {
        TaskRegistry { etcd, fence: None }
    }

    /// The registry for one publication: checkpoints are written only if `condition` holds in the
    /// same transaction.
    #[must_use]
    pub fn fenced(&self, condition: pb::Compare) -> Self {
        TaskRegistry {
            etcd: self.etcd.clone(),
            fence: Some(condition),
        }
    }

    pub(super) fn etcd(&self) -> &EtcdClient {
        &self.etcd
    }

    /// All tasks with their ranges and pauses, and the revision of that list.
    pub async fn list(&self) -> Result<(Vec<Task>, i64), TaskError> {
        let snapshot = self.snapshot().await?;
        let tasks = snapshot.tasks.into_values().map(|(task, _)| task);
        Ok((tasks.collect(), snapshot.revision))
    }

    /// One transaction reads info, ranges and pauses at the same revision.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, TaskError> {
        let reads = [keys::INFO, keys::RANGES, keys::PAUSE];
        let reads = reads.iter().map(|prefix| op::get_prefix(prefix.as_bytes()));
        let outcome = self.etcd.txn(Vec::new(), reads.collect()).await?;
        let mut lists = outcome.responses.into_iter().map(|r| match r.response {
            Some(Response::ResponseRange(range)) => range.kvs,
            _ => Vec::new(),
        });
        let mut next = || lists.next().unwrap_or_default();
        let (infos, ranges, pauses) = (next(), next(), next());
        Ok(Snapshot {
            tasks: assemble(infos, &ranges, &pauses),
            revision: outcome.revision,
        })
    }

    /// Registers a task in one transaction, info first, then ranges. Fails if a task exists that has
    /// its name, or keys of its ranges: a store takes several tasks, stock tools know one. Repeating
    /// it after a lost answer succeeds.
    pub async fn start(&self, task: &Task) -> Result<(), TaskError> {
        keys::check_name(&task.name)?;
        for _ in 0..CAS_ATTEMPTS {
            let mut snapshot = self.snapshot().await?;
            if let Some((existing, _)) = snapshot.tasks.remove(&task.name) {
                return self.same_or_exists(task, existing);
            }
            let mut others = snapshot.tasks.into_values();
            if let Some((existing, _)) = others.find(|(other, _)| other.overlaps(task)) {
                let existing = existing.name;
                return Err(TaskError::Exists { existing });
            }
            // What was looked at is all there is: nobody registered anything meanwhile.
            let alone = compare::none_written_after(keys::INFO, snapshot.revision);
            let outcome = self.etcd.txn(vec![alone], start_operations(task)).await?;
            if outcome.succeeded {
                return Ok(());
            }
        }
        Err(TaskError::Contended {
            key: keys::info(&task.name),
        })
    }

    /// A start whose answer was lost finds its own task.
    fn same_or_exists(&self, task: &Task, existing: Task) -> Result<(), TaskError> {
        let sorted = |ranges: &[(Bytes, Bytes)]| {
            let mut ranges = ranges.to_vec();
            ranges.sort();
            ranges
        };
        let same = existing.info == task.info && sorted(&existing.ranges) == sorted(&task.ranges);
        match same {
            true => Ok(()),
            false => Err(TaskError::Exists {
                existing: existing.name,
            }),
        }
    }

    /// Removes a task and all that belongs to it in one transaction. The service safe points of
    /// the task are the caller's.
    pub async fn stop(&self, name: &str) -> Result<(), TaskError> {
        keys::check_name(name)?;
        let exists = compare::exists(keys::info(name));
        match self
            .etcd
            .txn(vec![exists], stop_operations(name))
            .await?
            .succeeded
        {
            true => Ok(()),
            false => Err(TaskError::NotFound {
                name: name.to_owned(),
            }),
        }
    }

    /// The value of the task's pause key, if it is paused. Its form is the caller's.
    pub async fn pause_value(&self, name: &str) -> Result<Option<Bytes>, TaskError> {
        let key = keys::pause(name);
        let found = self.etcd.get(key.as_bytes()).await?;
        Ok(found.map(|kv| kv.value))
    }

    /// Pauses a task; false if it is gone or paused already, and then nothing was changed.
    pub async fn pause(&self, name: &str, value: Vec<u8>) -> Result<bool, TaskError> {
        keys::check_name(name)?;
        let key = keys::pause(name);
        let mut conditions = vec![
            compare::exists(keys::info(name)),
            compare::absent(key.clone()),
        ];
        conditions.extend(self.fence.clone());
        let done = self.etcd.txn(conditions, vec![op::put(key, value)]).await?;
        Ok(done.succeeded)
    }

    /// Ends a pause and forgets the errors that may have led to it; false if the task is gone or
    /// not paused, and then nothing was changed.
    pub async fn resume(&self, name: &str) -> Result<bool, TaskError> {
        keys::check_name(name)?;
        let key = keys::pause(name);
        let mut conditions = vec![
            compare::exists(keys::info(name)),
            compare::exists(key.clone()),
        ];
        conditions.extend(self.fence.clone());
        let operations = vec![
            op::delete(key),
            op::delete_prefix(keys::last_errors_of(name)),
        ];
        Ok(self.etcd.txn(conditions, operations).await?.succeeded)
    }

    /// `central_global` of the task, if one was ever published.
    pub async fn global_checkpoint(&self, name: &str) -> Result<Option<Ts>, TaskError> {
        Ok(self.read_global(name).await?.map(|(ts, _)| ts))
    }

    async fn read_global(&self, name: &str) -> Result<Option<(Ts, i64)>, TaskError> {
        let key = keys::global_checkpoint(name);
        match self.etcd.get(key.as_bytes()).await? {
            Some(kv) => Ok(Some((parse_ts(&kv)?, kv.mod_revision))),
            None => Ok(None),
        }
    }

    /// The registration of a task, and the revision that tells it from a later one of the same name.
    pub async fn registration(
        &self,
        name: &str,
    ) -> Result<Option<(StreamBackupTaskInfo, i64)>, TaskError> {
        let key = keys::info(name);
        let Some(kv) = self.etcd.get(key.as_bytes()).await? else {
            return Ok(None);
        };
        match StreamBackupTaskInfo::decode(kv.value) {
            Ok(info) => Ok(Some((info, kv.mod_revision))),
            Err(error) => Err(TaskError::Damaged {
                key,
                reason: error.to_string(),
            }),
        }
    }

    /// Raises `central_global` to `ts` and returns what stands there afterwards: `ts` or a larger
    /// value that was there before. Never lowers it. Fails if the task of revision `registered` is
    /// gone, also when another one of the same name exists: that one's archive holds nothing of it.
    pub async fn raise_global_checkpoint(
        &self,
        name: &str,
        registered: i64,
        ts: Ts,
    ) -> Result<Ts, TaskError> {
        keys::check_name(name)?;
        let (info, key) = (keys::info(name), keys::global_checkpoint(name));
        for _ in 0..CAS_ATTEMPTS {
            let current = self.read_global(name).await?;
            let (now, seen) = current.unwrap_or((Ts::ZERO, 0));
            let mut operations = Vec::new();
            if now < ts {
                operations.push(op::put(key.clone(), ts.get().to_be_bytes().to_vec()));
            }
            // Also when there is nothing to write: a stopped task must not look published.
            let mut conditions = vec![
                compare::unchanged(info.clone(), registered),
                compare::unchanged(key.clone(), seen),
            ];
            conditions.extend(self.fence.clone());
            if self.etcd.txn(conditions, operations).await?.succeeded {
                return Ok(now.max(ts));
            }
            self.must_be(name, registered).await?;
        }
        Err(TaskError::Contended { key })
    }

    /// Fails if the registration of this revision is gone.
    async fn must_be(&self, name: &str, registered: i64) -> Result<(), TaskError> {
        match self.registration(name).await? {
            Some((_, revision)) if revision == registered => Ok(()),
            _ => Err(TaskError::NotFound {
                name: name.to_owned(),
            }),
        }
    }

    /// Records what a store wrote into its `.ts` object; fails if the task of revision `registered`
    /// is gone.
    pub async fn set_storage_checkpoint(
        &self,
        name: &str,
        registered: i64,
        store_id: u64,
        ts: Ts,
    ) -> Result<(), TaskError> {
        keys::check_name(name)?;
        let key = keys::storage_checkpoint(name, store_id);
        let put = op::put(key, ts.get().to_be_bytes().to_vec());
        let mut conditions = vec![compare::unchanged(keys::info(name), registered)];
        conditions.extend(self.fence.clone());
        if self.etcd.txn(conditions, vec![put]).await?.succeeded {
            return Ok(());
        }
        self.must_be(name, registered).await?;
        Err(TaskError::Contended {
            key: keys::storage_checkpoint(name, store_id),
        })
    }

    /// Storage checkpoint of each store.
    pub async fn storage_checkpoints(&self, name: &str) -> Result<Vec<(u64, Ts)>, TaskError> {
        let prefix = keys::storage_checkpoints_of(name);
        let (kvs, _) = self.etcd.get_prefix(prefix.as_bytes()).await?;
        kvs.iter()
            .filter_map(|kv| Some((keys::store_behind(&prefix, &kv.key)?, kv)))
            .map(|(store, kv)| Ok((store, parse_ts(kv)?)))
            .collect()
    }

    /// Last error of each store.
    pub async fn last_errors(
        &self,
        name: &str,
    ) -> Result<Vec<(u64, StreamBackupError)>, TaskError> {
        let prefix = keys::last_errors_of(name);
        let (kvs, _) = self.etcd.get_prefix(prefix.as_bytes()).await?;
        kvs.into_iter()
            .filter_map(|kv| Some((keys::store_behind(&prefix, &kv.key)?, kv)))
            .map(
                |(store, kv)| match StreamBackupError::decode(kv.value.clone()) {
                    Ok(error) => Ok((store, error)),
                    Err(e) => Err(damaged(&kv, &e.to_string())),
                },
            )
            .collect()
    }
}

/// Builds the tasks of one list. A value that is not a task is skipped with a warning, as TiKV
/// does: it must not stop the others.
fn assemble(
    infos: Vec<KeyValue>,
    ranges: &[KeyValue],
    pauses: &[KeyValue],
) -> BTreeMap<String, (Task, i64)> {
    let mut tasks = BTreeMap::new();
    for kv in infos {
        let Some(name) = keys::name_behind(keys::INFO, &kv.key) else {
            continue;
        };
        let info = match StreamBackupTaskInfo::decode(kv.value.clone()) {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(task = name, %error, "the value of a task in PD is damaged");
                continue;
            }
        };
        let task = Task {
            name: name.to_owned(),
            info,
            ranges: Vec::new(),
            paused: false,
        };
        tasks.insert(name.to_owned(), (task, kv.mod_revision));
    }
    for kv in ranges {
        if let Some((name, start)) = keys::split_range(&kv.key)
            && let Some((task, _)) = tasks.get_mut(name)
        {
            let start = kv.key.slice_ref(start);
            task.ranges.push((start, kv.value.clone()));
        }
    }
    for kv in pauses {
        let name = keys::name_behind(keys::PAUSE, &kv.key);
        if let Some((task, _)) = name.and_then(|name| tasks.get_mut(name)) {
            task.paused = true;
        }
    }
    tasks
}

/// The operations of `log start`, in BR's order.
fn start_operations(task: &Task) -> Vec<pb::RequestOp> {
    let info = op::put(keys::info(&task.name), task.info.encode_to_vec());
    let ranges = task
        .ranges
        .iter()
        .map(|(start, end)| op::put(keys::range(&task.name, start), end.clone()));
    let pause = task
        .paused
        .then(|| op::put(keys::pause(&task.name), Bytes::new()));
    std::iter::once(info).chain(ranges).chain(pause).collect()
}

/// The operations of `log stop`.
fn stop_operations(name: &str) -> Vec<pb::RequestOp> {
    vec![
        op::delete(keys::info(name)),
        op::delete_prefix(keys::ranges_of(name)),
        op::delete_prefix(keys::checkpoints_of(name)),
        op::delete(keys::pause(name)),
        op::delete_prefix(keys::last_errors_of(name)),
        op::delete_prefix(keys::storage_checkpoints_of(name)),
    ]
}

pub(super) fn parse_ts(kv: &KeyValue) -> Result<Ts, TaskError> {
    match <[u8; 8]>::try_from(&kv.value[..]) {
        Ok(bytes) => Ok(Ts::new(u64::from_be_bytes(bytes))),
        Err(_) => Err(damaged(kv, "expected 8 bytes, big-endian")),
    }
}

fn damaged(kv: &KeyValue, reason: &str) -> TaskError {
    TaskError::Damaged {
        key: String::from_utf8_lossy(&kv.key).into_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use pitr_proto::backup::{
        CompressionType, Local, StorageBackend, StreamBackupTaskSecurityConfig, storage_backend,
    };
    use pitr_proto::etcdserverpb::request_op::Request;

    use super::*;

    const BR_KEYS: &str = include_str!("../../../tests/golden/br-pd-keys.txt");

    fn task(name: &str, path: &str, start_ts: u64) -> Task {
        Task {
            name: name.into(),
            info: StreamBackupTaskInfo {
                storage: Some(StorageBackend {
                    backend: Some(storage_backend::Backend::Local(Local { path: path.into() })),
                }),
                start_ts,
                end_ts: 999_999_999_999_999_999,
                name: name.into(),
                table_filter: vec!["*.*".into()],
                compression_type: CompressionType::Zstd as i32,
                security_config: Some(StreamBackupTaskSecurityConfig::default()),
            },
            ranges: vec![
                (Bytes::from_static(b"m"), Bytes::from_static(b"n")),
                (Bytes::from_static(b"t"), Bytes::from_static(b"u")),
            ],
            paused: false,
        }
    }

    /// `(key, value)` of the recorded lines that begin with `start`, in order.
    fn recorded(start: &str, key_part: &str) -> Vec<(String, Vec<u8>)> {
        BR_KEYS
            .lines()
            .filter(|line| line.starts_with(start) && line.contains(key_part))
            .map(|line| {
                let key = line.split('"').nth(1).unwrap();
                let value = line.rsplit(' ').next().unwrap();
                (key.to_owned(), unhex(value))
            })
            .collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    }

    fn puts(operations: &[pb::RequestOp]) -> Vec<(String, Vec<u8>)> {
        let put = |op: &pb::RequestOp| match op.request.clone() {
            Some(Request::RequestPut(put)) => (
                String::from_utf8(put.key.to_vec()).unwrap(),
                put.value.to_vec(),
            ),
            other => panic!("{other:?}"),
        };
        operations.iter().map(put).collect()
    }

    #[test]
    fn starting_a_task_writes_the_keys_and_bytes_that_br_writes_in_brs_order() {
        let info = unhex(
            "0a10120e0a0c2f746d702f6c6f6762616b32108080d081c5e680c40618ffff8fbbbad6adf00d2204706974722a032a2e2a30033a00",
        );
        let start_ts = StreamBackupTaskInfo::decode(&info[..]).unwrap().start_ts;
        let ours = start_operations(&task("pitr", "/tmp/logbak2", start_ts));
        let mut brs = recorded("PUT", "/info/pitr");
        brs.extend(recorded("PUT", "/ranges/pitr/"));
        assert_eq!(brs.len(), 3);
        assert_eq!(puts(&ours), brs);
    }

    #[test]
    fn the_tasks_that_br_registered_are_read_back() {
        let kvs = |part: &str| -> Vec<KeyValue> {
            recorded("key", part)
                .into_iter()
                .map(|(key, value)| KeyValue {
                    key: key.into(),
                    value: value.into(),
                    mod_revision: 537,
                    ..Default::default()
                })
                .collect()
        };
        let tasks = assemble(kvs("/info/"), &kvs("/ranges/"), &kvs("/pause/"));
        let names: Vec<_> = tasks.keys().cloned().collect();
        assert_eq!(names, ["adv", "t1"]);
        let start_ts = tasks["t1"].0.info.start_ts;
        assert_eq!(tasks["t1"].0, task("t1", "/tmp/logbak", start_ts));
        let global = &kvs("/checkpoint/adv/central_global")[0];
        assert_eq!(parse_ts(global).unwrap(), Ts::new(0x0688_035d_1878_0002));
    }

    #[test]
    fn a_pause_key_of_either_version_pauses_the_task_and_only_it() {
        let kv = |key: &str, value: Vec<u8>| KeyValue {
            key: key.to_owned().into(),
            value: value.into(),
            ..Default::default()
        };
        let info = |name: &str| kv(&keys::info(name), task(name, "/x", 5).info.encode_to_vec());
        let (_, v2) = recorded("PUT", "/pause/pitr").remove(0);
        for value in [Vec::new(), v2] {
            let pauses = [kv("/tidb/br-stream/pause/pitr", value)];
            let tasks = assemble(vec![info("pitr"), info("pit")], &[], &pauses);
            assert!(tasks["pitr"].0.paused);
            assert!(!tasks["pit"].0.paused);
        }
    }

    #[test]
    fn stopping_a_task_removes_every_key_that_br_removes() {
        let deletes: Vec<(Bytes, Bytes)> = stop_operations("pitr")
            .into_iter()
            .map(|op| match op.request {
                Some(Request::RequestDeleteRange(delete)) => (delete.key, delete.range_end),
                other => panic!("{other:?}"),
            })
            .collect();
        let removed = |key: &[u8]| {
            deletes.iter().any(|(start, end)| match end.is_empty() {
                true => start == key,
                false => key >= &start[..] && key < &end[..],
            })
        };
        for (key, _) in recorded("DELETE", "/pitr") {
            assert!(removed(key.as_bytes()), "{key}");
        }
        assert!(removed(keys::global_checkpoint("pitr").as_bytes()));
        assert!(removed(keys::storage_checkpoint("pitr", 1).as_bytes()));
        assert!(!removed(keys::storage_checkpoint("pitr2", 1).as_bytes()));
        assert!(!removed(keys::info("pitr2").as_bytes()));
    }

    #[test]
    fn tasks_overlap_where_they_share_a_key_and_not_where_they_touch() {
        let with = |start: &'static [u8], end: &'static [u8]| Task {
            ranges: vec![(Bytes::from_static(start), Bytes::from_static(end))],
            ..task("t", "/x", 5)
        };
        let tables = with(b"m", b"n");
        assert!(tables.overlaps(&with(b"mz", b"z")) && with(b"", b"").overlaps(&tables));
        assert!(!tables.overlaps(&with(b"n", b"")) && !with(b"", b"m").overlaps(&tables));
        assert!(task("t", "/x", 5).overlaps(&with(b"t1", b"t2")));
    }

    #[test]
    fn the_ranges_of_a_task_are_encoded_for_comparison_with_regions() {
        let mut task = task("t", "/x", 1);
        task.ranges = vec![(Bytes::new(), Bytes::from(vec![0xFF; 32]))];
        let ranges = task.encoded_ranges();
        assert_eq!(ranges.len(), 1);
        assert!(ranges[0].start.is_empty());
        assert_eq!(ranges[0].end.len(), 45);
    }
}
