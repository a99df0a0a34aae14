//! RocksDB as the engine: three column families, data keys as TiKV lays them out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction,
    IngestExternalFileOptions, IteratorMode, Options, ReadOptions, WriteBatch,
};

use super::{Engine, EngineCf, EngineError, EngineOp, Pair};

/// A RocksDB directory, open for reading and writing.
#[derive(Clone)]
pub struct RocksEngine {
    db: Arc<DB>,
    path: PathBuf,
}

impl RocksEngine {
    /// Opens or creates the directory with the column families `default`, `lock` and `write`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_background_jobs(2);
        let mut cf_options = Options::default();
        cf_options.set_compression_type(DBCompressionType::Lz4);
        let cfs =
            EngineCf::ALL.map(|cf| ColumnFamilyDescriptor::new(cf.as_str(), cf_options.clone()));
        let db = DB::open_cf_descriptors(&options, path, cfs).map_err(|e| EngineError {
            path: path.to_owned(),
            action: "open",
            message: e.into_string(),
        })?;
        Ok(RocksEngine {
            db: Arc::new(db),
            path: path.to_owned(),
        })
    }

    /// The database itself, for an owner that needs more than [`Engine`] (snapshots, reverse
    /// iterators, delete range).
    pub fn db(&self) -> &Arc<DB> {
        &self.db
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Handle of a column family.
    pub fn cf(&self, cf: EngineCf) -> Result<&ColumnFamily, EngineError> {
        self.db
            .cf_handle(cf.as_str())
            .ok_or_else(|| self.error("find column family", cf.as_str()))
    }

    /// Wraps a message of RocksDB.
    pub fn error(&self, action: &'static str, message: impl ToString) -> EngineError {
        EngineError {
            path: self.path.clone(),
            action,
            message: message.to_string(),
        }
    }
}

impl Engine for RocksEngine {
    fn write(&self, ops: &[EngineOp]) -> Result<(), EngineError> {
        let mut batch = WriteBatch::default();
        for op in ops {
            match op {
                EngineOp::Put { cf, key, value } => batch.put_cf(self.cf(*cf)?, key, value),
                EngineOp::Delete { cf, key } => batch.delete_cf(self.cf(*cf)?, key),
            }
        }
        self.db.write(batch).map_err(|e| self.error("write", e))
    }

    fn ingest(&self, cf: EngineCf, files: &[PathBuf]) -> Result<(), EngineError> {
        if files.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db
            .ingest_external_file_cf_opts(self.cf(cf)?, &options, files.to_vec())
            .map_err(|e| self.error("ingest", e))
    }

    fn get(&self, cf: EngineCf, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.db
            .get_cf(self.cf(cf)?, key)
            .map_err(|e| self.error("get", e))
    }

    fn scan<'a>(
        &'a self,
        cf: EngineCf,
        start: &[u8],
        end: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a> {
        let handle = match self.cf(cf) {
            Ok(handle) => handle,
            Err(e) => return Box::new(std::iter::once(Err(e))),
        };
        let mut options = ReadOptions::default();
        if !end.is_empty() {
            options.set_iterate_upper_bound(end.to_vec());
        }
        let from = IteratorMode::From(start, Direction::Forward);
        let pairs = self.db.iterator_cf_opt(handle, options, from);
        Box::new(pairs.map(|pair| pair.map_err(|e| self.error("scan", e))))
    }
}
