//! The bare library calls, over the same bytes as our paths and with the same settings.
//!
//! Nothing of this project runs inside a measured section. Where a library lets a context, a buffer
//! or a batch be used again, it is used again: a limit is what a program could reach that had
//! nothing else to do. The gRPC limit is in [`crate::grpc`], since it needs a peer.

use std::path::Path;
use std::sync::Arc;

use pitr_format::{Cf, RecordBatch, RecordRef};
use rocksdb::{
    BlockBasedOptions, ChecksumType, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    IngestExternalFileOptions, Options, SstFileWriter, WriteBatch, WriteOptions,
};
use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound, get_error_name};

use crate::Result;
use crate::bench::Bench;
use crate::clock::timed;
use crate::rows::{REGIONS, Rows, Shape, rows_per_region};

/// Rows that one event carries.
const EVENT_ROWS: u64 = 64;
/// Level of every frame in the format.
const ZSTD_LEVEL: i32 = 1;
/// Bytes of one write batch, as in the service.
const BATCH_BYTES: usize = 4 << 20;

/// The records of a bench.
pub struct Corpus {
    /// Region and records of each event, in the order of arrival.
    pub events: Vec<(u64, RecordBatch)>,
    /// Plaintext of each (region, column family), as the log holds it.
    pub slices: Vec<(Cf, Vec<u8>)>,
    /// Bytes of all slices.
    pub bytes: u64,
}

impl Corpus {
    /// About `megabytes` of rows over [`REGIONS`] regions, whose events take turns.
    pub fn new(shape: Shape, megabytes: usize) -> Result<Arc<Self>> {
        let (rows, per_region) = (Rows::new(shape), rows_per_region(shape, megabytes));
        let mut events = Vec::new();
        for first in (0..per_region).step_by(EVENT_ROWS as usize) {
            for region in 1..=REGIONS {
                let mut records = RecordBatch::default();
                for n in first..per_region.min(first + EVENT_ROWS) {
                    rows.row(region, n).records(shape, &mut records)?;
                }
                events.push((region, records));
            }
        }
        let mut slices = vec![(Cf::Default, Vec::new()); 2 * (REGIONS as usize + 1)];
        for (region, records) in &events {
            for record in records {
                let slice = &mut slices[2 * *region as usize + record.cf as usize];
                slice.0 = record.cf;
                frame(record, &mut slice.1);
            }
        }
        slices.retain(|(_, plain)| !plain.is_empty());
        let bytes = events
            .iter()
            .map(|(_, records)| records.plain_len() as u64)
            .sum();
        Ok(Arc::new(Corpus {
            events,
            slices,
            bytes,
        }))
    }

    /// Every record, in the order of arrival.
    pub fn records(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.events.iter().flat_map(|(_, records)| records)
    }
}

fn frame(record: RecordRef<'_>, out: &mut Vec<u8>) {
    for part in [record.key, record.value] {
        out.extend_from_slice(&(part.len() as u32).to_le_bytes());
        out.extend_from_slice(part);
    }
}

fn zstd<T>(result: std::result::Result<T, usize>) -> Result<T> {
    result.map_err(|code| format!("zstd: {}", get_error_name(code)).into())
}

/// `memcpy` of every byte.
pub fn copy(bench: &mut Bench, corpus: &Arc<Corpus>) {
    let corpus = Arc::clone(corpus);
    let mut out = Vec::with_capacity(corpus.bytes as usize);
    bench.limit("copy", move || {
        out.clear();
        let (time, ()) = timed(|| {
            for (_, slice) in &corpus.slices {
                out.extend_from_slice(slice);
            }
        });
        std::hint::black_box(&out);
        Ok(time)
    });
}

/// CRC-64 of key and value, record by record: the format asks for it.
pub fn crc64(bench: &mut Bench, corpus: &Arc<Corpus>) {
    let corpus = Arc::clone(corpus);
    bench.limit("crc64", move || {
        let (time, sum) = timed(|| {
            corpus.records().fold(0, |sum, record| {
                let mut digest = crc64fast::Digest::new();
                digest.write(record.key);
                digest.write(record.value);
                sum ^ digest.sum64()
            })
        });
        std::hint::black_box(sum);
        Ok(time)
    });
}

/// SHA-256 of every slice.
pub fn sha256(bench: &mut Bench, corpus: &Arc<Corpus>) {
    let corpus = Arc::clone(corpus);
    bench.limit("sha256", move || {
        let (time, ()) = timed(|| {
            for (_, slice) in &corpus.slices {
                std::hint::black_box(Sha256::digest(slice));
            }
        });
        Ok(time)
    });
}

/// One zstd frame of level 1 for every slice.
pub fn compress(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let corpus = Arc::clone(corpus);
    let (mut context, mut out) = (compressor()?, Vec::new());
    bench.limit("zstd-1", move || {
        let (time, done) = timed(|| {
            for (_, slice) in &corpus.slices {
                out.clear();
                out.reserve(compress_bound(slice.len()));
                zstd(context.compress2(&mut out, slice))?;
            }
            Ok(())
        });
        done.map(|()| time)
    });
    Ok(())
}

fn compressor() -> Result<CCtx<'static>> {
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(ZSTD_LEVEL),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
    ] {
        zstd(context.set_parameter(parameter))?;
    }
    Ok(context)
}

/// Decompression of the same frames.
pub fn decompress(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let mut context = compressor()?;
    let mut frames = Vec::new();
    for (_, slice) in &corpus.slices {
        let mut frame = Vec::with_capacity(compress_bound(slice.len()));
        zstd(context.compress2(&mut frame, slice))?;
        frames.push((frame, slice.len()));
    }
    let (mut context, mut out) = (DCtx::create(), Vec::new());
    bench.limit("unzstd", move || {
        let (time, done) = timed(|| {
            for (frame, len) in &frames {
                out.clear();
                out.reserve(*len);
                zstd(context.decompress(&mut out, frame))?;
            }
            Ok(())
        });
        done.map(|()| time)
    });
    Ok(())
}

/// A key and its value; borrowed while sorting, owned to be written.
type Pair = (Vec<u8>, Vec<u8>);

/// Pairs with data keys per column family, in the order of arrival.
fn data_pairs(corpus: &Corpus) -> [Vec<Pair>; 2] {
    let mut pairs = [Vec::new(), Vec::new()];
    for record in corpus.records() {
        let key = pitr_format::key::data_key(record.key);
        pairs[record.cf as usize].push((key, record.value.to_vec()));
    }
    pairs
}

fn sorted_pairs(corpus: &Corpus) -> [Vec<Pair>; 2] {
    let mut pairs = data_pairs(corpus);
    pairs.iter_mut().for_each(|of_cf| of_cf.sort_unstable());
    pairs
}

/// Sort of references to pairs, in memory.
pub fn sort(bench: &mut Bench, corpus: &Arc<Corpus>) {
    let pairs = data_pairs(corpus);
    bench.limit("sort", move || {
        let mut views = pairs.each_ref().map(|of_cf| {
            let views = of_cf.iter().map(|(key, value)| (&key[..], &value[..]));
            views.collect::<Vec<_>>()
        });
        let (time, ()) = timed(|| {
            for of_cf in &mut views {
                of_cf.sort_unstable();
            }
        });
        std::hint::black_box(&views);
        Ok(time)
    });
}

/// Sorted pairs into SST files of 64 MiB with LZ4, format version 5, as the restore writes them.
pub fn sst(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let (pairs, dir) = (sorted_pairs(corpus), tempfile::tempdir()?);
    bench.limit("sst-lz4", move || {
        let (time, done) = timed(|| write_ssts(&pairs, dir.path()));
        done.map(|_| time)
    });
    Ok(())
}

/// Ingest of these files, by move, into an empty engine.
pub fn ingest(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let pairs = sorted_pairs(corpus);
    bench.limit("ingest", move || {
        let dir = tempfile::tempdir()?;
        let files = write_ssts(&pairs, dir.path())?;
        let db = open(&dir.path().join("db"))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let (time, done) = timed(|| {
            for (cf, path) in files {
                db.ingest_external_file_cf_opts(family(&db, cf)?, &options, vec![path])?;
            }
            Ok(())
        });
        done.map(|()| time)
    });
    Ok(())
}

fn write_ssts(pairs: &[Vec<Pair>; 2], dir: &Path) -> Result<Vec<(Cf, std::path::PathBuf)>> {
    let mut table = BlockBasedOptions::default();
    table.set_format_version(5);
    table.set_checksum_type(ChecksumType::CRC32c);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    let mut files = Vec::new();
    for cf in [Cf::Default, Cf::Write] {
        let of_cf = &pairs[cf as usize];
        if of_cf.is_empty() {
            continue;
        }
        let path = dir.join(format!("{cf}.sst"));
        let mut writer = SstFileWriter::create(&options);
        writer.open(&path)?;
        for (key, value) in of_cf {
            writer.put(key, value)?;
        }
        writer.finish()?;
        files.push((cf, path));
    }
    Ok(files)
}

/// Sorted pairs into the memtable without a log, in batches of 4 MiB.
pub fn memtable(bench: &mut Bench, corpus: &Arc<Corpus>) {
    let pairs = sorted_pairs(corpus);
    bench.limit("memtable", move || {
        let dir = tempfile::tempdir()?;
        let db = open(dir.path())?;
        let (time, done) = timed(|| -> Result<()> {
            for cf in [Cf::Default, Cf::Write] {
                write_batches(&db, cf, &pairs[cf as usize])?;
            }
            Ok(())
        });
        done.map(|()| time)
    });
}

fn write_batches(db: &DB, cf: Cf, pairs: &[Pair]) -> Result<()> {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    let family = family(db, cf)?;
    let mut batch = WriteBatch::default();
    for (key, value) in pairs {
        batch.put_cf(family, key, value);
        if batch.size_in_bytes() >= BATCH_BYTES {
            db.write_opt(std::mem::take(&mut batch), &options)?;
        }
    }
    Ok(db.write_opt(batch, &options)?)
}

fn family(db: &DB, cf: Cf) -> Result<&ColumnFamily> {
    let found = db.cf_handle(cf.as_str());
    found.ok_or_else(|| format!("no column family {cf}").into())
}

/// An empty database with the settings of the engine that our paths write to.
fn open(path: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    let mut cf_options = Options::default();
    cf_options.set_compression_type(DBCompressionType::Lz4);
    let families = ["default", "lock", "write"]
        .map(|name| ColumnFamilyDescriptor::new(name, cf_options.clone()));
    Ok(DB::open_cf_descriptors(&options, path, families)?)
}
