//! Fetched objects into one finished file: prove every block and count, then take over or rewrite.
//!
//! Nothing is written before every source was read to its end. Runs on a blocking thread; whatever
//! it makes is below `.temp` until the last rename.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pitr_format::key::{DATA_PREFIX, data_key};
use pitr_proto::import_sstpb::{DownloadResponse, Range, SstMeta};

use super::super::error::{ImportError, Reading};
use super::super::import_dir::{ImportDir, ImportDirError, Record, checksum_of, io_error};
use super::fetch::Fetched;
use super::keys::{KeyRule, KeyValue, Place};
use crate::engine::Pair;
use crate::sst::{SstBuilder, SstError, SstTable, Tables};

/// Bytes decrypted at a time.
const BLOCK: usize = 1 << 20;

/// One result in the making.
pub(super) struct Produce {
    pub(super) dir: Arc<ImportDir>,
    pub(super) tables: Tables,
    pub(super) output: SstMeta,
    pub(super) identity: [u8; 32],
    pub(super) rule: KeyRule,
    pub(super) sources: Vec<Fetched>,
}

/// Smallest and largest key, without `z`.
type Ends = (Vec<u8>, Vec<u8>);

/// A source after its proof.
struct Proven<'a> {
    table: Box<dyn SstTable>,
    reading: &'a Reading,
    path: PathBuf,
    ends: Option<Ends>,
    /// All keys are inside of the range.
    inside: bool,
}

/// Removes files when the work ends, however it ends.
struct Leftovers(Vec<PathBuf>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(e) = std::fs::remove_file(path)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), error = %e, "file stays until the sweep");
            }
        }
    }
}

impl Produce {
    pub(super) fn run(self) -> Result<DownloadResponse, ImportError> {
        let mut leftovers = Leftovers(self.sources.iter().map(|s| s.path.clone()).collect());
        let mut proven = Vec::with_capacity(self.sources.len());
        for source in &self.sources {
            let path = self.decrypted(source, &mut leftovers)?;
            proven.push(self.prove(source, path)?);
        }
        let temp = self.dir.temp_path(&self.output)?;
        leftovers.0.push(temp.clone());
        let range = match &proven[..] {
            [one] if one.inside && self.rule.is_identity() => {
                std::fs::rename(&one.path, &temp).map_err(io_error("rename", &one.path))?;
                one.ends.clone()
            }
            _ => self.rewrite(&proven, &temp)?,
        };
        drop(proven);
        let Some((first, last)) = range else {
            return Ok(DownloadResponse {
                is_empty: true,
                ..DownloadResponse::default()
            });
        };
        let (crc32, length) = checksum_of(&temp)?;
        let response = DownloadResponse {
            range: Some(Range {
                start: first.into(),
                end: last.into(),
            }),
            crc32,
            length,
            ..DownloadResponse::default()
        };
        let record = Record {
            identity: self.identity,
            response,
        };
        self.dir
            .finish(&temp, &self.dir.path(&self.output)?, &record)?;
        Ok(record.response)
    }

    /// The source as it was before its encryption.
    fn decrypted(
        &self,
        source: &Fetched,
        leftovers: &mut Leftovers,
    ) -> Result<PathBuf, ImportError> {
        let Some((key, iv)) = &source.key else {
            return Ok(source.path.clone());
        };
        let path = self.dir.scratch("src");
        leftovers.0.push(path.clone());
        let mut from = File::open(&source.path).map_err(io_error("open", &source.path))?;
        let mut to = File::create_new(&path).map_err(io_error("create", &path))?;
        let (mut block, mut offset) = (vec![0; BLOCK], 0);
        loop {
            let read = from
                .read(&mut block)
                .map_err(io_error("read", &source.path))?;
            if read == 0 {
                break;
            }
            key.decrypt(iv, offset, &mut block[..read])?;
            to.write_all(&block[..read])
                .map_err(io_error("write", &path))?;
            offset += read as u64;
        }
        to.sync_all().map_err(io_error("sync", &path))?;
        Ok(path)
    }

    /// Reads every block of a source, and compares its counts.
    fn prove<'a>(&self, source: &'a Fetched, path: PathBuf) -> Result<Proven<'a>, ImportError> {
        let reading = &source.reading;
        let damaged = |e: SstError| reading.damaged(format!("{}: {}", e.action, e.message));
        let table = self
            .tables
            .reader
            .open(&path, &self.dir.scratch("db"))
            .map_err(damaged)?;
        let (mut entries, mut inside) = (0, true);
        let mut ends: Option<Ends> = None;
        for pair in table.scan() {
            let (key, _) = pair.map_err(damaged)?;
            let key = stripped(&key, reading)?;
            entries += 1;
            inside &= self.rule.place(key) == Place::Inside;
            match &mut ends {
                Some((_, last)) => {
                    last.clear();
                    last.extend_from_slice(key);
                }
                None => ends = Some((key.to_vec(), key.to_vec())),
            }
        }
        for (what, expected) in [("table", table.entries()), ("request", source.entries)] {
            if entries != expected && (expected != 0 || what == "table") {
                let what = format!("{entries} entries, but the {what} says {expected}");
                return Err(reading.damaged(what));
            }
        }
        Ok(Proven {
            table,
            reading,
            path,
            ends,
            inside,
        })
    }

    /// Merges the sources into a new file; its first and last key.
    fn rewrite(&self, sources: &[Proven<'_>], temp: &Path) -> Result<Option<Ends>, ImportError> {
        // A run that died left no name, but one that failed may have.
        let _ = std::fs::remove_file(temp);
        let failed = |e: SstError| ImportError::Dir(ImportDirError::Engine(e.to_string()));
        let mut builder: Option<Box<dyn SstBuilder + '_>> = None;
        let mut ends: Option<Ends> = None;
        let mut merge = Merge::begin(sources, &self.rule)?;
        while let Some((key, value)) = merge.next()? {
            let Some((key, value)) = self.rule.apply(&key, &value)? else {
                continue;
            };
            let open = match &mut builder {
                Some(open) => open,
                none => none.insert(self.tables.writer.create(temp).map_err(failed)?),
            };
            open.put(&data_key(&key), &value).map_err(failed)?;
            ends = match ends {
                Some((first, _)) => Some((first, key)),
                None => Some((key.clone(), key)),
            };
        }
        if let Some(builder) = builder {
            builder.finish().map_err(failed)?;
            let file = File::open(temp).map_err(io_error("open", temp))?;
            file.sync_all().map_err(io_error("sync", temp))?;
        }
        Ok(ends)
    }
}

fn stripped<'k>(key: &'k [u8], reading: &Reading) -> Result<&'k [u8], ImportError> {
    match key.split_first() {
        Some((&DATA_PREFIX, rest)) => Ok(rest),
        _ => {
            let what = format!("key {} is no data key", hex::encode_upper(key));
            Err(reading.damaged(what))
        }
    }
}

type Scan<'a> = Box<dyn Iterator<Item = Result<Pair, SstError>> + 'a>;
/// The next entry of a source, ordered by key.
type Head = (Vec<u8>, Vec<u8>, usize);

/// All keys of several sources in order, inside of the range, each once.
struct Merge<'a> {
    scans: Vec<Scan<'a>>,
    sources: &'a [Proven<'a>],
    heads: BinaryHeap<Reverse<Head>>,
    rule: &'a KeyRule,
}

impl<'a> Merge<'a> {
    fn begin(sources: &'a [Proven<'a>], rule: &'a KeyRule) -> Result<Self, ImportError> {
        let mut merge = Merge {
            scans: sources.iter().map(|s| s.table.scan()).collect(),
            sources,
            heads: BinaryHeap::with_capacity(sources.len()),
            rule,
        };
        for source in 0..sources.len() {
            merge.advance(source)?;
        }
        Ok(merge)
    }

    /// Puts the next entry of a source among the heads.
    fn advance(&mut self, source: usize) -> Result<(), ImportError> {
        let reading = self.sources[source].reading;
        for pair in self.scans[source].by_ref() {
            let (key, value) = pair.map_err(|e| reading.damaged(e.message))?;
            let key = stripped(&key, reading)?;
            match self.rule.place(key) {
                Place::Before => {}
                Place::Inside => {
                    let head = (key.to_vec(), value.to_vec(), source);
                    self.heads.push(Reverse(head));
                    return Ok(());
                }
                Place::Behind => return Ok(()),
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<KeyValue>, ImportError> {
        let Some(Reverse((key, value, source))) = self.heads.pop() else {
            return Ok(None);
        };
        self.advance(source)?;
        while let Some(Reverse((other_key, other_value, other))) = self.heads.peek() {
            if *other_key != key {
                break;
            }
            let other = *other;
            if *other_value != value {
                let what = format!(
                    "key {} has another value in {}",
                    hex::encode_upper(&key),
                    self.sources[source].reading.name
                );
                return Err(self.sources[other].reading.damaged(what));
            }
            self.heads.pop();
            self.advance(other)?;
        }
        Ok(Some((key, value)))
    }
}
