//! SST files that TiKV's RocksDB reads.

use std::path::{Path, PathBuf};

use rocksdb::{BlockBasedOptions, ChecksumType, DBCompressionType, Options, SstFileWriter};

use super::{SstBuilder, SstError, SstFactory};

/// The newest table format that the RocksDB 6.29 line inside TiKV opens (tikv/rocksdb
/// `include/rocksdb/table.h`); the default of newer RocksDB is larger.
const FORMAT_VERSION: i32 = 5;

/// Writes block based tables, format version 5, CRC-32C checksums.
pub struct RocksSstFactory {
    options: Options,
}

impl RocksSstFactory {
    /// With `compression`; TiKV is built with LZ4 and opens uncompressed files too.
    pub fn new(compression: DBCompressionType) -> Self {
        let mut table = BlockBasedOptions::default();
        table.set_format_version(FORMAT_VERSION);
        table.set_checksum_type(ChecksumType::CRC32c);
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.set_compression_type(compression);
        RocksSstFactory { options }
    }
}

impl Default for RocksSstFactory {
    fn default() -> Self {
        Self::new(DBCompressionType::Lz4)
    }
}

impl SstFactory for RocksSstFactory {
    fn create<'a>(&'a self, path: &Path) -> Result<Box<dyn SstBuilder + 'a>, SstError> {
        let writer = SstFileWriter::create(&self.options);
        let builder = RocksSst {
            writer,
            path: path.to_owned(),
        };
        builder
            .writer
            .open(path)
            .map_err(|e| builder.error("create", e))?;
        Ok(Box::new(builder))
    }
}

struct RocksSst<'a> {
    writer: SstFileWriter<'a>,
    path: PathBuf,
}

impl RocksSst<'_> {
    fn error(&self, action: &'static str, error: rocksdb::Error) -> SstError {
        SstError {
            path: self.path.clone(),
            action,
            message: error.into_string(),
        }
    }
}

impl SstBuilder for RocksSst<'_> {
    fn put(&mut self, data_key: &[u8], value: &[u8]) -> Result<(), SstError> {
        self.writer
            .put(data_key, value)
            .map_err(|e| self.error("write", e))
    }

    fn finish(mut self: Box<Self>) -> Result<u64, SstError> {
        self.writer.finish().map_err(|e| self.error("finish", e))?;
        Ok(self.writer.file_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Footer of a block based table: checksum type, handles (40 bytes), version u32 LE, magic.
    #[test]
    fn the_footer_says_format_version_5_and_crc32c() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sst");
        let factory = RocksSstFactory::default();
        let mut builder = factory.create(&path).unwrap();
        builder.put(b"zkey", b"value").unwrap();
        let size = builder.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(size, bytes.len() as u64);
        let footer = bytes.last_chunk::<53>().unwrap();
        assert_eq!((footer[0], &footer[41..45]), (1, &5u32.to_le_bytes()[..]));
    }

    #[test]
    fn keys_that_do_not_ascend_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let factory = RocksSstFactory::default();
        let mut builder = factory.create(&dir.path().join("a.sst")).unwrap();
        builder.put(b"zb", b"").unwrap();
        assert!(builder.put(b"za", b"").is_err());
    }
}
