//! An engine of maps and the files it takes in: as little machinery as can be between a restore
//! and what a test looks at.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use pitr_format::Ts;
use pitr_restore_worker::browse::visible_at;
use pitr_restore_worker::engine::{Engine, EngineCf, EngineError, EngineOp, Pair};
use pitr_restore_worker::sst::{SstBuilder, SstError, SstFactory};

use super::golden::Pairs;

type Maps = BTreeMap<(EngineCf, Vec<u8>), Vec<u8>>;

/// Clones share one content.
#[derive(Clone, Default)]
pub struct MemoryEngine(Arc<State>);

#[derive(Default)]
struct State {
    maps: Mutex<Maps>,
    files: Mutex<BTreeMap<PathBuf, Pairs>>,
}

impl MemoryEngine {
    /// All records without the `z` of their keys.
    pub fn records(&self) -> BTreeMap<(EngineCf, Vec<u8>), Vec<u8>> {
        let maps = self.0.maps.lock();
        let stripped = maps
            .iter()
            .map(|((cf, key), value)| ((*cf, key[1..].to_vec()), value.clone()));
        stripped.collect()
    }

    /// What a reader sees at `ts`.
    pub fn visible(&self, ts: u64) -> Pairs {
        visible_at(self, Ts::new(ts)).map(Result::unwrap).collect()
    }
}

impl Engine for MemoryEngine {
    fn write(&self, ops: &[EngineOp]) -> Result<(), EngineError> {
        let mut maps = self.0.maps.lock();
        for op in ops.iter().cloned() {
            match op {
                EngineOp::Put { cf, key, value } => maps.insert((cf, key), value),
                EngineOp::Delete { cf, key } => maps.remove(&(cf, key)),
            };
        }
        Ok(())
    }

    fn ingest(&self, cf: EngineCf, files: &[PathBuf]) -> Result<(), EngineError> {
        let (mut maps, mut known) = (self.0.maps.lock(), self.0.files.lock());
        for path in files {
            let pairs = known.remove(path).ok_or_else(|| EngineError {
                path: path.clone(),
                action: "ingest",
                message: "no such file".to_owned(),
            })?;
            maps.extend(pairs.into_iter().map(|(key, value)| ((cf, key), value)));
        }
        Ok(())
    }

    fn get(&self, cf: EngineCf, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.0.maps.lock().get(&(cf, key.to_vec())).cloned())
    }

    fn scan<'a>(
        &'a self,
        cf: EngineCf,
        start: &[u8],
        end: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a> {
        let from = Bound::Included((cf, start.to_vec()));
        let maps = self.0.maps.lock();
        let pairs: Vec<_> = maps
            .range((from, Bound::Unbounded))
            .take_while(|((of, key), _)| *of == cf && (end.is_empty() || &key[..] < end))
            .map(|((_, key), value)| Ok((key.as_slice().into(), value.as_slice().into())))
            .collect();
        Box::new(pairs.into_iter())
    }
}

impl SstFactory for MemoryEngine {
    fn create<'a>(&'a self, path: &Path) -> Result<Box<dyn SstBuilder + 'a>, SstError> {
        Ok(Box::new(MemoryFile {
            engine: self.clone(),
            path: path.to_owned(),
            pairs: Pairs::new(),
        }))
    }
}

struct MemoryFile {
    engine: MemoryEngine,
    path: PathBuf,
    pairs: Pairs,
}

impl SstBuilder for MemoryFile {
    fn put(&mut self, data_key: &[u8], value: &[u8]) -> Result<(), SstError> {
        let last = self.pairs.last_key_value();
        let ascends = last.is_none_or(|(last, _)| &last[..] < data_key);
        assert!(
            ascends,
            "keys of a file ascend: {}",
            data_key.escape_ascii()
        );
        self.pairs.insert(data_key.to_vec(), value.to_vec());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<u64, SstError> {
        let size = self
            .pairs
            .iter()
            .map(|(k, v)| k.len() + v.len())
            .sum::<usize>();
        self.engine.0.files.lock().insert(self.path, self.pairs);
        Ok(size as u64)
    }
}
