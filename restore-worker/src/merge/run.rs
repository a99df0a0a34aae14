//! One sorted run: the sorter's memory, or a file.
//!
//! File layout, private to one restore and never kept: per entry
//! `key length u32 LE, tag u8, value length u32 LE, key, value`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use pitr_budget::Reservation;

use super::{Buffer, EntryRef, SortError, Tag};

const HEADER: usize = 9;
const IO_BUFFER: usize = 64 << 10;

/// A run that is complete.
pub(super) enum Run {
    /// Sorted entries, and the memory they were granted.
    Memory {
        buffer: Buffer,
        _held: Reservation,
    },
    File(PathBuf),
}

impl Run {
    pub(super) fn memory(buffer: Buffer, held: Reservation) -> Self {
        Run::Memory {
            buffer,
            _held: held,
        }
    }

    /// A reader at `from`: an entry index of a run in memory, a byte offset of a file.
    pub(super) fn open(&self, from: u64) -> Result<RunReader<'_>, SortError> {
        match self {
            Run::Memory { buffer, .. } => Ok(RunReader::Memory { buffer, at: from }),
            Run::File(path) => Ok(RunReader::File(FileReader::open(path, from)?)),
        }
    }

    pub(super) fn remove(self) -> Result<(), SortError> {
        match self {
            Run::Memory { .. } => Ok(()),
            Run::File(path) => std::fs::remove_file(&path).map_err(|source| SortError::Run {
                path,
                action: "remove",
                source,
            }),
        }
    }
}

pub(super) enum RunReader<'a> {
    Memory { buffer: &'a Buffer, at: u64 },
    File(FileReader<'a>),
}

impl RunReader<'_> {
    /// Where [`RunReader::head`] is read again.
    pub(super) fn offset(&self) -> u64 {
        match self {
            RunReader::Memory { at, .. } => *at,
            RunReader::File(file) => file.at,
        }
    }

    /// The present entry; `None` behind the last.
    pub(super) fn head(&self) -> Option<EntryRef<'_>> {
        match self {
            RunReader::Memory { buffer, at } => buffer.get(*at as usize),
            RunReader::File(file) => file.head(),
        }
    }

    pub(super) fn advance(&mut self) -> Result<(), SortError> {
        match self {
            RunReader::Memory { buffer, at } => {
                *at += u64::from(buffer.get(*at as usize).is_some());
                Ok(())
            }
            RunReader::File(file) => file.advance(),
        }
    }
}

/// A run file, one entry of which is in memory.
pub(super) struct FileReader<'a> {
    file: BufReader<File>,
    path: &'a PathBuf,
    /// Offset of the entry in memory.
    at: u64,
    /// Tag and key length of the entry; `None` behind the last.
    entry: Option<(Tag, usize)>,
    /// Its key and value.
    bytes: Vec<u8>,
}

impl<'a> FileReader<'a> {
    fn open(path: &'a PathBuf, from: u64) -> Result<Self, SortError> {
        let failed = |action| {
            move |source| SortError::Run {
                path: path.clone(),
                action,
                source,
            }
        };
        let mut file = File::open(path).map_err(failed("open"))?;
        file.seek(SeekFrom::Start(from)).map_err(failed("seek"))?;
        let mut reader = FileReader {
            file: BufReader::with_capacity(IO_BUFFER, file),
            path,
            at: from,
            entry: None,
            bytes: Vec::new(),
        };
        reader.read().map_err(failed("read"))?;
        Ok(reader)
    }

    fn head(&self) -> Option<EntryRef<'_>> {
        let (tag, key_len) = self.entry?;
        let (key, value) = self.bytes.split_at(key_len);
        Some(EntryRef { key, tag, value })
    }

    fn advance(&mut self) -> Result<(), SortError> {
        if self.entry.is_some() {
            self.at += (HEADER + self.bytes.len()) as u64;
        }
        self.read().map_err(|source| SortError::Run {
            path: self.path.clone(),
            action: "read",
            source,
        })
    }

    /// Reads the entry at the file's position.
    fn read(&mut self) -> std::io::Result<()> {
        self.entry = None;
        self.bytes.clear();
        let mut header = [0; HEADER];
        let first = self.file.read(&mut header)?;
        if first == 0 {
            return Ok(());
        }
        self.file.read_exact(&mut header[first..])?;
        let [k0, k1, k2, k3, tag, v0, v1, v2, v3] = header;
        let tag = Tag::from_byte(tag)
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "unknown tag"))?;
        let key_len = u32::from_le_bytes([k0, k1, k2, k3]) as usize;
        let value_len = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        self.bytes.resize(key_len + value_len, 0);
        self.file.read_exact(&mut self.bytes)?;
        self.entry = Some((tag, key_len));
        Ok(())
    }
}

pub(super) struct RunWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl RunWriter {
    pub(super) fn create(path: PathBuf) -> Result<Self, SortError> {
        match File::create_new(&path) {
            Ok(file) => Ok(RunWriter {
                file: BufWriter::with_capacity(IO_BUFFER, file),
                path,
            }),
            Err(source) => Err(SortError::Run {
                path,
                action: "create",
                source,
            }),
        }
    }

    pub(super) fn append(&mut self, entry: EntryRef<'_>) -> Result<(), SortError> {
        self.append_parts(entry).map_err(|source| SortError::Run {
            path: self.path.clone(),
            action: "write",
            source,
        })
    }

    fn append_parts(&mut self, entry: EntryRef<'_>) -> std::io::Result<()> {
        let EntryRef { key, tag, value } = entry;
        self.file.write_all(&length(key)?)?;
        self.file.write_all(&[tag.to_byte()])?;
        self.file.write_all(&length(value)?)?;
        self.file.write_all(key)?;
        self.file.write_all(value)
    }

    pub(super) fn finish(mut self) -> Result<Run, SortError> {
        match self.file.flush() {
            Ok(()) => Ok(Run::File(self.path)),
            Err(source) => Err(SortError::Run {
                path: self.path,
                action: "flush",
                source,
            }),
        }
    }
}

fn length(bytes: &[u8]) -> std::io::Result<[u8; 4]> {
    u32::try_from(bytes.len())
        .map(u32::to_le_bytes)
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidInput, "entry above 4 GiB"))
}
