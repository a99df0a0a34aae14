//! `Apply`: log slices straight into the engine, the call that BR makes for a log restore.
//!
//! As TiKV (tikv/tikv `src/import/sst_service.rs` do_apply, `components/sst_importer/src/
//! sst_importer.rs` do_apply_kv_file), except where that loses data in silence:
//!
//! | TiKV | here |
//! |---|---|
//! | metas without a rule are dropped | refused |
//! | a column family other than default and write is ignored | refused |
//! | digest and length are not compared for a cached slice | always compared, nothing is cached |
//! | of several versions of a key in one batch only the newest stays | all stay |
//! | region and leader are checked after the download | before |
//! | decompression may exceed the declared length | capped by it; the length is required |

use std::sync::Arc;

use bytes::Bytes;
use pitr_format::compress::decompress;
use pitr_format::key::split_versioned;
use pitr_format::record::RecordIter;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedRange};
use pitr_proto::backup::CompressionType;
use pitr_proto::errorpb;
use pitr_proto::import_sstpb::{self, ApplyRequest, KvMeta, Range, RewriteRule};
use pitr_proto::kvrpcpb::Context;
use pitr_storage::{SharedStorage, open_backend};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::host::{ImportHost, RegionError, WriteFailure};
use super::quota::Quota;
use super::{ImportLimits, check_store};
use crate::engine::{EngineCf, EngineOp};
use crate::filter::without_rollback_marks;

/// Set in `txn_source` of what a log restore writes, so that TiCDC ignores it (tikv/tikv#19657).
const TXN_SOURCE_RESTORE: u64 = 1 << 16;
/// Longest wait that a busy answer proposes.
const BUSY_BACKOFF_MS: u64 = 1_000;
/// Bytes that a change takes besides key and value.
const CHANGE_OVERHEAD: usize = 12;

/// Why an `Apply` failed; becomes `import_sstpb.Error`. The text of each begins like TiKV's, so
/// that BR understands it.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Region, leader, epoch or store do not fit.
    #[error("failed to complete raft command: {}", .0.message)]
    Region(RegionError),
    /// The engine failed.
    #[error("failed to complete raft command: {0}")]
    Engine(String),
    /// The request contradicts itself.
    #[error("bad format {0}")]
    BadFormat(String),
    /// The slice is missing, cut, or not what the request says.
    #[error("Cannot read {uri}/{name} into memory: {what}")]
    CannotRead {
        /// The storage.
        uri: String,
        /// The object.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The storage cannot be opened.
    #[error("{0}")]
    Storage(String),
    /// LZ4 and Snappy, as TiKV.
    #[error("the compression type is unimplemented, compression type id {0}")]
    Compression(String),
    /// A key does not begin as the rule says.
    #[error("file {name} has wrong prefix: key {key} does not start with {prefix}")]
    WrongKeyPrefix {
        /// The object.
        name: String,
        /// Encoded key, hex.
        key: String,
        /// Encoded prefix, hex.
        prefix: String,
    },
    /// All memory for applies is in use.
    #[error("resource is not enough memory is limited")]
    Busy,
}

impl ApplyError {
    pub(super) fn into_message(self) -> import_sstpb::Error {
        let message = self.to_string();
        let store_error = match self {
            ApplyError::Region(error) => Some(*error),
            ApplyError::Busy => Some(errorpb::Error {
                // BR waits on exactly this text (br/pkg/restore/log_client/import_retry.go).
                message: "memory is limited".to_owned(),
                server_is_busy: Some(errorpb::ServerIsBusy {
                    reason: "memory is limited".to_owned(),
                    backoff_ms: BUSY_BACKOFF_MS,
                    ..errorpb::ServerIsBusy::default()
                }),
                ..errorpb::Error::default()
            }),
            _ => None,
        };
        import_sstpb::Error {
            message,
            store_error,
        }
    }
}

/// Serves one request: the range of keys in its windows, or `None` if there were none. As in
/// TiKV's answer, a lock or rollback record counts although nothing is written for it.
pub(super) async fn apply<H: ImportHost>(
    host: &Arc<H>,
    quota: &Quota,
    limits: &ImportLimits,
    request: ApplyRequest,
) -> Result<Option<Range>, ApplyError> {
    let context = request.context.clone().unwrap_or_default();
    check_store(host.as_ref(), &context).map_err(ApplyError::Region)?;
    host.region(&context).map_err(ApplyError::Region)?;
    let slices = pair(&request)?;
    if slices.is_empty() {
        return Ok(None);
    }
    let backend = request.storage_backend.clone().unwrap_or_default();
    let storage = open_backend(&backend).map_err(|e| ApplyError::Storage(e.to_string()))?;
    let mut seen: Seen = None;
    for (meta, rule) in slices {
        if meta.length > limits.max_slice_bytes {
            let what = format!(
                "slice of {} bytes, at most {}",
                meta.length, limits.max_slice_bytes
            );
            return Err(ApplyError::BadFormat(what));
        }
        let memory = quota.reserve(meta.length).ok_or(ApplyError::Busy)?;
        let stored = read(&storage, &meta).await?;
        let work = SliceWork {
            host: Arc::clone(host),
            context: context.clone(),
            uri: storage.uri(),
            write_bytes: limits.write_bytes,
            meta,
            rule,
            _memory: memory,
        };
        let worker = tokio::task::spawn_blocking(move || work.run(&stored));
        let range = worker
            .await
            .map_err(|e| ApplyError::Engine(e.to_string()))??;
        if let Some((first, last)) = range {
            let (old_first, old_last) = seen.unwrap_or_else(|| (first.clone(), last.clone()));
            seen = Some((old_first.min(first), old_last.max(last)));
        }
    }
    Ok(seen.map(|(start, end)| Range {
        start: start.into(),
        end: end.into(),
    }))
}

/// Each slice with its rule; the form of before TiKV 6.5 (one slice) counts as the last.
fn pair(request: &ApplyRequest) -> Result<Vec<(KvMeta, RewriteRule)>, ApplyError> {
    let (metas, rules) = (request.metas.len(), request.rewrite_rules.len());
    if metas != rules {
        let what = format!("request: {metas} metas but {rules} rewrite rules");
        return Err(ApplyError::BadFormat(what));
    }
    let mut slices: Vec<_> = request
        .metas
        .iter()
        .cloned()
        .zip(request.rewrite_rules.iter().cloned())
        .collect();
    if let Some(meta) = &request.meta {
        slices.push((
            meta.clone(),
            request.rewrite_rule.clone().unwrap_or_default(),
        ));
    }
    Ok(slices)
}

async fn read(storage: &SharedStorage, meta: &KvMeta) -> Result<Bytes, ApplyError> {
    let cannot = |what: String| ApplyError::CannotRead {
        uri: storage.uri(),
        name: meta.name.clone(),
        what,
    };
    if meta.file_encryption_info.is_some() {
        return Err(cannot("encrypted log files are not supported".to_owned()));
    }
    let result = if meta.range_length == 0 {
        storage.get(&meta.name).await
    } else {
        let end = meta.range_offset.checked_add(meta.range_length);
        let end = end.ok_or_else(|| cannot("the range ends beyond 2^64 bytes".to_owned()))?;
        storage.get_range(&meta.name, meta.range_offset..end).await
    };
    result.map_err(|e| cannot(e.detail))
}

/// One slice on a blocking thread.
struct SliceWork<H> {
    host: Arc<H>,
    context: Context,
    uri: String,
    write_bytes: usize,
    meta: KvMeta,
    rule: RewriteRule,
    _memory: OwnedSemaphorePermit,
}

/// Smallest and largest key.
type Seen = Option<(Vec<u8>, Vec<u8>)>;

impl<H: ImportHost> SliceWork<H> {
    fn run(&self, stored: &Bytes) -> Result<Seen, ApplyError> {
        let cf = Cf::parse(&self.meta.cf).ok_or_else(|| {
            ApplyError::BadFormat(format!("unknown column family {:?}", self.meta.cf))
        })?;
        let plain = self.plaintext(stored)?;
        let mut batch = Batch::default();
        let mut seen: Seen = None;
        for record in RecordIter::new(&plain) {
            let (key, value) = record.map_err(|e| self.cannot_read(&e))?;
            let Some(key) = self.selected(key)? else {
                continue;
            };
            let change = self.change(cf, &key, value);
            match &mut seen {
                None => seen = Some((key.clone(), key)),
                Some((first, _)) if key < *first => *first = key,
                Some((_, last)) if key > *last => *last = key,
                Some(_) => {}
            }
            let Some(op) = change else {
                continue;
            };
            if batch.would_exceed(&op, self.write_bytes) {
                self.write(&mut batch)?;
            }
            batch.push(op);
        }
        self.write(&mut batch)?;
        Ok(seen)
    }

    fn cannot_read(&self, what: &dyn std::fmt::Display) -> ApplyError {
        ApplyError::CannotRead {
            uri: self.uri.clone(),
            name: self.meta.name.clone(),
            what: what.to_string(),
        }
    }

    /// Decompressed, and compared with the request's length and digest.
    fn plaintext(&self, stored: &Bytes) -> Result<Bytes, ApplyError> {
        let meta = &self.meta;
        let plain = match CompressionType::try_from(meta.compression_type) {
            Ok(CompressionType::Unknown) => stored.clone(),
            Ok(CompressionType::Zstd) if meta.length == 0 => {
                let what = "a compressed slice without its length".to_owned();
                return Err(ApplyError::BadFormat(what));
            }
            Ok(CompressionType::Zstd) => decompress(stored, meta.length)
                .map_err(|e| self.cannot_read(&e))?
                .into(),
            Ok(other) => return Err(ApplyError::Compression(format!("{other:?}"))),
            Err(_) => return Err(ApplyError::Compression(meta.compression_type.to_string())),
        };
        if meta.length != 0 && plain.len() as u64 != meta.length {
            let what = format!("downloaded size {}, expected {}", plain.len(), meta.length);
            return Err(self.cannot_read(&what));
        }
        let digest = Sha256::digest(&plain);
        if !meta.sha256.is_empty() && digest[..] != meta.sha256[..] {
            let (want, got) = (hex::encode(&meta.sha256), hex::encode(digest));
            let what =
                format!("plaintext file checksums do not match, expect: {want}, calculate: {got}");
            return Err(self.cannot_read(&what));
        }
        Ok(plain)
    }

    /// The rewritten key (no `z`) of a record in the slice's window and region.
    fn selected(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ApplyError> {
        let (meta, key) = (&self.meta, self.rewrite(key)?);
        let (_, ts) = split_versioned(&key).map_err(|e| self.cannot_read(&e))?;
        let range = EncodedRange::new(meta.start_key.clone(), meta.end_key.clone());
        let in_window = meta.start_ts <= ts.get() && ts.get() <= meta.restore_ts;
        Ok((in_window && range.contains(&key)).then_some(key))
    }

    /// The change that a selected record becomes; `None` when its value is left out.
    fn change(&self, cf: Cf, key: &[u8], value: &[u8]) -> Option<EngineOp> {
        let data_key = pitr_format::key::data_key(key);
        if self.meta.is_delete {
            return Some(EngineOp::Delete {
                cf: EngineCf::from(cf),
                key: data_key,
            });
        }
        let value = match cf {
            _ if value.is_empty() => return None,
            Cf::Default => value.to_vec(),
            Cf::Write => restored_write(value)?,
        };
        Some(EngineOp::Put {
            cf: EngineCf::from(cf),
            key: data_key,
            value,
        })
    }

    fn rewrite(&self, key: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let (old, new) = (&self.rule.old_key_prefix, &self.rule.new_key_prefix);
        let key = match key.strip_prefix(&old[..]) {
            Some(rest) => [new, rest].concat(),
            None => key.to_vec(),
        };
        if key.starts_with(new) {
            return Ok(key);
        }
        Err(ApplyError::WrongKeyPrefix {
            name: self.meta.name.clone(),
            key: hex::encode_upper(key),
            prefix: hex::encode_upper(new),
        })
    }

    fn write(&self, batch: &mut Batch) -> Result<(), ApplyError> {
        if batch.ops.is_empty() {
            return Ok(());
        }
        let ops = std::mem::take(batch).ops;
        self.host.write(&self.context, &ops).map_err(|e| match e {
            WriteFailure::Region(e) => ApplyError::Region(e),
            WriteFailure::Engine(e) => ApplyError::Engine(e.to_string()),
        })
    }
}

/// A put or delete record marked as restored; locks, rollbacks and what is no write record are
/// left out, as TiKV does.
fn restored_write(value: &[u8]) -> Option<Vec<u8>> {
    let mut record = WriteRecord::parse(&Bytes::copy_from_slice(value)).ok()?;
    if !matches!(record.kind, WriteType::Put | WriteType::Delete) {
        return None;
    }
    without_rollback_marks(&mut record);
    record.txn_source |= TXN_SOURCE_RESTORE;
    Some(record.to_bytes().to_vec())
}

#[derive(Default)]
struct Batch {
    ops: Vec<EngineOp>,
    bytes: usize,
}

impl Batch {
    fn would_exceed(&self, op: &EngineOp, limit: usize) -> bool {
        !self.ops.is_empty() && self.bytes + size(op) > limit
    }

    fn push(&mut self, op: EngineOp) {
        self.bytes += size(&op);
        self.ops.push(op);
    }
}

fn size(op: &EngineOp) -> usize {
    CHANGE_OVERHEAD
        + match op {
            EngineOp::Put { key, value, .. } => key.len() + value.len(),
            EngineOp::Delete { key, .. } => key.len(),
        }
}
