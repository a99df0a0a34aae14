//! One sorted run: the sorter's memory, or a file.
//!
//! File layout, private to one restore and never kept: per entry
//! `key length u32 LE, tag u8, value length u32 LE, key, value`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use pitr_budget::Reservation;

use super::{Buffer, Entry, SortError, Tag};

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
            Run::Memory { buffer, .. } => Ok(RunReader::Memory { buffer, next: from }),
            Run::File(path) => {
                let io = |action| {
                    move |source| SortError::Run {
                        path: path.clone(),
                        action,
                        source,
                    }
                };
                let mut file = File::open(path).map_err(io("open"))?;
                file.seek(SeekFrom::Start(from)).map_err(io("seek"))?;
                Ok(RunReader::File {
                    file: BufReader::with_capacity(IO_BUFFER, file),
                    path,
                    next: from,
                })
            }
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
    Memory {
        buffer: &'a Buffer,
        next: u64,
    },
    File {
        file: BufReader<File>,
        path: &'a PathBuf,
        next: u64,
    },
}

impl RunReader<'_> {
    /// Where the entry that [`RunReader::read`] gives next begins.
    pub(super) fn offset(&self) -> u64 {
        match self {
            RunReader::Memory { next, .. } | RunReader::File { next, .. } => *next,
        }
    }

    pub(super) fn read(&mut self) -> Result<Option<Entry>, SortError> {
        match self {
            RunReader::Memory { buffer, next } => {
                let entry = buffer.get(*next as usize).map(|(key, tag, value)| Entry {
                    key: key.to_vec(),
                    tag,
                    value: value.to_vec(),
                });
                *next += u64::from(entry.is_some());
                Ok(entry)
            }
            RunReader::File { file, path, next } => {
                let entry = read_entry(file).map_err(|source| SortError::Run {
                    path: path.to_path_buf(),
                    action: "read",
                    source,
                })?;
                if let Some(entry) = &entry {
                    *next += (HEADER + entry.key.len() + entry.value.len()) as u64;
                }
                Ok(entry)
            }
        }
    }
}

fn read_entry(file: &mut BufReader<File>) -> std::io::Result<Option<Entry>> {
    let mut header = [0; HEADER];
    let first = file.read(&mut header)?;
    if first == 0 {
        return Ok(None);
    }
    file.read_exact(&mut header[first..])?;
    let [k0, k1, k2, k3, tag, v0, v1, v2, v3] = header;
    let tag = Tag::from_byte(tag)
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "unknown tag"))?;
    let mut key = vec![0; u32::from_le_bytes([k0, k1, k2, k3]) as usize];
    file.read_exact(&mut key)?;
    let mut value = vec![0; u32::from_le_bytes([v0, v1, v2, v3]) as usize];
    file.read_exact(&mut value)?;
    Ok(Some(Entry { key, tag, value }))
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

    pub(super) fn append(&mut self, key: &[u8], tag: Tag, value: &[u8]) -> Result<(), SortError> {
        self.append_parts(key, tag, value)
            .map_err(|source| SortError::Run {
                path: self.path.clone(),
                action: "write",
                source,
            })
    }

    fn append_parts(&mut self, key: &[u8], tag: Tag, value: &[u8]) -> std::io::Result<()> {
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
