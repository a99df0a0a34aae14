//! External merge sort: any number of entries in, one sorted stream without repetitions out,
//! within a memory bound.
//!
//! An entry is (key, [`Tag`], value); that is also the order. Entries that are equal in all three
//! come out once, the others are counted as duplicates. What is in memory is reserved from the
//! caller's budget; when the sorter's share or the budget is used up, it is sorted and spilled as
//! a run file. The stream merges all runs and can be resumed
//! from a [`Position`], which is how a part is read again after a target region changed.
//!
//! Called by the restore driver: one sorter per column family.

mod buffer;
mod run;
mod stream;

use std::path::{Path, PathBuf};

use pitr_budget::Reservation;
use pitr_format::Class;

use buffer::Buffer;
use run::{Run, RunWriter};
pub use stream::{MergeStream, Position};

/// What an entry is. Of one key, references come before values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// A write record needs the value of this key; the entry's own value is empty.
    Reference,
    /// The key's value.
    Value,
}

impl Tag {
    const fn to_byte(self) -> u8 {
        match self {
            Tag::Reference => 0,
            Tag::Value => 1,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Tag::Reference),
            1 => Some(Tag::Value),
            _ => None,
        }
    }
}

/// One entry, where its run keeps it. Fields are in the order of comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryRef<'a> {
    /// Versioned key.
    pub key: &'a [u8],
    /// What it is.
    pub tag: Tag,
    /// Value of the column family.
    pub value: &'a [u8],
}

/// How many equal entries were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Of [`Tag::Reference`].
    pub references: u64,
    /// Of [`Tag::Value`].
    pub values: u64,
}

impl Duplicates {
    fn count(&mut self, tag: Tag) {
        match tag {
            Tag::Reference => self.references += 1,
            Tag::Value => self.values += 1,
        }
    }

    fn add(&mut self, other: Duplicates) {
        self.references += other.references;
        self.values += other.values;
    }
}

/// Why sorting failed.
#[derive(Debug, thiserror::Error)]
pub enum SortError {
    /// The temporary directory.
    #[error(
        "sort run {path}: {action}: {source}; check space and permissions of the temporary directory"
    )]
    Run {
        /// The run file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl SortError {
    /// The local disk failed; repeating does not help.
    pub fn class(&self) -> Class {
        Class::Permanent
    }
}

/// What a sorter needs in order to work on when others hold all other memory: a chunk, and the list
/// of its entries.
pub const FLOOR: u64 = 2 << 20;
/// Bytes reserved at a time, so that the budget's counter is not touched for each entry.
const RESERVE_STEP: u64 = 1 << 20;

/// Bounds of one sorter.
#[derive(Clone, Debug)]
pub struct SortOptions {
    /// Share of the budget: bytes of entries that are kept in memory; one entry may exceed it.
    pub memory: usize,
    /// Runs that are merged at once; each takes a read buffer of 64 KiB.
    pub fan_in: usize,
}

impl Default for SortOptions {
    fn default() -> Self {
        SortOptions {
            memory: 128 << 20,
            fan_in: 64,
        }
    }
}

/// Takes entries in any order.
pub struct Sorter {
    dir: PathBuf,
    name: &'static str,
    options: SortOptions,
    held: Reservation,
    /// Kept when the buffer is spilled.
    floor: u64,
    buffer: Buffer,
    runs: Vec<Run>,
    created: usize,
    duplicates: Duplicates,
}

impl Sorter {
    /// A sorter that spills into `dir` (which the caller owns and removes) under names that begin
    /// with `name`. What it keeps in memory is `floor`, which should be [`FLOOR`] bytes, and what
    /// the budget of `floor` has besides.
    pub fn new(dir: &Path, name: &'static str, options: SortOptions, floor: Reservation) -> Self {
        Sorter {
            dir: dir.to_owned(),
            name,
            options: SortOptions {
                fan_in: options.fan_in.max(2),
                ..options
            },
            floor: floor.bytes(),
            held: floor,
            buffer: Buffer::default(),
            runs: Vec::new(),
            created: 0,
            duplicates: Duplicates::default(),
        }
    }

    /// Adds an entry; spills first when the share or the budget is used up.
    pub fn push(&mut self, key: &[u8], tag: Tag, value: &[u8]) -> Result<(), SortError> {
        let need = key.len() + value.len();
        if self.buffer.memory_with(need) > self.options.memory {
            self.spill()?;
        }
        if !self.reserve(need) {
            self.spill()?;
            if !self.reserve(need) {
                return self.write_alone(EntryRef { key, tag, value });
            }
        }
        self.buffer.push(key, tag, value);
        Ok(())
    }

    /// Whether an entry of `need` bytes has room.
    fn reserve(&mut self, need: usize) -> bool {
        let wanted = self.buffer.memory_with(need) as u64;
        match wanted.saturating_sub(self.held.bytes()) {
            0 => true,
            missing => self.held.try_grow(missing.max(RESERVE_STEP)),
        }
    }

    /// An entry for which there is no room becomes a run of its own.
    fn write_alone(&mut self, entry: EntryRef<'_>) -> Result<(), SortError> {
        let mut writer = self.next_run()?;
        writer.append(entry)?;
        self.runs.push(writer.finish()?);
        Ok(())
    }

    /// Sorts what is left and merges runs until one pass can read them all.
    pub fn finish(mut self) -> Result<Sorted, SortError> {
        if self.runs.is_empty() {
            self.duplicates.add(self.buffer.sort());
            return Ok(Sorted {
                runs: vec![Run::memory(self.buffer, self.held)],
                duplicates: self.duplicates,
            });
        }
        self.spill()?;
        while self.runs.len() > self.options.fan_in {
            self.merge_pass()?;
        }
        Ok(Sorted {
            runs: self.runs,
            duplicates: self.duplicates,
        })
    }

    fn spill(&mut self) -> Result<(), SortError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.duplicates.add(buffer.sort());
        let mut writer = self.next_run()?;
        for index in 0..buffer.len() {
            if let Some(entry) = buffer.get(index) {
                writer.append(entry)?;
            }
        }
        self.runs.push(writer.finish()?);
        drop(buffer);
        self.held.shrink_to(self.floor);
        Ok(())
    }

    /// Merges the oldest `fan_in` runs into one new run at the end, so that runs stay of like size.
    fn merge_pass(&mut self) -> Result<(), SortError> {
        let rest = self
            .runs
            .split_off(self.options.fan_in.min(self.runs.len()));
        let oldest = std::mem::replace(&mut self.runs, rest);
        let mut writer = self.next_run()?;
        let mut stream = MergeStream::open(&oldest, None)?;
        while let Some(entry) = stream.peek() {
            writer.append(entry)?;
            stream.advance()?;
        }
        self.duplicates.add(stream.duplicates());
        self.runs.push(writer.finish()?);
        oldest.into_iter().try_for_each(Run::remove)
    }

    fn next_run(&mut self) -> Result<RunWriter, SortError> {
        let path = self.dir.join(format!("{}-{}.run", self.name, self.created));
        self.created += 1;
        RunWriter::create(path)
    }
}

/// The sorted runs; readable any number of times.
pub struct Sorted {
    runs: Vec<Run>,
    duplicates: Duplicates,
}

impl Sorted {
    /// The merged stream from its beginning.
    pub fn stream(&self) -> Result<MergeStream<'_>, SortError> {
        MergeStream::open(&self.runs, None)
    }

    /// The merged stream from where another one of the same runs stood.
    pub fn stream_from(&self, position: &Position) -> Result<MergeStream<'_>, SortError> {
        MergeStream::open(&self.runs, Some(position))
    }

    /// Duplicates left out while the runs were made; the stream counts those between runs.
    pub fn duplicates(&self) -> Duplicates {
        self.duplicates
    }
}

#[cfg(test)]
mod tests;
