//! Sorted records to SST files per target region: the join of values with the write records that
//! refer to them, and the cut at region bounds and at size limits.
//!
//! Both column families are walked together, user key by user key, so that a [`Batch`] holds
//! everything of its keys and can be ingested alone: its values first, then its write records.
//! A batch remembers where it began, so that it can be cut again for other regions.

use std::path::PathBuf;
use std::sync::Arc;

use pitr_env::Random;
use pitr_format::digest::{RecordDigest, RecordHash, ScanDigest};
use pitr_format::key::{TS_LEN, decode_prefix, split_versioned};
use pitr_format::{Cf, Class, EncodedRange};

use crate::expect::Expected;
use crate::merge::{EntryRef, MergeStream, Position, SortError, Sorted, Tag};
use crate::regions::RegionTable;
use crate::sst::{SstError, SstFactory, SstFile, SstWriter};
use crate::target::TargetRegion;

/// Why records cannot become SST files.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// A kept write record refers to a value that the archive does not hold.
    #[error(
        "damaged archive: key {user_key}: the value written at {start_ts} is missing although a \
         write record refers to it; run `verify data` on the archive"
    )]
    MissingValue {
        /// User key, hex.
        user_key: String,
        /// Start ts of the transaction.
        start_ts: u64,
    },
    /// The archive holds two different records of one versioned key.
    #[error(
        "damaged archive: key {user_key} at {ts} has two different {cf} records; the archive mixes \
         the logs of different clusters or was changed"
    )]
    Conflict {
        /// Column family.
        cf: Cf,
        /// User key, hex.
        user_key: String,
        /// Commit ts or start ts.
        ts: u64,
    },
    /// The target's regions do not cover a key.
    #[error("no region of the target covers key {key}")]
    NoRegion {
        /// Encoded key, hex.
        key: String,
    },
    /// Temporary directory.
    #[error(transparent)]
    Sort(#[from] SortError),
    /// SST writer.
    #[error(transparent)]
    Sst(#[from] SstError),
}

impl CutError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            CutError::NoRegion { .. } => Class::Refresh,
            CutError::Sort(e) => e.class(),
            CutError::Sst(e) => e.class(),
            CutError::MissingValue { .. } | CutError::Conflict { .. } => Class::Permanent,
        }
    }

    /// Whether the archive is at fault, not the target or the disk.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            CutError::MissingValue { .. } | CutError::Conflict { .. }
        )
    }
}

/// Sorted records of a restore.
pub struct SortedRecords {
    /// Values and references to them.
    pub default: Sorted,
    /// Write records.
    pub write: Sorted,
}

/// Where and how large files are.
#[derive(Clone)]
pub struct CutOptions {
    /// Makes the files.
    pub factory: Arc<dyn SstFactory>,
    /// Names them.
    pub random: Arc<dyn Random>,
    /// Directory of the files.
    pub dir: PathBuf,
    /// Bytes of keys and values after which a file ends.
    pub sst_bytes: u64,
    /// Bytes of keys and values of both column families after which a batch ends; a single user
    /// key is never divided between batches.
    pub batch_bytes: u64,
}

/// What passed the cutter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutTally {
    /// Records written to files.
    pub records: u64,
    /// Values that no kept write record refers to.
    pub unreferenced: u64,
    /// Digest of the records written.
    pub digest: RecordDigest,
    /// Digest of what a reader of the records must see at the restored ts.
    pub expected_scan: ScanDigest,
}

/// Files of one region, and from where they can be cut again.
#[derive(Debug)]
pub struct Batch {
    /// The region whose bounds the files keep.
    pub region: TargetRegion,
    /// Files of `default` before files of `write`.
    pub ssts: Vec<SstFile>,
    /// First encoded key.
    pub first: Vec<u8>,
    /// Last encoded key.
    pub last: Vec<u8>,
    start: (Position, Position),
}

impl Batch {
    /// The encoded keys of the batch.
    pub fn range(&self) -> EncodedRange {
        let mut end = self.last.clone();
        end.push(0);
        EncodedRange::new(self.first.clone(), end)
    }
}

/// Walks the sorted records once.
pub struct Cutter<'a> {
    default: MergeStream<'a>,
    write: MergeStream<'a>,
    options: CutOptions,
    last_key: Option<Vec<u8>>,
    /// The present encoded key, and the present versioned key while its successor is looked at.
    key: Vec<u8>,
    version: Vec<u8>,
    expected: Expected,
    tally: CutTally,
}

impl<'a> Cutter<'a> {
    /// From the first record to the last.
    pub fn new(records: &'a SortedRecords, options: CutOptions) -> Result<Self, CutError> {
        Ok(Cutter {
            default: records.default.stream()?,
            write: records.write.stream()?,
            options,
            last_key: None,
            key: Vec::new(),
            version: Vec::new(),
            expected: Expected::default(),
            tally: CutTally::default(),
        })
    }

    /// The keys of `batch` again.
    pub fn again(
        records: &'a SortedRecords,
        options: CutOptions,
        batch: &Batch,
    ) -> Result<Self, CutError> {
        Ok(Cutter {
            default: records.default.stream_from(&batch.start.0)?,
            write: records.write.stream_from(&batch.start.1)?,
            options,
            last_key: Some(batch.last.clone()),
            key: Vec::new(),
            version: Vec::new(),
            expected: Expected::default(),
            tally: CutTally::default(),
        })
    }

    /// The next batch, or `None` at the end.
    pub fn next_batch(&mut self, regions: &RegionTable) -> Result<Option<Batch>, CutError> {
        let options = self.options.clone();
        while self.next_key() {
            let first = self.key.clone();
            let Some(region) = regions.find(&first) else {
                return Err(CutError::NoRegion {
                    key: hex::encode_upper(first),
                });
            };
            let start = (self.default.position(), self.write.position());
            let region = region.clone();
            let mut files = Files::new(&options);
            let mut last = Vec::new();
            while region.range.contains(&self.key) && files.raw_bytes < options.batch_bytes {
                self.take_key(&mut files)?;
                last.clone_from(&self.key);
                if !self.next_key() {
                    break;
                }
            }
            let ssts = files.finish()?;
            if !ssts.is_empty() {
                return Ok(Some(Batch {
                    region,
                    ssts,
                    first,
                    last,
                    start,
                }));
            }
        }
        Ok(None)
    }

    /// Counts so far, and the duplicates that the two streams met: values, write records.
    pub fn tally(&self) -> (CutTally, u64) {
        let duplicates = self.default.duplicates().values + self.write.duplicates().values;
        let tally = CutTally {
            expected_scan: self.expected.digest(),
            ..self.tally
        };
        (tally, duplicates)
    }

    /// Makes the smallest encoded key that either stream has next the present one; false at the
    /// end, and behind the last key wanted.
    fn next_key(&mut self) -> bool {
        let keys = [&self.default, &self.write].map(|s| s.peek().map(|e| encoded(e.key)));
        let Some(key) = keys.into_iter().flatten().min() else {
            return false;
        };
        if self.last_key.as_deref().is_some_and(|last| key > last) {
            return false;
        }
        self.key.clear();
        self.key.extend_from_slice(key);
        true
    }

    /// Everything of the present key.
    fn take_key(&mut self, files: &mut Files<'_>) -> Result<(), CutError> {
        let newest = self.write.peek().filter(|e| encoded(e.key) == self.key);
        self.expected.begin_key(newest.map(|e| (e.key, e.value)));
        self.take_values(files)?;
        self.take_writes(files)
    }

    /// Values of the present key that a write record refers to.
    fn take_values(&mut self, files: &mut Files<'_>) -> Result<(), CutError> {
        while let Some(entry) = self.default.peek() {
            if encoded(entry.key) != self.key {
                break;
            }
            if entry.tag == Tag::Value {
                self.tally.unreferenced += 1;
                self.default.advance()?;
                continue;
            }
            self.version.clear();
            self.version.extend_from_slice(entry.key);
            self.default.advance()?;
            let Some(value) = self.default.peek().filter(|e| e.key == self.version) else {
                let (user_key, start_ts) = shown(&self.version);
                return Err(CutError::MissingValue { user_key, start_ts });
            };
            self.expected.value(value.key, value.value);
            self.tally.put(Cf::Default, value, files)?;
            self.default.advance()?;
            if self.default.peek().is_some_and(|e| e.key == self.version) {
                return Err(conflict(Cf::Default, &self.version));
            }
        }
        Ok(())
    }

    /// Write records of the present key.
    fn take_writes(&mut self, files: &mut Files<'_>) -> Result<(), CutError> {
        while let Some(entry) = self.write.peek() {
            if encoded(entry.key) != self.key {
                break;
            }
            self.tally.put(Cf::Write, entry, files)?;
            self.version.clear();
            self.version.extend_from_slice(entry.key);
            self.write.advance()?;
            if self.write.peek().is_some_and(|e| e.key == self.version) {
                return Err(conflict(Cf::Write, &self.version));
            }
        }
        Ok(())
    }
}

impl CutTally {
    /// Counts a record and writes it. One hash serves both ends of the proof: what was selected,
    /// and what the file holds.
    fn put(&mut self, cf: Cf, entry: EntryRef<'_>, files: &mut Files<'_>) -> Result<(), SstError> {
        let hash = RecordHash::of(cf, entry.key, entry.value);
        self.records += 1;
        self.digest.add_hash(hash);
        files.put(cf, entry, hash)
    }
}

/// The key without its ts. The filter let only keys pass that have one.
fn encoded(versioned: &[u8]) -> &[u8] {
    &versioned[..versioned.len().saturating_sub(TS_LEN)]
}

fn conflict(cf: Cf, key: &[u8]) -> CutError {
    let (user_key, ts) = shown(key);
    CutError::Conflict { cf, user_key, ts }
}

/// User key in hex and ts.
fn shown(versioned: &[u8]) -> (String, u64) {
    let ts = split_versioned(versioned).map_or(0, |(_, ts)| ts.get());
    let user_key = decode_prefix(encoded(versioned))
        .map(|(key, _)| key)
        .unwrap_or_default();
    (hex::encode_upper(user_key), ts)
}

/// The open files of a batch, one per column family.
struct Files<'a> {
    options: &'a CutOptions,
    open: [Option<SstWriter<'a>>; 2],
    done: Vec<SstFile>,
    raw_bytes: u64,
}

impl<'a> Files<'a> {
    fn new(options: &'a CutOptions) -> Self {
        Files {
            options,
            open: [None, None],
            done: Vec::new(),
            raw_bytes: 0,
        }
    }

    fn put(&mut self, cf: Cf, entry: EntryRef<'_>, hash: RecordHash) -> Result<(), SstError> {
        let EntryRef { key, value, .. } = entry;
        let slot = &mut self.open[cf as usize];
        if slot.is_none() {
            let (factory, random) = (self.options.factory.as_ref(), self.options.random.as_ref());
            *slot = Some(SstWriter::create(factory, random, &self.options.dir, cf)?);
        }
        if let Some(writer) = slot {
            writer.put_hashed(key, value, hash)?;
            self.raw_bytes += (key.len() + value.len()) as u64;
        }
        if let Some(full) = slot.take_if(|writer| writer.raw_bytes() >= self.options.sst_bytes) {
            self.done.push(full.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<SstFile>, SstError> {
        for writer in self.open.iter_mut().filter_map(Option::take) {
            self.done.push(writer.finish()?);
        }
        self.done.sort_by_key(|file| file.cf);
        Ok(self.done)
    }
}
