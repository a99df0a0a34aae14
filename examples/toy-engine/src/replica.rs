//! One replica: three column families in memory. It can be read as an [`Engine`], and takes files
//! of its own kind, which stand for an engine's SST files.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError, EngineOp, Pair};
use pitr_restore_worker::sst::{SstBuilder, SstError, SstFactory};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Column families of sorted data keys.
#[derive(Default)]
pub struct Replica {
    families: RwLock<BTreeMap<EngineCf, Map>>,
}

impl Replica {
    /// Applies the changes of one command at once.
    pub fn apply(&self, ops: &[EngineOp]) {
        let mut families = self.families.write();
        for op in ops {
            match op {
                EngineOp::Put { cf, key, value } => {
                    let family = families.entry(*cf).or_default();
                    family.insert(key.clone(), value.clone());
                }
                EngineOp::Delete { cf, key } => {
                    families.entry(*cf).or_default().remove(key);
                }
            }
        }
    }

    /// All pairs of a column family, as of now.
    pub fn family(&self, cf: EngineCf) -> Map {
        self.families.read().get(&cf).cloned().unwrap_or_default()
    }
}

impl Engine for Replica {
    fn write(&self, ops: &[EngineOp]) -> Result<(), EngineError> {
        self.apply(ops);
        Ok(())
    }

    fn ingest(&self, cf: EngineCf, files: &[PathBuf]) -> Result<(), EngineError> {
        for path in files {
            let pairs = read_file(path).map_err(|error| EngineError {
                path: path.clone(),
                action: "ingest",
                message: error.to_string(),
            })?;
            self.families.write().entry(cf).or_default().extend(pairs);
        }
        Ok(())
    }

    fn get(&self, cf: EngineCf, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let families = self.families.read();
        Ok(families.get(&cf).and_then(|map| map.get(key)).cloned())
    }

    fn scan<'a>(
        &'a self,
        cf: EngineCf,
        start: &[u8],
        end: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a> {
        let inside = |key: &[u8]| key >= start && (end.is_empty() || key < end);
        let pairs: Vec<_> = self
            .family(cf)
            .into_iter()
            .filter(|(key, _)| inside(key))
            .collect();
        let pair = |(key, value): (Vec<u8>, Vec<u8>)| Ok((key.into(), value.into()));
        Box::new(pairs.into_iter().map(pair))
    }
}

/// Makes the engine's own files: pairs, each part behind its length (u32, little endian).
pub struct PairFiles;

struct PairFile {
    path: PathBuf,
    out: std::io::BufWriter<std::fs::File>,
    bytes: u64,
}

impl SstFactory for PairFiles {
    fn create<'a>(&'a self, path: &Path) -> Result<Box<dyn SstBuilder + 'a>, SstError> {
        let file =
            std::fs::File::create(path).map_err(|error| sst_error(path, "create", &error))?;
        Ok(Box::new(PairFile {
            path: path.to_owned(),
            out: std::io::BufWriter::new(file),
            bytes: 0,
        }))
    }
}

impl SstBuilder for PairFile {
    fn put(&mut self, data_key: &[u8], value: &[u8]) -> Result<(), SstError> {
        for part in [data_key, value] {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes();
            let written = self
                .out
                .write_all(&len)
                .and_then(|()| self.out.write_all(part));
            written.map_err(|error| sst_error(&self.path, "write", &error))?;
            self.bytes += 4 + part.len() as u64;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<u64, SstError> {
        let done = self.out.flush();
        done.map_err(|error| sst_error(&self.path, "finish", &error))?;
        Ok(self.bytes)
    }
}

fn sst_error(path: &Path, action: &'static str, error: &std::io::Error) -> SstError {
    SstError {
        path: path.to_owned(),
        action,
        message: error.to_string(),
    }
}

/// The pairs of a file of [`PairFiles`].
pub fn read_file(path: &Path) -> std::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        pairs.push((part(&mut rest)?, part(&mut rest)?));
    }
    Ok(pairs)
}

fn part(rest: &mut &[u8]) -> std::io::Result<Vec<u8>> {
    let cut = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "a pair is cut off");
    let (len, tail) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let split = tail.split_at_checked(u32::from_le_bytes(*len) as usize);
    let (bytes, tail) = split.ok_or_else(cut)?;
    *rest = tail;
    Ok(bytes.to_vec())
}
