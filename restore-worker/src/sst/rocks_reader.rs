//! Reading SST files through RocksDB, block checksums included.
//!
//! RocksDB's bindings open no single file, so the file is linked into an empty scratch database.
//! That opens what TiKV writes, of any table format, and names damage in RocksDB's words. Filters
//! are not read: RocksDB does without one whose checksum is wrong.

use std::path::{Path, PathBuf};

use rocksdb::{DB, IngestExternalFileOptions, IteratorMode, LogLevel, Options, ReadOptions};

use super::{SstError, SstReader, SstTable};
use crate::engine::Pair;

/// Opens block based tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct RocksSstReader;

impl SstReader for RocksSstReader {
    fn open(&self, path: &Path, scratch: &Path) -> Result<Box<dyn SstTable>, SstError> {
        let mut table = RocksTable {
            path: path.to_owned(),
            scratch: scratch.to_owned(),
            db: None,
            entries: 0,
        };
        std::fs::create_dir(scratch).map_err(|e| table.error("make a scratch directory", e))?;
        let link = scratch.join("table.sst");
        // Ingesting by move removes the name that it is given, so it gets one of its own.
        std::fs::hard_link(path, &link).map_err(|e| table.error("link", e))?;
        let db = open_empty(&scratch.join("db")).map_err(|e| table.error("open", e))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        db.ingest_external_file_opts(&options, vec![&link])
            .map_err(|e| table.error("open", e))?;
        let files = db
            .live_files()
            .map_err(|e| table.error("read properties", e))?;
        if files.iter().any(|file| file.num_deletions > 0) {
            return Err(table.error("read", "the file holds deletions, which no backup writes"));
        }
        table.entries = files.iter().map(|file| file.num_entries).sum();
        table.db = Some(db);
        Ok(Box::new(table))
    }
}

fn open_empty(path: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_disable_auto_compactions(true);
    options.set_max_background_jobs(1);
    options.set_write_buffer_size(64 << 10);
    options.set_keep_log_file_num(1);
    options.set_log_level(LogLevel::Fatal);
    DB::open(&options, path)
}

struct RocksTable {
    path: PathBuf,
    scratch: PathBuf,
    db: Option<DB>,
    entries: u64,
}

impl RocksTable {
    fn error(&self, action: &'static str, message: impl ToString) -> SstError {
        SstError {
            path: self.path.clone(),
            action,
            message: message.to_string(),
        }
    }
}

impl SstTable for RocksTable {
    fn entries(&self) -> u64 {
        self.entries
    }

    fn scan(&self) -> Box<dyn Iterator<Item = Result<Pair, SstError>> + '_> {
        let Some(db) = &self.db else {
            return Box::new(std::iter::empty());
        };
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(2 << 20);
        let pairs = db.iterator_opt(IteratorMode::Start, options);
        Box::new(pairs.map(|pair| pair.map_err(|e| self.error("read", e))))
    }
}

impl Drop for RocksTable {
    fn drop(&mut self) {
        self.db = None;
        if let Err(e) = std::fs::remove_dir_all(&self.scratch) {
            tracing::debug!(path = %self.scratch.display(), error = %e, "scratch directory stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SstFactory;
    use super::super::rocks::RocksSstFactory;
    use super::*;

    fn table(dir: &Path, entries: u32) -> PathBuf {
        let path = dir.join("a.sst");
        let factory = RocksSstFactory::default();
        let mut builder = factory.create(&path).unwrap();
        for i in 0..entries {
            let (key, value) = (format!("z{i:08}"), vec![i as u8; 100]);
            builder.put(key.as_bytes(), &value).unwrap();
        }
        builder.finish().unwrap();
        path
    }

    fn read(path: &Path, scratch: &Path) -> Result<u64, SstError> {
        let table = RocksSstReader.open(path, scratch)?;
        let mut read = 0;
        for pair in table.scan() {
            pair?;
            read += 1;
        }
        assert_eq!(read, table.entries());
        Ok(read)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_but_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = table(dir.path(), 5000);
        assert_eq!(read(&path, &dir.path().join("scratch")).unwrap(), 5000);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_flipped_or_missing_byte_anywhere_in_the_blocks_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = table(dir.path(), 500);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len() - 53).step_by(997) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let error = read(&path, &dir.path().join("scratch"));
            assert!(error.is_err(), "byte {at} of {}", good.len());
        }
        for len in [0, 10, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(read(&path, &dir.path().join("scratch")).is_err(), "{len}");
        }
    }
}
