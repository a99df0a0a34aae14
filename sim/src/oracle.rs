//! What must hold, from the rules of the format: checked whenever a meta appears, whenever PD or
//! the archive is told a checkpoint, and nowhere relying on the product's own idea of progress.
//!
//! - `.log` objects first, then the meta that refers to them, then the global checkpoint, which
//!   speaks for all stores, then each `<store>.ts` with no more than that, then the storage
//!   checkpoint of that store with the same value;
//! - at each of the last three: every version decided at or below the ts can be read from the
//!   archive, with its value; nothing that was never written can be;
//! - checkpoints never fall; flush ts of a store rise from meta to meta, over restarts too; no object is
//!   written a second time with other bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use pitr_format::meta::{decode_metadata, file_groups};
use pitr_format::object_name::{MetaName, checkpoint_path};
use pitr_format::record::RecordIter;
use pitr_format::slice::verify_slice;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedRange, KvRecord, OpKind, Ts, checkpoint_ts, key};

use crate::SimError;
use crate::store::{Decided, Version, contains, rows_of};

/// Stores at most.
pub const STORES: u64 = 3;
/// No slice of a simulation comes near this.
const SLICE_LIMIT: u64 = 64 << 20;

/// Objects by name.
pub type Objects = BTreeMap<String, Bytes>;

/// Everything known, and the checks.
pub struct Oracle {
    ranges: Vec<EncodedRange>,
    /// Every version that was decided inside of the task's ranges.
    pub decided: BTreeMap<(Vec<u8>, Ts), Version>,
    /// Those that no meta leads to yet, by commit ts.
    missing: BTreeMap<(Ts, Vec<u8>), Vec<KvRecord>>,
    /// Records that metas lead to, by column family and versioned key.
    archived: BTreeMap<(Cf, Bytes), Bytes>,
    /// By store.
    last_flush: BTreeMap<u64, Ts>,
    /// What PD holds.
    pub global: Option<Ts>,
    /// What each `<store>.ts` holds.
    pub objects: BTreeMap<u64, Ts>,
    /// What PD was told of them.
    pub storage: BTreeMap<u64, Ts>,
    /// Checkpoints checked.
    pub checkpoints: u64,
    /// Metas read.
    pub metas: u64,
}

impl Oracle {
    /// An empty archive of a task over `ranges` (encoded).
    pub fn new(ranges: Vec<EncodedRange>) -> Self {
        Oracle {
            ranges,
            decided: BTreeMap::new(),
            missing: BTreeMap::new(),
            archived: BTreeMap::new(),
            last_flush: BTreeMap::new(),
            global: None,
            objects: BTreeMap::new(),
            storage: BTreeMap::new(),
            checkpoints: 0,
            metas: 0,
        }
    }

    /// A transaction was decided: from now on these versions exist.
    pub fn decide(&mut self, decided: Vec<Decided>) {
        for Decided {
            key,
            commit_ts,
            version,
        } in decided
        {
            if self.ranges.iter().any(|range| contains(range, &key)) {
                let rows = rows_of(&key, commit_ts, &version, true);
                self.missing.insert((commit_ts, key.clone()), rows);
                self.decided.insert((key, commit_ts), version);
            }
        }
    }

    /// An object is about to be written; `objects` are those before.
    pub fn write(&mut self, path: &str, data: &Bytes, objects: &Objects) -> Result<(), SimError> {
        let of_store = (1..=STORES).find(|store| path == checkpoint_path(*store));
        if objects.get(path).is_some_and(|old| old != data) && of_store.is_none() {
            return violation(format!("{path} is written again with other bytes"));
        }
        if path.ends_with(".meta") && !objects.contains_key(path) {
            self.meta(path, data, objects)?;
        }
        if let Some(store) = of_store {
            let ts = checkpoint_ts::decode(data).map_err(|e| broken(path, e))?;
            let before = self.object(store);
            if ts < before {
                return violation(format!("{path} falls from {before} to {ts}"));
            }
            if self.global.is_none_or(|global| ts > global) {
                return violation(format!("{path} says {ts}, PD {:?}", self.global));
            }
            self.durable_up_to(ts, path)?;
            self.objects.insert(store, ts);
        }
        Ok(())
    }

    /// What a store's checkpoint object says; zero without one.
    pub fn object(&self, store: u64) -> Ts {
        self.objects.get(&store).copied().unwrap_or(Ts::ZERO)
    }

    /// What a reader takes the archive to reach: the largest of all stores.
    pub fn restorable(&self) -> Ts {
        self.objects.values().copied().max().unwrap_or(Ts::ZERO)
    }

    /// PD is asked to raise the global checkpoint; what it holds then.
    pub fn raise_global(&mut self, ts: Ts) -> Result<Ts, SimError> {
        self.durable_up_to(ts, "the global checkpoint")?;
        let holds = self.global.map_or(ts, |global| global.max(ts));
        self.global = Some(holds);
        Ok(holds)
    }

    /// PD is told what a store's checkpoint object says.
    pub fn set_storage(&mut self, store: u64, ts: Ts) -> Result<(), SimError> {
        let object = self.object(store);
        let before = self.storage.get(&store).copied().unwrap_or(Ts::ZERO);
        if ts > object || ts < before {
            return violation(format!(
                "storage checkpoint {ts} after {before}, the object says {object}"
            ));
        }
        self.storage.insert(store, ts);
        Ok(())
    }

    fn durable_up_to(&mut self, ts: Ts, what: &str) -> Result<(), SimError> {
        self.checkpoints += 1;
        match self.missing.first_key_value() {
            Some(((commit_ts, key), _)) if *commit_ts <= ts => violation(format!(
                "{what} says {ts}, but {} committed at {commit_ts} cannot be restored",
                key.escape_ascii()
            )),
            _ => Ok(()),
        }
    }

    /// Reads a new meta and all that it refers to.
    fn meta(&mut self, path: &str, data: &Bytes, objects: &Objects) -> Result<(), SimError> {
        self.metas += 1;
        let name = MetaName::parse(path).map_err(|e| broken(path, e))?;
        let Some(store) = name.store_id else {
            return violation(format!("{path} does not name its store"));
        };
        let last = self.last_flush.insert(store, name.flush_ts);
        if last.is_some_and(|last| name.flush_ts <= last) {
            return violation(format!("{path} does not follow flush ts {last:?}"));
        }
        let metadata = decode_metadata(data).map_err(|e| broken(path, e))?;
        for group in file_groups(metadata) {
            let Some(body) = objects.get(&group.path) else {
                return violation(format!("{path} refers to {}, not there", group.path));
            };
            for info in &group.data_files_info {
                let (from, length) = (info.range_offset as usize, info.range_length as usize);
                let stored = body.get(from..from + length);
                let stored = stored.ok_or_else(|| broken(&group.path, "is too short"))?;
                let plain = verify_slice(info, stored, SLICE_LIMIT);
                let plain = plain.map_err(|e| broken(&group.path, e))?;
                let cf = Cf::parse(&info.cf).ok_or_else(|| broken(path, "column family"))?;
                // brpb.FileType: 0 is Delete, 1 is Put.
                let op = match info.r#type {
                    1 => OpKind::Put,
                    _ => OpKind::Delete,
                };
                if info.min_begin_ts_in_default_cf == 0 {
                    return violation(format!("{path}: a slice has no begin ts"));
                }
                for record in RecordIter::new(&plain) {
                    let (key, value) = record.map_err(|e| broken(&group.path, e))?;
                    self.record(cf, op, key, value)?;
                }
            }
        }
        let archived = &self.archived;
        let is_there =
            |row: &KvRecord| archived.get(&(row.cf, row.key.clone())) == Some(&row.value);
        self.missing.retain(|_, rows| !rows.iter().all(is_there));
        Ok(())
    }

    fn record(&mut self, cf: Cf, op: OpKind, key: &[u8], value: &[u8]) -> Result<(), SimError> {
        if !self.ranges.iter().any(|range| range.contains(key)) {
            return violation(format!("{} is outside of the task", key.escape_ascii()));
        }
        if op == OpKind::Delete {
            return Ok(());
        }
        let value = Bytes::copy_from_slice(value);
        let before = self
            .archived
            .insert((cf, Bytes::copy_from_slice(key)), value.clone());
        if before.is_some_and(|before| before != value) {
            return violation(format!("two values for {}", key.escape_ascii()));
        }
        if cf == Cf::Write {
            let write = WriteRecord::parse(&value).map_err(|e| broken("a write record", e))?;
            let at = key::VersionedKey::from_bytes(key.to_vec());
            let at = at.and_then(|at| at.decode());
            let (user_key, ts) = at.map_err(|e| broken("a key", e))?;
            let restored = matches!(write.kind, WriteType::Put | WriteType::Delete);
            if restored && !self.decided.contains_key(&(user_key, ts)) {
                return violation(format!("{} was never committed", key.escape_ascii()));
            }
        }
        Ok(())
    }
}

fn violation<T>(what: String) -> Result<T, SimError> {
    Err(SimError::Violation(what))
}

fn broken(object: &str, reason: impl ToString) -> SimError {
    SimError::Violation(format!("{object}: {}", reason.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle_with_one_version() -> Oracle {
        let mut oracle = Oracle::new(vec![EncodedRange::ALL]);
        oracle.decide(vec![Decided {
            key: b"k".to_vec(),
            commit_ts: Ts::new(20),
            version: Version {
                start_ts: Ts::new(10),
                value: Some("v".into()),
            },
        }]);
        oracle
    }

    #[test]
    fn a_checkpoint_below_the_first_missing_version_is_fine_and_at_it_is_not() {
        let mut oracle = oracle_with_one_version();
        assert_eq!(oracle.raise_global(Ts::new(19)).unwrap(), Ts::new(19));
        let error = oracle.raise_global(Ts::new(20)).unwrap_err();
        assert!(matches!(error, SimError::Violation(_)), "{error}");
    }

    #[test]
    fn the_checkpoint_object_follows_pd_and_the_storage_checkpoint_follows_the_object() {
        let mut oracle = oracle_with_one_version();
        let objects = Objects::new();
        let path = checkpoint_path(2);
        let at = |ts: u64| Bytes::copy_from_slice(&checkpoint_ts::encode(Ts::new(ts)));
        assert!(oracle.write(&path, &at(5), &objects).is_err());
        oracle.raise_global(Ts::new(15)).unwrap();
        assert!(oracle.set_storage(2, Ts::new(5)).is_err());
        oracle.write(&path, &at(15), &objects).unwrap();
        assert!(oracle.write(&path, &at(14), &objects).is_err());
        oracle.set_storage(2, Ts::new(15)).unwrap();
        assert!(oracle.set_storage(2, Ts::new(14)).is_err());
    }

    #[test]
    fn an_object_is_never_written_twice_with_other_bytes() {
        let mut oracle = oracle_with_one_version();
        let objects = Objects::from([("v1/x.log".to_owned(), Bytes::from("one"))]);
        oracle.write("v1/x.log", &"one".into(), &objects).unwrap();
        assert!(oracle.write("v1/x.log", &"two".into(), &objects).is_err());
    }
}
