//! Checks an archive byte by byte: every slice of every `.meta` is read, decompressed and
//! compared with its digests, counts and bounds. Works without `backupmeta` and `.ts` (as TiKV
//! alone leaves an archive) and says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use pitr_format::Class;
use pitr_format::record::RecordIter;
use pitr_storage::StorageError;

use crate::archive::{Archive, MetaWalk};
use crate::damage::Damage;
use crate::fetch::{FetchError, fetch, open_slice};
use crate::plan::{Read, ReadLimits, coalesce};

/// Bounds of a check.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Requests at once; each takes up to 8 MiB (or one slice) and one slice's plaintext.
    pub fetches: usize,
    /// Largest plaintext of one slice that is accepted.
    pub max_slice_bytes: u64,
    /// Attempts of one read.
    pub attempts: u32,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions {
            fetches: 4,
            max_slice_bytes: 1 << 30,
            attempts: 5,
        }
    }
}

/// Why a check could not be done; damage is not an error but a finding.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A worker ended early.
    #[error("a worker of the check ended early: {0}")]
    Worker(String),
}

impl VerifyError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            VerifyError::Storage(e) => e.class(),
            VerifyError::Worker(_) => Class::Permanent,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// `.meta` objects.
    pub metas: u64,
    /// Referenced log objects.
    pub objects: u64,
    /// Slices that are whole.
    pub slices: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of log objects read.
    pub bytes: u64,
    /// Damage, by object.
    pub problems: Vec<Damage>,
    /// Log objects that no `.meta` refers to: left by flushes that did not end; harmless.
    pub unreferenced: Vec<String>,
    /// What a restore would miss.
    pub warnings: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    /// Adds what was found in another part.
    fn add(&mut self, found: VerifyReport) {
        self.slices += found.slices;
        self.records += found.records;
        self.bytes += found.bytes;
        self.problems.extend(found.problems);
    }
}

/// Checks everything, meta by meta: in memory are the names of all log objects, and the slices of
/// the metas at hand.
pub async fn verify(
    archive: &Archive,
    options: &VerifyOptions,
) -> Result<VerifyReport, VerifyError> {
    // Listed first, so that the logs of every meta that is walked over are there by now.
    let walk = archive.walk().await?;
    let mut check = Check {
        walk,
        logs: list_logs(archive).await?,
        missing: BTreeSet::new(),
        waiting: VecDeque::new(),
        report: VerifyReport {
            warnings: archive.info.warnings(),
            ..VerifyReport::default()
        },
    };
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < options.fetches.max(1)
            && let Some(read) = check.next_read().await?
        {
            running.push(check_read(archive, read, options));
        }
        match running.try_next().await? {
            Some(found) => check.report.add(found),
            None => break,
        }
    }
    Ok(check.finish())
}

/// A log object that a meta refers to or not.
type Referenced = bool;

async fn list_logs(archive: &Archive) -> Result<BTreeMap<String, Referenced>, StorageError> {
    let listed = archive.storage().list("v1/").await?;
    let logs = listed.into_iter().filter(|o| o.path.ends_with(".log"));
    Ok(logs.map(|o| (o.path, false)).collect())
}

struct Check {
    walk: MetaWalk,
    logs: BTreeMap<String, Referenced>,
    missing: BTreeSet<String>,
    /// Of the meta that was read last.
    waiting: VecDeque<Read>,
    report: VerifyReport,
}

impl Check {
    async fn next_read(&mut self) -> Result<Option<Read>, StorageError> {
        loop {
            if let Some(read) = self.waiting.pop_front() {
                return Ok(Some(read));
            }
            let Some(meta) = self.walk.next().await? else {
                return Ok(None);
            };
            self.report.metas += 1;
            let reads = meta.content.and_then(|content| {
                let present = content
                    .slices
                    .into_iter()
                    .filter(|s| self.is_there(&s.object));
                coalesce(present.collect(), &ReadLimits::default())
            });
            match reads {
                Ok(reads) => self.waiting.extend(reads),
                Err(damage) => self.report.problems.push(damage),
            }
        }
    }

    fn is_there(&mut self, object: &str) -> bool {
        if let Some(referenced) = self.logs.get_mut(object) {
            *referenced = true;
            return true;
        }
        if !self.missing.contains(object) {
            self.missing.insert(object.to_owned());
        }
        false
    }

    fn finish(self) -> VerifyReport {
        let mut report = self.report;
        let referenced = self.logs.values().filter(|referenced| **referenced).count();
        report.objects = (referenced + self.missing.len()) as u64;
        let unreferenced = self.logs.into_iter().filter(|(_, referenced)| !referenced);
        report.unreferenced = unreferenced.map(|(path, _)| path).collect();
        let missing = self.missing.into_iter();
        let missing = missing.map(|path| Damage::new(path, "the object is missing"));
        report.problems.extend(missing);
        report.problems.sort();
        report.problems.dedup();
        report
    }
}

/// Reads one request; when it fails as a whole, slice by slice, so that each is judged alone.
async fn check_read(
    archive: &Archive,
    read: Read,
    options: &VerifyOptions,
) -> Result<VerifyReport, VerifyError> {
    let (storage, env) = (archive.storage().as_ref(), archive.env());
    match fetch(storage, env.clock.as_ref(), &read, options.attempts).await {
        Ok(bytes) => {
            let max = options.max_slice_bytes;
            let read = Arc::new(read);
            let checked = env.unblock(move || check_slices(&read, &bytes, max)).await;
            checked.map_err(|e| VerifyError::Worker(e.to_string()))
        }
        Err(FetchError::Storage(e)) => Err(e.into()),
        Err(FetchError::Damage(damage)) if read.slices.len() == 1 => Ok(VerifyReport {
            problems: vec![damage],
            ..VerifyReport::default()
        }),
        Err(FetchError::Damage(_)) => {
            let mut all = VerifyReport::default();
            for slice in read.slices {
                let from = slice.info.range_offset;
                let range = read
                    .range
                    .as_ref()
                    .map(|_| from..from + slice.info.range_length);
                let alone = Read {
                    object: slice.object.clone(),
                    range,
                    slices: vec![slice],
                };
                let found = Box::pin(check_read(archive, alone, options)).await?;
                all.add(found);
            }
            Ok(all)
        }
    }
}

fn check_slices(read: &Read, bytes: &[u8], max_plain: u64) -> VerifyReport {
    let mut found = VerifyReport {
        bytes: bytes.len() as u64,
        ..VerifyReport::default()
    };
    for slice in &read.slices {
        match open_slice(read, slice, bytes, max_plain) {
            Ok(plain) => {
                found.slices += 1;
                found.records += RecordIter::new(&plain).flatten().count() as u64;
            }
            Err(damage) => found.problems.push(damage),
        }
    }
    found
}
