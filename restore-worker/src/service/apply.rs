//! `Apply`: log slices straight into the engine, the call that BR makes for a log restore.
//!
//! As TiKV (tikv/tikv `src/import/sst_service.rs` do_apply, `components/sst_importer/src/
//! sst_importer.rs` do_apply_kv_file), except where that loses data in silence:
//!
//! | TiKV | here |
//! |---|---|
//! | metas without a rule are dropped | refused |
//! | a column family other than default and write is ignored | refused |
//! | digest and length are not compared for a cached slice | always compared |
//! | slices of equal names in two archives share the cache | the storage is part of the name |
//! | slices before a damaged one are written | all slices of a request are proven first |
//! | of several versions of a key in one batch only the newest stays | all stay |
//! | region and leader are checked after the download | before |
//! | decompression may exceed the declared length | capped by it; the length is required |

use std::sync::Arc;

use bytes::Bytes;
use pitr_format::key::split_versioned;
use pitr_format::record::RecordIter;
use pitr_format::write_cf::{WriteRecord, WriteType};
use pitr_format::{Cf, EncodedRange};
use pitr_proto::import_sstpb::{ApplyRequest, KvMeta, Range, RewriteRule};
use pitr_proto::kvrpcpb::Context;

use super::cache::CachedSlice;
use super::error::{ImportError, Reading};
use super::host::{ImportHost, WriteFailure};
use super::slices::SliceReader;
use super::storages::Opened;
use super::{Shared, check_store};
use crate::engine::{EngineCf, EngineOp};
use crate::filter::without_rollback_marks;

/// Set in `txn_source` of what a log restore writes, so that TiCDC ignores it (tikv/tikv#19657).
const TXN_SOURCE_RESTORE: u64 = 1 << 16;
/// Bytes that a change takes besides key and value.
const CHANGE_OVERHEAD: usize = 12;

/// Serves one request: the range of keys in its windows, or `None` if there were none. As in
/// TiKV's answer, a lock or rollback record counts although nothing is written for it.
pub(super) async fn apply<H: ImportHost>(
    shared: &Arc<Shared<H>>,
    request: &ApplyRequest,
) -> Result<Option<Range>, ImportError> {
    let host = &shared.host;
    let context = request.context.clone().unwrap_or_default();
    check_store(host.as_ref(), &context).map_err(ImportError::Region)?;
    host.region(&context).map_err(ImportError::Region)?;
    let slices = pair(request)?;
    if slices.is_empty() {
        return Ok(None);
    }
    let opened = shared
        .storages
        .open(request.storage_backend.as_ref(), &request.storage_cache_id)?;
    let reader = SliceReader {
        env: &shared.env,
        cache: &shared.cache,
        speed: &shared.speed,
        opened: &opened,
        cipher: request.cipher_info.as_ref(),
        max_slice_bytes: shared.limits.max_slice_bytes,
    };
    // For the changes of one write, all the time, so that no slice takes this room.
    let write_bytes = shared.cache.share(shared.limits.write_bytes);
    let mut held = shared.cache.memory();
    shared.cache.grow(&mut held, write_bytes as u64)?;
    for (meta, rule) in &slices {
        let slice = reader.slice(meta, &mut held).await?;
        check_keys(meta, rule, &slice.plain, &reading(&opened, meta))?;
    }
    let mut seen: Seen = None;
    for (meta, rule) in slices {
        let slice = reader.slice(&meta, &mut held).await?;
        let work = SliceWork {
            host: Arc::clone(host),
            context: context.clone(),
            reading: reading(&opened, &meta),
            write_bytes,
            meta,
            rule,
            slice,
        };
        let memory = held.take();
        // The write goes on when the caller has gone; so does its memory.
        let worked = shared.env.unblock(move || (work.run(), memory)).await;
        let (range, memory) = worked.map_err(|e| ImportError::Engine(e.to_string()))?;
        held.absorb(memory);
        let range = range?;
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

/// Finds what would end the request in the middle: an unknown column family, a key without the
/// prefix of its rule, a key without a timestamp.
fn check_keys(
    meta: &KvMeta,
    rule: &RewriteRule,
    plain: &[u8],
    reading: &Reading,
) -> Result<(), ImportError> {
    column_family(meta)?;
    for record in RecordIter::new(plain) {
        // Framing was proven when the slice was read.
        let Ok((key, _)) = record else { break };
        if rule.old_key_prefix.is_empty() && rule.new_key_prefix.is_empty() {
            split_versioned(key).map_err(|e| reading.damaged(e))?;
        } else {
            let key = rewrite(meta, rule, key)?;
            split_versioned(&key).map_err(|e| reading.damaged(e))?;
        }
    }
    Ok(())
}

fn reading(opened: &Opened, meta: &KvMeta) -> Reading {
    Reading {
        uri: opened.storage.uri(),
        name: meta.name.clone(),
        into: "memory".to_owned(),
    }
}

fn column_family(meta: &KvMeta) -> Result<Cf, ImportError> {
    Cf::parse(&meta.cf)
        .ok_or_else(|| ImportError::BadFormat(format!("unknown column family {:?}", meta.cf)))
}

fn rewrite(meta: &KvMeta, rule: &RewriteRule, key: &[u8]) -> Result<Vec<u8>, ImportError> {
    let (old, new) = (&rule.old_key_prefix, &rule.new_key_prefix);
    let key = match key.strip_prefix(&old[..]) {
        Some(rest) => [new, rest].concat(),
        None => key.to_vec(),
    };
    if key.starts_with(new) {
        return Ok(key);
    }
    Err(ImportError::WrongKeyPrefix {
        what: format!("file {}", meta.name),
        key: hex::encode_upper(key),
        prefix: hex::encode_upper(new),
    })
}

/// Each slice with its rule; the form of before TiKV 6.5 (one slice) counts as the last.
fn pair(request: &ApplyRequest) -> Result<Vec<(KvMeta, RewriteRule)>, ImportError> {
    let (metas, rules) = (request.metas.len(), request.rewrite_rules.len());
    if metas != rules {
        let what = format!("request: {metas} metas but {rules} rewrite rules");
        return Err(ImportError::BadFormat(what));
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

/// One slice on a blocking thread.
struct SliceWork<H> {
    host: Arc<H>,
    context: Context,
    reading: Reading,
    write_bytes: usize,
    meta: KvMeta,
    rule: RewriteRule,
    slice: Arc<CachedSlice>,
}

/// Smallest and largest key.
type Seen = Option<(Vec<u8>, Vec<u8>)>;

impl<H: ImportHost> SliceWork<H> {
    fn run(&self) -> Result<Seen, ImportError> {
        let cf = column_family(&self.meta)?;
        let mut batch = Batch::default();
        let mut seen: Seen = None;
        for record in RecordIter::new(&self.slice.plain) {
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

    fn cannot_read(&self, what: &dyn std::fmt::Display) -> ImportError {
        self.reading.damaged(what)
    }

    /// The rewritten key (no `z`) of a record in the slice's window and region.
    fn selected(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImportError> {
        let (meta, key) = (&self.meta, rewrite(&self.meta, &self.rule, key)?);
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

    fn write(&self, batch: &mut Batch) -> Result<(), ImportError> {
        if batch.ops.is_empty() {
            return Ok(());
        }
        let ops = std::mem::take(batch).ops;
        self.host.write(&self.context, &ops).map_err(|e| match e {
            WriteFailure::Region(e) => ImportError::Region(e),
            WriteFailure::Engine(e) => ImportError::Engine(e.to_string()),
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
