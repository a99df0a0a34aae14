//! An own reader of the archive: from the stored bytes to what a user would see after a restore.
//! Small and slow on purpose, and no part of the product's read side.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pitr_format::meta::{decode_metadata, file_groups};
use pitr_format::object_name::{CHECKPOINT_DIR, LOG_SUFFIX, META_DIR, ROOT_DIR};
use pitr_format::record::RecordIter;
use pitr_format::slice::verify_slice;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, Ts, VersionedKey, checkpoint_ts};
use pitr_storage::SharedStorage;

use crate::SimError;
use crate::store::Image;

/// No slice of a simulation comes near this.
const SLICE_LIMIT: u64 = 64 << 20;

/// The decoded archive.
#[derive(Default)]
pub struct Archive {
    /// Write records by user key and commit ts.
    writes: BTreeMap<Vec<u8>, BTreeMap<Ts, Bytes>>,
    /// Long values by user key and start ts.
    defaults: BTreeMap<(Vec<u8>, Ts), Bytes>,
    /// Largest `.ts` object.
    pub checkpoint: Option<Ts>,
    /// `.log` objects that no meta refers to.
    pub unreferenced: Vec<String>,
}

impl Archive {
    /// Reads and checks everything.
    pub async fn read(storage: &SharedStorage) -> Result<Self, SimError> {
        let mut archive = Archive::default();
        let mut referenced = BTreeSet::new();
        for meta in storage.list(META_DIR).await? {
            let bytes = storage.get(&meta.path).await?;
            let metadata = decode_metadata(&bytes).map_err(|error| damaged(&meta.path, error))?;
            for group in file_groups(metadata) {
                let body = storage.get(&group.path).await?;
                for info in &group.data_files_info {
                    let (from, length) = (info.range_offset as usize, info.range_length as usize);
                    let stored = body.get(from..from + length);
                    let stored = stored.ok_or_else(|| damaged(&group.path, "is too short"))?;
                    let plain = verify_slice(info, stored, SLICE_LIMIT)
                        .map_err(|error| damaged(&group.path, error))?;
                    archive
                        .add_slice(&info.cf, &plain)
                        .map_err(|reason| damaged(&group.path, reason))?;
                }
                referenced.insert(group.path);
            }
        }
        for object in storage.list(CHECKPOINT_DIR).await? {
            let bytes = storage.get(&object.path).await?;
            let ts = checkpoint_ts::decode(&bytes).map_err(|e| damaged(&object.path, e))?;
            archive.checkpoint = archive.checkpoint.max(Some(ts));
        }
        let all = storage
            .list(ROOT_DIR)
            .await?
            .into_iter()
            .map(|object| object.path);
        archive.unreferenced = all
            .filter(|path| path.ends_with(LOG_SUFFIX) && !referenced.contains(path))
            .collect();
        Ok(archive)
    }

    fn add_slice(&mut self, cf: &str, plain: &[u8]) -> Result<(), String> {
        let cf = Cf::parse(cf).ok_or("unknown column family")?;
        for record in RecordIter::new(plain) {
            let (key, value) = record.map_err(|error| error.to_string())?;
            let key = VersionedKey::from_bytes(key.to_vec()).map_err(|e| e.to_string())?;
            let (user_key, ts) = key.decode().map_err(|e| e.to_string())?;
            let value = Bytes::copy_from_slice(value);
            let before = match cf {
                Cf::Write => {
                    let versions = self.writes.entry(user_key).or_default();
                    versions.insert(ts, value.clone())
                }
                Cf::Default => self.defaults.insert((user_key, ts), value.clone()),
            };
            if before.is_some_and(|before| before != value) {
                return Err(format!("two values for one versioned key at {ts}"));
            }
        }
        Ok(())
    }

    /// What a restore at `ts` would show.
    pub fn restore(&self, ts: Ts) -> Result<Image, SimError> {
        let mut image = Image::new();
        for (key, versions) in &self.writes {
            let Some((commit_ts, value)) = versions.range(..=ts).next_back() else {
                continue;
            };
            let write = WriteRecord::parse(value).map_err(|e| damaged("write record", e))?;
            if write.kind != WriteType::Put {
                continue;
            }
            let long = || self.defaults.get(&(key.clone(), write.start_ts)).cloned();
            let value = write.short_value.clone().or_else(long);
            let value = value.ok_or_else(|| SimError::Violation {
                ts: ts.get(),
                what: format!("no value for {key:?} committed at {commit_ts}"),
            })?;
            image.insert(key.clone(), value);
        }
        Ok(image)
    }
}

fn damaged(object: &str, reason: impl ToString) -> SimError {
    SimError::Damaged {
        object: object.to_owned(),
        reason: reason.to_string(),
    }
}
