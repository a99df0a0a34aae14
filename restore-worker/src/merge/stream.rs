//! The k-way merge over sorted runs.
//!
//! Entries are lent, not handed out: each stays where its run keeps it until the stream advances,
//! so that a restore copies and allocates nothing per entry.

use super::run::{Run, RunReader};
use super::{Duplicates, EntryRef, SortError};

/// Where a [`MergeStream`] stands: the next entry of each run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position(Vec<u64>);

/// The entries of all runs in order, equal ones once.
pub struct MergeStream<'a> {
    readers: Vec<RunReader<'a>>,
    /// Indices of the readers that have an entry: a binary heap, the smallest entry first.
    heap: Vec<usize>,
    duplicates: Duplicates,
}

impl<'a> MergeStream<'a> {
    pub(super) fn open(runs: &'a [Run], from: Option<&Position>) -> Result<Self, SortError> {
        let mut readers = Vec::with_capacity(runs.len());
        for (index, run) in runs.iter().enumerate() {
            let offset = from.and_then(|p| p.0.get(index)).copied().unwrap_or(0);
            readers.push(run.open(offset)?);
        }
        let mut stream = MergeStream {
            heap: (0..runs.len()).collect(),
            readers,
            duplicates: Duplicates::default(),
        };
        let readers = &stream.readers;
        stream.heap.retain(|run| readers[*run].head().is_some());
        for at in (0..stream.heap.len() / 2).rev() {
            stream.sink(at);
        }
        Ok(stream)
    }

    /// The next entry.
    pub fn peek(&self) -> Option<EntryRef<'_>> {
        self.head(0)
    }

    /// Where the entry of [`MergeStream::peek`] is read again.
    pub fn position(&self) -> Position {
        Position(self.readers.iter().map(RunReader::offset).collect())
    }

    /// Goes on behind the entry of [`MergeStream::peek`] and its repetitions.
    pub fn advance(&mut self) -> Result<(), SortError> {
        // Of the entries that are equal to the first, one is its child in the heap.
        while let Some(at) = [1, 2].into_iter().find(|at| self.repeats_first(*at)) {
            if let Some(entry) = self.head(at) {
                self.duplicates.count(entry.tag);
            }
            self.advance_at(at)?;
        }
        self.advance_at(0)
    }

    /// Repetitions skipped by this stream so far.
    pub fn duplicates(&self) -> Duplicates {
        self.duplicates
    }

    fn head(&self, at: usize) -> Option<EntryRef<'_>> {
        self.readers[*self.heap.get(at)?].head()
    }

    fn repeats_first(&self, at: usize) -> bool {
        at < self.heap.len() && self.head(at) == self.head(0)
    }

    fn advance_at(&mut self, at: usize) -> Result<(), SortError> {
        let Some(run) = self.heap.get(at).copied() else {
            return Ok(());
        };
        self.readers[run].advance()?;
        if self.readers[run].head().is_none() {
            // The last one of the heap is at least as large as what stood here, or lies in another
            // branch below the first, which `at` of 1 or 2 is a child of: sinking is enough.
            self.heap.swap_remove(at);
        }
        self.sink(at);
        Ok(())
    }

    /// Moves the run at `at` down to where its entry belongs.
    fn sink(&mut self, mut at: usize) {
        loop {
            let children = 2 * at + 1..(2 * at + 3).min(self.heap.len());
            let Some(least) = children.min_by_key(|child| self.head(*child)) else {
                return;
            };
            if self.head(at) <= self.head(least) {
                return;
            }
            self.heap.swap(at, least);
            at = least;
        }
    }
}
