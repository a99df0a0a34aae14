//! Sorted records to SST files, through a factory that the engine's owner provides.
//!
//! A file holds one column family, keys with the `z` prefix, strictly ascending.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use pitr_env::Random;
use pitr_format::digest::{RecordDigest, RecordHash};
use pitr_format::key::{DATA_PREFIX, split_versioned};
use pitr_format::{Cf, Class, EncodedRange};
use pitr_proto::import_sstpb::{Range, SstMeta};
use pitr_proto::metapb::RegionEpoch;
use uuid::Uuid;

use crate::engine::Pair;

#[cfg(feature = "rocks")]
pub mod rocks;
#[cfg(feature = "rocks")]
pub mod rocks_reader;

/// Why an SST file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("SST {path}: {action}: {message}; check space and permissions of the temporary directory")]
pub struct SstError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// The writer's own words.
    pub message: String,
}

impl SstError {
    /// The local disk or the order of keys failed; repeating the step does not help.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// Makes SST files of the engine's kind. An engine fork gives its own binding here.
pub trait SstFactory: Send + Sync {
    /// Begins a file.
    fn create<'a>(&'a self, path: &Path) -> Result<Box<dyn SstBuilder + 'a>, SstError>;
}

/// One SST file in the making.
pub trait SstBuilder {
    /// Appends a pair; data keys must ascend.
    fn put(&mut self, data_key: &[u8], value: &[u8]) -> Result<(), SstError>;
    /// Closes the file; its size in bytes.
    fn finish(self: Box<Self>) -> Result<u64, SstError>;
}

/// Reads SST files of the engine's kind.
pub trait SstReader: Send + Sync {
    /// Opens a finished file, which stays as it is. `scratch` is the name of a directory on the
    /// same file system that the reader may make, and removes when the table is dropped.
    fn open(&self, path: &Path, scratch: &Path) -> Result<Box<dyn SstTable>, SstError>;
}

/// An opened SST file.
pub trait SstTable {
    /// Entries that the file itself says it has.
    fn entries(&self) -> u64;
    /// All pairs (data keys) in order; every block is compared with its checksum.
    fn scan(&self) -> Box<dyn Iterator<Item = Result<Pair, SstError>> + '_>;
}

/// Reader and writer of the engine's SST files.
#[derive(Clone)]
pub struct Tables {
    /// Makes files.
    pub writer: Arc<dyn SstFactory>,
    /// Opens files.
    pub reader: Arc<dyn SstReader>,
}

impl Tables {
    /// RocksDB's.
    #[cfg(feature = "rocks")]
    pub fn rocks() -> Self {
        Tables {
            writer: Arc::new(rocks::RocksSstFactory::default()),
            reader: Arc::new(rocks_reader::RocksSstReader),
        }
    }
}

/// A finished SST file that waits for its ingest.
#[derive(Clone, Debug)]
pub struct SstFile {
    /// Identity for `SSTMeta.uuid`.
    pub uuid: Uuid,
    /// Column family.
    pub cf: Cf,
    /// The file; removed by the restore once it is ingested.
    pub path: PathBuf,
    /// Smallest versioned key, without `z`.
    pub first: Bytes,
    /// Largest versioned key, without `z`.
    pub last: Bytes,
    /// Records.
    pub entries: u64,
    /// Bytes of keys (without `z`) and values.
    pub raw_bytes: u64,
    /// Size of the file.
    pub file_size: u64,
    /// Digest of the records, keys without `z`.
    pub digest: RecordDigest,
}

impl SstFile {
    /// What `Upload` and `MultiIngest` have to say about the file, whose bytes are `content`, when
    /// it goes to this region. The range is inclusive at both ends.
    pub fn upload_meta(&self, content: &[u8], region_id: u64, epoch: RegionEpoch) -> SstMeta {
        SstMeta {
            uuid: Bytes::copy_from_slice(self.uuid.as_bytes()),
            range: Some(Range {
                start: self.first.clone(),
                end: self.last.clone(),
            }),
            crc32: crc32fast::hash(content),
            length: content.len() as u64,
            cf_name: self.cf.as_str().to_owned(),
            region_id,
            region_epoch: Some(epoch),
            total_kvs: self.entries,
            total_bytes: self.raw_bytes,
            ..SstMeta::default()
        }
    }

    /// Range of encoded keys (without ts) that the file touches; the end is exclusive.
    pub fn key_range(&self) -> EncodedRange {
        let encoded = |key: &[u8]| match split_versioned(key) {
            Ok((encoded, _)) => encoded.to_vec(),
            Err(_) => key.to_vec(),
        };
        let mut end = encoded(&self.last);
        end.push(0);
        EncodedRange::new(encoded(&self.first), end)
    }
}

/// Writes one file and keeps what [`SstFile`] needs to know.
pub struct SstWriter<'a> {
    builder: Box<dyn SstBuilder + 'a>,
    file: SstFile,
    data_key: Vec<u8>,
}

impl<'a> SstWriter<'a> {
    /// Begins a file of a new name, drawn from `random`, in `dir`.
    pub fn create(
        factory: &'a dyn SstFactory,
        random: &dyn Random,
        dir: &Path,
        cf: Cf,
    ) -> Result<Self, SstError> {
        let uuid = random.uuid();
        let path = dir.join(format!("{uuid}_{cf}.sst"));
        Ok(SstWriter {
            builder: factory.create(&path)?,
            file: SstFile {
                uuid,
                cf,
                path,
                first: Bytes::new(),
                last: Bytes::new(),
                entries: 0,
                raw_bytes: 0,
                file_size: 0,
                digest: RecordDigest::default(),
            },
            data_key: vec![DATA_PREFIX],
        })
    }

    /// Appends a record; versioned keys (without `z`) must ascend.
    pub fn put(&mut self, versioned_key: &[u8], value: &[u8]) -> Result<(), SstError> {
        let hash = RecordHash::of(self.file.cf, versioned_key, value);
        self.put_hashed(versioned_key, value, hash)
    }

    /// [`SstWriter::put`] of a record whose hash the caller needs as well.
    pub fn put_hashed(
        &mut self,
        versioned_key: &[u8],
        value: &[u8],
        hash: RecordHash,
    ) -> Result<(), SstError> {
        self.data_key.truncate(1);
        self.data_key.extend_from_slice(versioned_key);
        self.builder.put(&self.data_key, value)?;
        if self.file.entries == 0 {
            self.file.first = Bytes::copy_from_slice(versioned_key);
        }
        self.file.entries += 1;
        self.file.raw_bytes += (versioned_key.len() + value.len()) as u64;
        self.file.digest.add_hash(hash);
        Ok(())
    }

    /// Bytes of keys and values so far.
    pub fn raw_bytes(&self) -> u64 {
        self.file.raw_bytes
    }

    /// Closes the file.
    pub fn finish(self) -> Result<SstFile, SstError> {
        let SstWriter {
            builder,
            mut file,
            data_key,
        } = self;
        file.file_size = builder.finish()?;
        file.last = Bytes::from(data_key).slice(1..);
        Ok(file)
    }
}
