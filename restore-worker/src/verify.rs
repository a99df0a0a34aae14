//! Checks an archive byte by byte: every slice of every `.meta` is read, decompressed and
//! compared with its digests, counts and bounds. Works without `backupmeta` and `.ts` (as TiKV
//! alone leaves an archive) and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use pitr_format::Class;
use pitr_format::record::RecordIter;
use pitr_storage::StorageError;

use crate::archive::Archive;
use crate::damage::Damage;
use crate::fetch::{FetchError, fetch, open_slice};
use crate::plan::{Read, ReadLimits, Slice, coalesce};

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
}

/// Checks everything.
pub async fn verify(
    archive: &Archive,
    options: &VerifyOptions,
) -> Result<VerifyReport, VerifyError> {
    let mut report = VerifyReport {
        metas: archive.metas.len() as u64,
        warnings: archive.info.warnings(),
        ..VerifyReport::default()
    };
    let mut slices = Vec::new();
    for meta in &archive.metas {
        match &meta.content {
            Ok(content) => slices.extend(content.slices.iter().cloned()),
            Err(damage) => report.problems.push(damage.clone()),
        }
    }
    let sizes = list_logs(archive).await?;
    let referenced: BTreeSet<&str> = slices.iter().map(|s| s.object.as_str()).collect();
    report.objects = referenced.len() as u64;
    report.unreferenced = sizes
        .keys()
        .filter(|path| !referenced.contains(path.as_str()))
        .cloned()
        .collect();
    let missing = referenced.iter().filter(|path| !sizes.contains_key(**path));
    report
        .problems
        .extend(missing.map(|path| Damage::new(*path, "the object is missing")));
    let present = slices.into_iter().filter(|s| sizes.contains_key(&s.object));
    read_all(archive, present.collect(), options, &mut report).await?;
    report.problems.sort();
    report.problems.dedup();
    Ok(report)
}

async fn list_logs(archive: &Archive) -> Result<BTreeMap<String, u64>, StorageError> {
    let listed = archive.storage().list("v1/").await?;
    let logs = listed.into_iter().filter(|o| o.path.ends_with(".log"));
    Ok(logs.map(|o| (o.path, o.size)).collect())
}

async fn read_all(
    archive: &Archive,
    slices: Vec<Slice>,
    options: &VerifyOptions,
    report: &mut VerifyReport,
) -> Result<(), VerifyError> {
    let reads = match coalesce(slices, &ReadLimits::default()) {
        Ok(reads) => reads,
        Err(damage) => {
            report.problems.push(damage);
            return Ok(());
        }
    };
    let mut findings = futures::stream::iter(reads)
        .map(|read| check_read(archive, read, options))
        .buffer_unordered(options.fetches.max(1));
    while let Some(found) = findings.try_next().await? {
        report.slices += found.slices;
        report.records += found.records;
        report.bytes += found.bytes;
        report.problems.extend(found.problems);
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    slices: u64,
    records: u64,
    bytes: u64,
    problems: Vec<Damage>,
}

/// Reads one request; when it fails as a whole, slice by slice, so that each is judged alone.
async fn check_read(
    archive: &Archive,
    read: Read,
    options: &VerifyOptions,
) -> Result<Found, VerifyError> {
    match fetch(archive.storage().as_ref(), &read, options.attempts).await {
        Ok(bytes) => {
            let max = options.max_slice_bytes;
            let read = Arc::new(read);
            let worker = tokio::task::spawn_blocking(move || check_slices(&read, &bytes, max));
            worker.await.map_err(|e| VerifyError::Worker(e.to_string()))
        }
        Err(FetchError::Storage(e)) => Err(e.into()),
        Err(FetchError::Damage(damage)) if read.slices.len() == 1 => Ok(Found {
            problems: vec![damage],
            ..Found::default()
        }),
        Err(FetchError::Damage(_)) => {
            let mut all = Found::default();
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
                all.slices += found.slices;
                all.records += found.records;
                all.bytes += found.bytes;
                all.problems.extend(found.problems);
            }
            Ok(all)
        }
    }
}

fn check_slices(read: &Read, bytes: &[u8], max_plain: u64) -> Found {
    let mut found = Found {
        bytes: bytes.len() as u64,
        ..Found::default()
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
