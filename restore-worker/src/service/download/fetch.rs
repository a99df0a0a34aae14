//! Objects of a backup into local files, piece by piece, going on where an earlier attempt ended.
//!
//! A part is named by storage, object and size, so it never continues another object. The bytes
//! are proven later, as a whole: what a crash tore is found there.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pitr_format::Class;
use pitr_storage::StorageErrorKind;
use sha2::{Digest, Sha256};

use super::super::cache::SliceCache;
use super::super::cipher::CipherKey;
use super::super::disk::DiskFile;
use super::super::error::{ImportError, Reading};
use super::super::import_dir::ImportDir;
use super::super::speed::SpeedLimits;
use super::super::storages::Opened;
use super::super::turns::Turn;
use super::request::Source;
use crate::env::Env;
use crate::fetch::back_off;

/// Bytes of one request to the storage.
const PIECE: u64 = 8 << 20;
/// The same when the speed is limited: a quarter of a second, but not too small.
const SMALLEST_PIECE: u64 = 4 << 10;
/// Attempts of one piece.
const ATTEMPTS: u32 = 3;

/// What fetches the sources of one request.
pub(super) struct Fetch<'a> {
    pub(super) env: &'a Env,
    pub(super) dir: &'a Arc<ImportDir>,
    pub(super) speed: &'a SpeedLimits,
    pub(super) cache: &'a SliceCache,
    pub(super) opened: &'a Opened,
    /// The resulting file, for messages.
    pub(super) into: String,
}

/// A source that is here in full, and still to be proven.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) reading: Reading,
    pub(super) path: PathBuf,
    pub(super) entries: u64,
    pub(super) key: Option<(CipherKey, Vec<u8>)>,
    /// A part of it was fetched by an earlier attempt.
    pub(super) resumed: bool,
    /// Keeps others from the part.
    pub(super) _turn: Option<Turn>,
}

impl Fetch<'_> {
    pub(super) async fn source(
        &self,
        source: &Source,
        cipher: Option<&CipherKey>,
    ) -> Result<Fetched, ImportError> {
        let storage = &self.opened.storage;
        let reading = Reading {
            uri: storage.uri(),
            name: source.name.clone(),
            into: self.into.clone(),
        };
        let head = storage.head(&source.name).await;
        let Some(object) = head.map_err(|e| reading.refused(&e))? else {
            return Err(reading.damaged("No such file or directory"));
        };
        let size = object.size;
        if source.length != 0 && size != source.length {
            let what = format!("the object has {size} bytes, expected {}", source.length);
            return Err(reading.damaged(what));
        }
        let part = self.dir.part(&self.part_name(source, size));
        let turn = self.dir.turns().try_now(&part);
        // Another request reads the same object now: this one takes a copy of its own.
        let path = match turn {
            Some(_) => part,
            None => self.dir.scratch("src"),
        };
        let resumed = self.append(&path, source, size, &reading).await?;
        Ok(Fetched {
            reading,
            path,
            entries: source.entries,
            key: cipher.map(|key| (key.clone(), source.iv.clone())),
            resumed,
            _turn: turn,
        })
    }

    fn part_name(&self, source: &Source, size: u64) -> String {
        let mut hash = Sha256::new();
        hash.update(self.opened.id);
        hash.update(size.to_le_bytes());
        hash.update(&source.name);
        hex::encode(hash.finalize())
    }

    /// Appends what is missing; true if something was there.
    async fn append(
        &self,
        path: &Path,
        source: &Source,
        size: u64,
        reading: &Reading,
    ) -> Result<bool, ImportError> {
        let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let mut file = DiskFile::open(self.env, path, "open", append).await?;
        let meta = file.run("look at", |file| file.metadata()).await?;
        let mut have = meta.len();
        if have > size {
            file.run("cut", |file| file.set_len(0)).await?;
            have = 0;
        }
        let resumed = have > 0;
        while have < size {
            let most = match self.speed.current() {
                Some(rate) => (rate / 4).clamp(SMALLEST_PIECE, PIECE),
                None => PIECE,
            };
            let piece = most.min(size - have);
            let _memory = self.cache.wait(piece).await?;
            self.speed.pass(piece).await;
            let bytes = self.piece(source, have..have + piece, reading).await?;
            file.write(bytes).await?;
            have += piece;
        }
        file.sync().await?;
        Ok(resumed)
    }

    async fn piece(
        &self,
        source: &Source,
        range: std::ops::Range<u64>,
        reading: &Reading,
    ) -> Result<bytes::Bytes, ImportError> {
        let mut attempt = 0;
        loop {
            let answer = self
                .opened
                .storage
                .get_range(&source.name, range.clone())
                .await;
            match answer {
                Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                Ok(bytes) => {
                    let what = format!("{} bytes instead of {range:?}", bytes.len());
                    return Err(reading.damaged(what));
                }
                Err(e) if e.class() == Class::Retry && attempt + 1 < ATTEMPTS => {
                    back_off(self.env.clock.as_ref(), attempt).await;
                    attempt += 1;
                }
                Err(e) if e.kind == StorageErrorKind::OutOfRange => {
                    return Err(reading.damaged("the object became shorter while it was read"));
                }
                Err(e) => return Err(reading.refused(&e)),
            }
        }
    }
}
