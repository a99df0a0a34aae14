//! What restore needs of a storage engine, and the RocksDB that has it.

use std::path::PathBuf;

use pitr_format::Class;

#[cfg(feature = "rocks")]
pub mod rocks;

/// The column families of a TiKV store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EngineCf {
    /// Long values.
    Default,
    /// Write records.
    Write,
    /// Locks.
    Lock,
}

impl EngineCf {
    /// All three, in the order in which they are opened.
    pub const ALL: [EngineCf; 3] = [EngineCf::Default, EngineCf::Lock, EngineCf::Write];

    /// RocksDB's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            EngineCf::Default => "default",
            EngineCf::Write => "write",
            EngineCf::Lock => "lock",
        }
    }
}

impl From<pitr_format::Cf> for EngineCf {
    fn from(cf: pitr_format::Cf) -> Self {
        match cf {
            pitr_format::Cf::Default => EngineCf::Default,
            pitr_format::Cf::Write => EngineCf::Write,
        }
    }
}

/// One change of the engine. Keys are data keys (`z` first).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineOp {
    /// Set a value.
    Put {
        /// Column family.
        cf: EngineCf,
        /// Data key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Remove a key.
    Delete {
        /// Column family.
        cf: EngineCf,
        /// Data key.
        key: Vec<u8>,
    },
}

/// Why the engine refused.
#[derive(Debug, thiserror::Error)]
#[error("engine at {path}: {action}: {message}")]
pub struct EngineError {
    /// Directory of the engine.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// The engine's own words.
    pub message: String,
}

impl EngineError {
    /// Engine failures are disk and corruption failures: repeating does not help.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// A key and its value.
pub type Pair = (Box<[u8]>, Box<[u8]>);

/// The engine behind a store: column families of sorted keys. Keys are data keys.
pub trait Engine: Send + Sync + 'static {
    /// Applies all changes atomically.
    fn write(&self, ops: &[EngineOp]) -> Result<(), EngineError>;
    /// Takes SST files over (by move) into one column family; their keys must not overlap each other.
    fn ingest(&self, cf: EngineCf, files: &[PathBuf]) -> Result<(), EngineError>;
    /// Value of one key.
    fn get(&self, cf: EngineCf, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;
    /// Pairs of `[start, end)` in key order (an empty end is unbounded), from one snapshot.
    fn scan<'a>(
        &'a self,
        cf: EngineCf,
        start: &[u8],
        end: &[u8],
    ) -> Box<dyn Iterator<Item = Result<Pair, EngineError>> + 'a>;
}
