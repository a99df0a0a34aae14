//! The k-way merge over sorted runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::run::{Run, RunReader};
use super::{Duplicates, Entry, SortError};

/// Where a [`MergeStream`] stands: the next entry of each run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position(Vec<u64>);

/// The entries of all runs in order, equal ones once.
pub struct MergeStream<'a> {
    readers: Vec<RunReader<'a>>,
    /// The next entry of each run that has one, with the run's index.
    heads: BinaryHeap<Reverse<(Entry, usize)>>,
    /// Offset of each run's head; the reader's own offset is already behind it.
    offsets: Vec<u64>,
    duplicates: Duplicates,
}

impl<'a> MergeStream<'a> {
    pub(super) fn open(runs: &'a [Run], from: Option<&Position>) -> Result<Self, SortError> {
        let mut stream = MergeStream {
            readers: Vec::with_capacity(runs.len()),
            heads: BinaryHeap::with_capacity(runs.len()),
            offsets: vec![0; runs.len()],
            duplicates: Duplicates::default(),
        };
        for (index, run) in runs.iter().enumerate() {
            let offset = from.and_then(|p| p.0.get(index)).copied().unwrap_or(0);
            stream.readers.push(run.open(offset)?);
            stream.refill(index)?;
        }
        Ok(stream)
    }

    /// The next entry without taking it.
    pub fn peek(&self) -> Option<&Entry> {
        self.heads.peek().map(|Reverse((entry, _))| entry)
    }

    /// Where the entry of [`MergeStream::peek`] is read again.
    pub fn position(&self) -> Position {
        Position(self.offsets.clone())
    }

    /// Takes the next entry and its repetitions.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SortError> {
        let Some(Reverse((entry, run))) = self.heads.pop() else {
            return Ok(None);
        };
        self.refill(run)?;
        while self.peek() == Some(&entry) {
            if let Some(Reverse((_, run))) = self.heads.pop() {
                self.duplicates.count(entry.tag);
                self.refill(run)?;
            }
        }
        Ok(Some(entry))
    }

    /// Repetitions skipped by this stream so far.
    pub fn duplicates(&self) -> Duplicates {
        self.duplicates
    }

    fn refill(&mut self, run: usize) -> Result<(), SortError> {
        self.offsets[run] = self.readers[run].offset();
        if let Some(entry) = self.readers[run].read()? {
            self.heads.push(Reverse((entry, run)));
        }
        Ok(())
    }
}
