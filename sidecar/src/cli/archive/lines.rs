//! What `archive cat` prints of objects that are no log files.

use std::fmt;

use pitr_format::backup_meta::LogBackupMeta;
use pitr_format::start_probe::StartProbe;
use pitr_restore_worker::archive::{MetaContent, MetaObject};
use pitr_restore_worker::plan::Slice;
use schemars::JsonSchema;
use serde::Serialize;

use super::record::Op;
use super::slices;
use crate::cli::output;
use crate::time;

/// The head of a meta; its slices follow.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Meta {
    object: String,
    /// The store that wrote it.
    store: i64,
    /// When the flush began, if the name tells.
    flush: Option<time::Shown>,
    /// Smallest ts of its records.
    earliest: time::Shown,
    /// Largest ts of its records.
    latest: time::Shown,
    /// Number of slices.
    slices: u64,
    /// Number of records.
    records: i64,
}

/// A slice as its meta describes it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SliceLine {
    /// The log file.
    object: String,
    /// Where it begins in the log file.
    offset: u64,
    /// Its bytes there.
    stored_bytes: u64,
    /// Its bytes when decompressed.
    plain_bytes: u64,
    /// Column family.
    cf: &'static str,
    op: Op,
    /// The region that its records come from.
    region: i64,
    /// The table, for keys of TiDB.
    table: i64,
    /// Whether it holds TiDB's schema.
    schema: bool,
    records: i64,
    /// Smallest ts of a record.
    min_ts: u64,
    /// Largest ts of a record.
    max_ts: u64,
    /// Smallest start ts of a record in `write`.
    min_begin_ts: u64,
    /// Up to where the region was complete when the last record came.
    resolved_ts: u64,
    /// Smallest key with its ts, encoded, hex.
    start_key: String,
    /// Largest key with its ts, encoded, hex.
    end_key: String,
    /// Digest of the plaintext, hex.
    sha256: String,
    /// XOR of the CRC-64 of all records, hex.
    crc64xor: String,
}

/// `backupmeta`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BackupMeta {
    cluster_id: u64,
    cluster_version: String,
    /// Begin of the log.
    start: time::Shown,
    schema_version: u32,
}

/// What the start of a task found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Start {
    task: String,
    start: time::Shown,
    /// Ranges of raw keys, hex, each with its start and its end.
    ranges: Vec<(String, String)>,
    /// Whether no key was in them.
    empty: bool,
}

impl Meta {
    pub(super) fn new(object: &MetaObject, content: &MetaContent) -> Self {
        let records = content
            .slices
            .iter()
            .map(|slice| slice.info.number_of_entries);
        Meta {
            object: object.path.clone(),
            store: content.store_id,
            flush: object.name.as_ref().map(|name| time::show(name.flush_ts)),
            earliest: time::show(content.min_ts),
            latest: time::show(content.max_ts),
            slices: content.slices.len() as u64,
            records: records.fold(0, i64::saturating_add),
        }
    }
}

impl SliceLine {
    pub(super) fn new(slice: &Slice) -> Self {
        let info = &slice.info;
        SliceLine {
            object: slice.object.clone(),
            offset: info.range_offset,
            stored_bytes: info.range_length,
            plain_bytes: info.length,
            cf: slice.cf.as_str(),
            op: slices::op(slice),
            region: info.region_id,
            table: info.table_id,
            schema: info.is_meta,
            records: info.number_of_entries,
            min_ts: info.min_ts,
            max_ts: info.max_ts,
            min_begin_ts: info.min_begin_ts_in_default_cf,
            resolved_ts: info.resolved_ts,
            start_key: hex::encode(&info.start_key),
            end_key: hex::encode(&info.end_key),
            sha256: hex::encode(&info.sha256),
            crc64xor: format!("{:016x}", info.crc64xor),
        }
    }
}

impl From<LogBackupMeta> for BackupMeta {
    fn from(meta: LogBackupMeta) -> Self {
        BackupMeta {
            cluster_id: meta.cluster_id,
            cluster_version: meta.cluster_version,
            start: time::show(meta.start_ts),
            schema_version: meta.backup_schema_version,
        }
    }
}

impl From<StartProbe> for Start {
    fn from(probe: StartProbe) -> Self {
        let ranges = probe.ranges.iter();
        Start {
            task: probe.task,
            start: time::show(probe.start_ts),
            ranges: ranges
                .map(|(start, end)| (hex::encode(start), hex::encode(end)))
                .collect(),
            empty: probe.empty,
        }
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "meta: {}\nstore: {}", self.object, self.store)?;
        if let Some(flush) = &self.flush {
            writeln!(f, "flush: {flush}")?;
        }
        if self.slices > 0 {
            writeln!(f, "earliest: {}\nlatest: {}", self.earliest, self.latest)?;
        }
        write!(f, "slices: {}\nrecords: {}", self.slices, self.records)
    }
}

impl fmt::Display for SliceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stored, plain) = (
            output::bytes(self.stored_bytes),
            output::bytes(self.plain_bytes),
        );
        let (cf, op) = (self.cf, self.op.as_str());
        write!(
            f,
            "slice {}+{}  {cf} {op}  region {} table {}  {} records  {stored} ({plain} plain)  \
             ts {}..{}  keys {}..{}",
            self.object,
            self.offset,
            self.region,
            self.table,
            self.records,
            self.min_ts,
            self.max_ts,
            self.start_key,
            self.end_key
        )
    }
}

impl fmt::Display for BackupMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cluster: {}\ncluster version: {}\nstart: {}\nschema version: {}",
            self.cluster_id, self.cluster_version, self.start, self.schema_version
        )
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task: {}\nstart: {}\nranges:", self.task, self.start)?;
        for (start, end) in &self.ranges {
            write!(f, " {start}:{end}")?;
        }
        write!(f, "\nempty at the start: {}", self.empty)
    }
}
